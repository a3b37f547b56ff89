"""What a hook finds when it begins: the specification leaves most of it open, and hooks rely on what runc does."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.oci.conftest import Oci

HOST = ("prestart", "createRuntime", "poststart", "poststop")
INSIDE = ("createContainer", "startContainer")


def noting(script: str, moments: tuple[str, ...], out: str, **more: Any) -> Any:
    """A change of a config: at each of `moments` a hook appends what `script` says to the file `out`-MOMENT."""

    def change(config: dict[str, Any]) -> None:
        hooks = config.setdefault("hooks", {})
        for moment in moments:
            args = ["sh", "-c", f"{{ {script}; }} >> {out}-{moment}"]
            hooks.setdefault(moment, []).append({"path": "/bin/sh", "args": args, **more})

    return change


def run(oci: Oci, *changes: Any, program: tuple[str, ...] = ("true",), **how: Any) -> Path:
    """Run a container with these changes to its end; its bundle."""

    def change(config: dict[str, Any]) -> None:
        for each in changes:
            each(config)

    bundle = oci.bundle(*program, change=change)
    oci.ok("run", "--bundle", bundle.path, bundle.path.name, **how)
    return bundle.path


def test_hooks_of_the_host_begin_in_the_bundle_with_the_runtimes_environment(
    oci: Oci, tmp_path: Path
) -> None:
    change = noting('pwd; echo "$FROM_OUTSIDE"', HOST, f"{tmp_path}/out")
    bundle = run(oci, change, cwd=tmp_path, env={"FROM_OUTSIDE": "yes"})
    for moment in HOST:
        assert (tmp_path / f"out-{moment}").read_text() == f"{bundle}\nyes\n", moment


def test_create_container_hooks_begin_in_the_root_file_system_with_no_environment(
    oci: Oci, tmp_path: Path
) -> None:
    change = noting("pwd; env | grep -v -e ^PWD= -e ^_= || true", ("createContainer",), f"{tmp_path}/out")
    bundle = run(oci, change, env={"FROM_OUTSIDE": "yes"})
    assert (tmp_path / "out-createContainer").read_text() == f"{bundle}/rootfs\n"


def test_start_container_hooks_are_as_the_process_will_be(oci: Oci) -> None:
    def as_user(config: dict[str, Any]) -> None:
        config["process"]["user"] = {"uid": 1000, "gid": 1000}
        config["process"]["cwd"] = "/tmp"
        config["process"]["env"].append("ONE=two")

    script = 'pwd; echo "$ONE $HOME"; id -u; grep -c "^NoNewPrivs:.1" /proc/self/status'
    bundle = run(oci, noting(script, ("startContainer",), "/tmp/out"), as_user)
    assert (bundle / "rootfs/tmp/out-startContainer").read_text() == "/tmp\ntwo /home/user\n1000\n1\n"


def test_an_environment_of_a_hooks_own_is_all_it_has(oci: Oci, tmp_path: Path) -> None:
    script = "env | grep -v -e ^PWD= -e ^PATH= -e ^_= -e ^SHLVL="  # these a shell has by itself
    env = ["ONLY=this", "ONLY=that"]
    bundle = run(
        oci,
        noting(script, (*HOST, "createContainer"), f"{tmp_path}/out", env=env),
        noting(script, ("startContainer",), "/tmp/out", env=env),
    )
    for moment in (*HOST, "createContainer"):
        assert (tmp_path / f"out-{moment}").read_text() == "ONLY=that\n", moment
    assert (bundle / "rootfs/tmp/out-startContainer").read_text() == "ONLY=that\n"


def test_states_tell_the_pid_as_the_hook_can_see_it(oci: Oci, tmp_path: Path) -> None:
    bundle = run(
        oci,
        noting("cat", (*HOST, "createContainer"), f"{tmp_path}/out"),
        noting("cat", ("startContainer",), "/tmp/out"),
    )
    states = {m: json.loads((tmp_path / f"out-{m}").read_text()) for m in (*HOST, "createContainer")}
    states["startContainer"] = json.loads((bundle / "rootfs/tmp/out-startContainer").read_text())
    for state in states.values():
        assert (state["id"], state["bundle"]) == (bundle.name, str(bundle))
    assert [states[m]["pid"] for m in INSIDE] == [1, 1]
    host_pids = {states[m]["pid"] for m in HOST if m != "poststop"}
    assert len(host_pids) == 1
    assert host_pids.pop() > 1
    assert "pid" not in states["poststop"] or states["poststop"]["pid"] == 0
    assert [states[m]["status"] for m in ("prestart", "createRuntime", "createContainer")] == ["creating"] * 3
    assert states["startContainer"]["status"] == "created"
    assert states["poststop"]["status"] == "stopped"


def test_what_create_container_hooks_mount_is_in_the_container(oci: Oci, tmp_path: Path) -> None:
    """As an NVIDIA or a library hook does it: by a path relative to where it begins."""
    (tmp_path / "library").write_text("from the host\n")

    def change(config: dict[str, Any]) -> None:
        script = f"touch ./lib.so && mount --bind {tmp_path}/library ./lib.so"
        config["hooks"] = {"createContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}

    bundle = oci.bundle("cat", "/lib.so", change=change)
    assert oci.ok("run", "--bundle", bundle.path, bundle.path.name) == "from the host\n"
    assert (bundle.rootfs / "lib.so").read_text() == ""


def test_what_create_runtime_hooks_mount_through_init_is_in_the_container(oci: Oci, tmp_path: Path) -> None:
    (tmp_path / "library").write_text("from the host\n")

    def change(config: dict[str, Any]) -> None:
        script = (
            'pid=$(sed "s/.*\\"pid\\":\\([0-9]*\\).*/\\1/"); touch rootfs/lib.so && '
            f"nsenter -m -t $pid mount --bind {tmp_path}/library $PWD/rootfs/lib.so"
        )
        config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}

    bundle = oci.bundle("cat", "/lib.so", change=change)
    assert oci.ok("run", "--bundle", bundle.path, bundle.path.name) == "from the host\n"


@pytest.mark.parametrize(
    "moment", ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"]
)
def test_a_hook_that_fails_ends_the_run_and_is_told_with_what_it_said(oci: Oci, moment: str) -> None:
    def change(config: dict[str, Any]) -> None:
        failing = {"path": "/bin/sh", "args": ["sh", "-c", "echo said this; exit 7"]}
        config["hooks"] = {moment: [{"path": "/bin/true"}, failing]}

    bundle = oci.bundle("sleep", "1000", change=change)
    done = oci("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code != 0
    for words in (f"error running {moment} hook #1:", "exit status 7", "said this"):
        assert words in done.stderr


@pytest.mark.parametrize("moment", ["createRuntime", "createContainer", "startContainer"])
def test_a_hook_past_its_time_ends_the_run(oci: Oci, moment: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {moment: [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]}

    bundle = oci.bundle("sleep", "1000", change=change)
    done = oci("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code != 0
    assert "hook ran past specified timeout of 1.0s" in done.stderr


@pytest.mark.manor_only("runc waits for whoever has the hook's output open")
def test_nothing_that_a_hook_past_its_time_has_started_stays(oci: Oci, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        script = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
        hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1}
        config["hooks"] = {"createRuntime": [hook]}

    bundle = oci.bundle("true", change=change)
    assert oci("run", "--bundle", bundle.path, bundle.path.name).code == 1
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}/root/bin")


def test_a_container_hook_has_only_its_three_descriptors(oci: Oci) -> None:
    change = noting("ls /proc/self/fd | wc -l", ("startContainer",), "/tmp/out")
    bundle = run(oci, change)
    assert (bundle / "rootfs/tmp/out-startContainer").read_text() == "4\n"
