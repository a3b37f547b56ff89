"""SCMP_ACT_NOTIFY: calls of a container that an agent on the host answers."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.notify.conftest import Scene

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="call numbers of x86_64")

MKDIR, ENOMEDIUM = 83, errno.ENOMEDIUM

both = pytest.mark.parametrize("no_new_privileges", [False, True], ids=["privileges", "no-new-privileges"])


@both
def test_the_agent_is_told_of_the_container_and_answers_for_it(scene: Scene, no_new_privileges: bool) -> None:
    agent = scene.agent({MKDIR: ENOMEDIUM})
    change = scene.profile("mkdir", no_new_privileges=no_new_privileges)
    bundle = scene.oci.bundle("sh", "-c", "mkdir /tmp/d; ls /tmp", change=change)
    done = scene.run(bundle)
    assert "No medium found" in done.stderr
    assert done.stdout == ""
    (state,) = agent.states
    pid = state["pid"]
    assert state == {
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": "of the test",
        "state": {
            "ociVersion": state["ociVersion"],
            "id": bundle.path.name,
            "status": "creating",
            "pid": pid,
            "bundle": str(bundle.path),
            "annotations": {"org.example": "a"},
        },
    }
    assert pid > 1
    assert agent.named == [["anon_inode:seccomp notify"]]
    assert agent.asked == [MKDIR]


@both
def test_a_container_that_another_process_starts_has_its_agent_too(
    scene: Scene, no_new_privileges: bool
) -> None:
    agent = scene.agent({MKDIR: ENOMEDIUM})
    change = scene.profile("mkdir", no_new_privileges=no_new_privileges)
    name = scene.oci.created("sh", "-c", "mkdir /tmp/d || echo $? > /tmp/code", change=change)
    agent.await_states(1)
    scene.oci.ok("start", name)
    scene.oci.await_status(name, "stopped")
    assert (scene.oci.directory / name / "rootfs/tmp/code").read_text() == "1\n"
    assert agent.asked == [MKDIR]


@both
def test_an_exec_is_told_of_as_one_of_a_running_container(scene: Scene, no_new_privileges: bool) -> None:
    agent = scene.agent({MKDIR: ENOMEDIUM})
    name = scene.oci.started(change=scene.profile("mkdir", no_new_privileges=no_new_privileges))
    done = scene.oci("exec", name, "mkdir", "/tmp/d")
    assert "No medium found" in done.stderr
    assert agent.asked == [MKDIR]
    landlord, tenant = agent.await_states(2)
    assert tenant["state"] == landlord["state"] | {"status": "running"}
    assert tenant["state"]["pid"] == scene.oci.state(name)["pid"] == landlord["pid"]
    assert tenant["pid"] != landlord["pid"]
    assert tenant["metadata"] == "of the test"


@both
def test_calls_of_the_runtime_itself_may_be_answered_by_the_agent(
    scene: Scene, no_new_privileges: bool
) -> None:
    """What is done under the filter before the program runs: all but the write that tells of the listener."""
    agent = scene.agent()
    names = ("execve", "openat", "open", "read", "close", "fcntl", "sendmsg", "recvmsg")
    change = scene.profile(*names, no_new_privileges=no_new_privileges)
    done = scene.run(scene.oci.bundle("echo", "it ran", change=change))
    assert done.stdout == "it ran\n", done.stderr
    assert 59 in agent.asked


@both
def test_without_an_agent_there_is_no_container(scene: Scene, no_new_privileges: bool) -> None:
    change = scene.profile("mkdir", no_new_privileges=no_new_privileges)
    bundle = scene.oci.bundle("touch", "/ran", change=change)
    done = scene.run(bundle)
    assert done.code == 1
    assert "failed to connect with seccomp agent" in done.error
    assert not (bundle.rootfs / "ran").exists()


def test_without_an_agent_there_is_no_exec_either(scene: Scene) -> None:
    agent = scene.agent()
    name = scene.oci.started(change=scene.profile("mkdir"))
    agent.close()
    scene.path.unlink()
    assert scene.oci("exec", name, "true").code != 0
    assert scene.oci.state(name)["status"] == "running"


def test_an_agent_that_dies_leaves_calls_that_do_not_exist(scene: Scene) -> None:
    agent = scene.agent({MKDIR: ENOMEDIUM})
    change = scene.profile("mkdir")
    script = "until [ -e /tmp/go ]; do sleep 0.05; done; mkdir /tmp/d 2> /tmp/said"
    name = scene.oci.started("sh", "-c", script, change=change)
    agent.close()
    (scene.oci.directory / name / "rootfs/tmp/go").touch()
    scene.oci.await_status(name, "stopped")
    said = (scene.oci.directory / name / "rootfs/tmp/said").read_text()
    assert "Function not implemented" in said


@pytest.mark.manor_only("runc needs libseccomp 2.6 for this flag")
def test_calls_that_only_a_kill_interrupts_are_answered_too(scene: Scene) -> None:
    def change(config: dict[str, Any]) -> None:
        scene.profile("mkdir")(config)
        config["linux"]["seccomp"]["flags"] = ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]

    agent = scene.agent({MKDIR: ENOMEDIUM})
    done = scene.run(scene.oci.bundle("mkdir", "/tmp/d", change=change))
    assert "No medium found" in done.stderr
    assert agent.asked == [MKDIR]


def test_a_listener_path_that_nothing_uses_is_ignored(scene: Scene) -> None:
    def change(config: dict[str, Any]) -> None:
        scene.profile("mkdir")(config)
        config["linux"]["seccomp"]["syscalls"] = []

    assert scene.run(scene.oci.bundle("mkdir", "/tmp/d", change=change)).code == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"listenerPath": ""}, "listenerPath"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "SCMP_ACT_NOTIFY cannot be used as default action"),
        (
            {"syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]},
            "SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
    ],
    ids=["no listenerPath", "default action", "write"],
)
def test_what_no_agent_could_answer_is_refused(scene: Scene, change: dict[str, Any], words: str) -> None:
    def asked(config: dict[str, Any]) -> None:
        scene.profile("mkdir")(config)
        config["linux"]["seccomp"] |= change

    scene.agent()
    done = scene.run(scene.oci.bundle("true", change=asked))
    assert done.code == 1
    assert words in done.stderr


def test_no_descriptor_of_it_is_left_in_the_container(scene: Scene) -> None:
    def change(config: dict[str, Any]) -> None:
        scene.profile("mkdir")(config)
        script = "ls /proc/self/fd | wc -l > /tmp/hook"
        config["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}

    scene.agent()
    bundle = scene.oci.bundle("sh", "-c", "ls /proc/self/fd | wc -l", change=change)
    done = scene.run(bundle)
    assert done.stdout == "4\n", done.stderr
    assert (bundle.rootfs / "tmp/hook").read_text() == "4\n"
