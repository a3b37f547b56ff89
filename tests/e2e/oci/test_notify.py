"""sd_notify(3): what a container tells its manager, and that commands wait for it."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.oci.conftest import Oci, cgroup_directories
from tests.harness.waiting import eventually

# A program for the container, which has no other that can send datagrams: the host's Python, bound into it.
_SAY = """
import os, socket, sys, time
print(os.environ["NOTIFY_SOCKET"], flush=True)
for message in sys.argv[1:]:
    if message.startswith("await "):
        while not os.path.exists(message[6:]):
            time.sleep(0.01)
        continue
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.connect(os.environ["NOTIFY_SOCKET"])
    s.send(message.encode())
"""


class Manager:
    """The socket of a service manager, and what it was told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(60)

    def hear(self) -> tuple[str, list[int]]:
        data, ancillary, _flags, _address = self.socket.recvmsg(4096, socket.CMSG_SPACE(4 * 4))
        fds = array.array("i")
        for _level, _kind, rights in ancillary:
            fds.frombytes(rights)
        return data.decode(), list(fds)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.socket.close()


def _with_python(config: dict[str, Any]) -> None:
    """The host's Python and its libraries, read-only, at their own places."""
    for place in {"/usr", "/lib", "/lib64", sys.base_prefix}:
        if os.path.isdir(place):
            config["mounts"].append(
                {
                    "destination": place,
                    "type": "bind",
                    "source": os.path.realpath(place),
                    "options": ["rbind", "ro"],
                }
            )


def _talker(oci: Oci, *messages: str) -> Path:
    python = str(Path(sys.base_prefix) / "bin/python3")
    return oci.bundle(python, "-IS", "-c", _SAY, *messages, change=_with_python).path


def _told_ready(manager: Manager) -> str:
    """What came up to the barrier; the pid that was told."""
    assert manager.hear() == ("READY=1\n", [])
    main, _fds = manager.hear()
    assert main.startswith("MAINPID=")
    barrier, fds = manager.hear()
    assert barrier == "BARRIER=1"
    assert len(fds) == 1
    os.close(fds[0])
    return main.removeprefix("MAINPID=").strip()


def test_a_detached_run_waits_until_it_is_ready(oci: Oci, manager: Manager) -> None:
    bundle = _talker(oci, "await /tmp/go", "STATUS=soon", "READY=1", "await /never")
    running = subprocess.Popen(
        oci.words("run", "-d", "-b", bundle, "c"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**oci.environment(), "NOTIFY_SOCKET": str(manager.path)},
    )
    eventually(lambda: oci("state", "c").code == 0 and oci.state("c")["status"] == "running")
    assert running.poll() is None
    (bundle / "rootfs/tmp/go").touch()
    pid = _told_ready(manager)
    assert running.wait(60) == 0
    assert pid == str(oci.state("c")["pid"])


def test_a_start_waits_until_it_is_ready(oci: Oci, manager: Manager) -> None:
    bundle = _talker(oci, "await /tmp/go", "READY=1", "await /never")
    env = {"NOTIFY_SOCKET": str(manager.path)}
    oci.ok("create", "-b", bundle, "c", env=env)
    running = subprocess.Popen(oci.words("start", "c"), env={**oci.environment(), **env})
    oci.await_status("c", "running")
    assert running.poll() is None
    (bundle / "rootfs/tmp/go").touch()
    assert _told_ready(manager) == str(oci.state("c")["pid"])
    assert running.wait(60) == 0


def test_a_run_in_the_foreground_tells_its_own_pid_and_goes_on(oci: Oci, manager: Manager) -> None:
    bundle = _talker(oci, "READY=1", "await /tmp/go")
    running = subprocess.Popen(
        oci.words("run", "-b", bundle, "c"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**oci.environment(), "NOTIFY_SOCKET": str(manager.path)},
    )
    assert _told_ready(manager) == str(running.pid)  # what the manager has to watch is the command
    (bundle / "rootfs/tmp/go").touch()
    out, _err = running.communicate(timeout=60)
    assert (running.returncode, out) == (0, b"/run/notify/notify.sock\n")


@pytest.mark.parametrize("how", ["run -d", "run", "start"])
@pytest.mark.manor_only(reason="runc waits for ever: for itself, or for a child that it has not collected")
def test_one_that_ends_without_a_word_ends_the_wait(oci: Oci, manager: Manager, how: str) -> None:
    bundle = _talker(oci, "STATUS=bad")
    env = {"NOTIFY_SOCKET": str(manager.path)}
    if how == "start":
        oci.ok("create", "-b", bundle, "c", env=env)
        assert oci("start", "c", env=env).code == 0
    else:
        assert oci(*how.split(), "-b", bundle, "c", env=env).code == 0
    manager.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        manager.hear()


@pytest.mark.manor_only(reason="as above")
def test_the_container_sees_a_socket_that_it_cannot_replace(oci: Oci, manager: Manager) -> None:
    script = "echo $NOTIFY_SOCKET; test -S $NOTIFY_SOCKET && ls -l /run/notify; rm $NOTIFY_SOCKET; touch /run/notify/x"
    bundle = oci.bundle("sh", "-c", script)
    done = oci("run", "-b", bundle.path, "c", env={"NOTIFY_SOCKET": str(manager.path)})
    assert done.stdout.startswith("/run/notify/notify.sock\n")
    assert "srwxrwxrwx" in done.stdout
    assert done.stderr.count("Read-only file system") == 2


def test_nothing_of_it_stays(oci: Oci, manager: Manager) -> None:
    bundle = _talker(oci, "READY=1")
    assert oci("run", "-b", bundle, "c", env={"NOTIFY_SOCKET": "/nonexistent"}).code == 0
    assert not (oci.root / "c").exists()
    assert not cgroup_directories(bundle.name)


@pytest.mark.manor_only(reason="runc answers as well, and ends half a minute after the container")
def test_an_abstract_socket_will_do(oci: Oci) -> None:
    name = f"manor-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0{name}")
        abstract.settimeout(60)
        bundle = _talker(oci, "READY=1", "sleep0.3")
        running = subprocess.Popen(
            oci.words("run", "-b", bundle, "c"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**oci.environment(), "NOTIFY_SOCKET": f"@{name}"},
        )
        assert abstract.recv(100) == b"READY=1\n"
        assert running.wait(60) == 0
