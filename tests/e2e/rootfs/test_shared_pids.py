"""A second container in the PID namespace of a first: nothing of the host's is ever to be seen by the first."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import StageError
from runtime.linux.constants import WALL
from runtime.operations.start import start
from runtime.stages import shared_pids
from runtime.stages.plan import STAGED
from runtime.waiting import run
from tests.e2e.rootfs.conftest import bind, with_user_namespace
from tests.e2e.runtime.conftest import Pipes
from tests.harness.images import compile_static

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.container import Container
    from tests.e2e.runtime.conftest import Runner
    from tests.harness.bundles import Bundle

# In a container that may look into every process it sees: writes down what only the host's root has.
WATCHER = """
echo ready > /out/ready
while [ ! -e /out/stop ]; do
    for each in /proc/[0-9]*; do
        [ -e $each/root/$MARKER ] && echo "root of $each" >> /out/seen
        [ -e $each/cwd/$MARKER ] && echo "cwd of $each" >> /out/seen
        grep -q manor-marker $each/mountinfo 2> /dev/null && echo "mounts of $each" >> /out/seen
        echo x >> /out/turns
    done
done
"""
CREATES = 12
DEADLINE_S = 30.0


@pytest.fixture(params=[("", False), (STAGED, False), ("", True)], ids=["chosen", "staged", "apart"])
def way(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """The shape that is chosen for it, and the one that it is."""
    chosen: tuple[str, bool] = request.param
    return chosen


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where the watcher writes; a mount of the host's stands for all of the host's."""
    place = tmp_path / "out"
    place.mkdir()
    (tmp_path / "marker").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "manor-marker", str(tmp_path / "marker")], check=True)
    (tmp_path / "marker/file").touch()
    yield place
    (place / "stop").touch()
    subprocess.run(["umount", str(tmp_path / "marker")], check=True)


def started_watcher(runner: Runner, out: Path) -> Container:
    bundle = runner.bundle("sh", "-c", WATCHER)
    bundle.config["mounts"].append(bind(out, "/out"))
    bundle.config["process"]["env"].append(f"MARKER={out.parent}/marker/file")
    for kind in ("bounding", "effective", "permitted"):
        bundle.config["process"]["capabilities"][kind] += ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]
    bundle.config["linux"]["maskedPaths"] = []
    container = runner.create(bundle)
    run(start(container))
    while not (out / "ready").exists():
        os.sched_yield()
    return container


def join(bundle: Bundle, container: Container, kind: str) -> None:
    """Let `bundle` have that namespace of the container, where it has one at all."""
    for namespace in bundle.config["linux"]["namespaces"]:
        if namespace["type"] == kind:
            namespace["path"] = f"/proc/{container.pid}/ns/{kind}"
            if kind == "user":
                del bundle.config["linux"]["uidMappings"], bundle.config["linux"]["gidMappings"]


def share_pids(bundle: Bundle, container: Container) -> None:
    join(bundle, container, "pid")


def test_a_container_sees_nothing_of_the_host_while_another_one_joins_its_pid_namespace(
    runner: Runner, out: Path
) -> None:
    watcher = started_watcher(runner, out)
    for _ in range(CREATES):
        bundle = runner.bundle("true")
        share_pids(bundle, watcher)
        assert runner.run(bundle).code == 0
    (out / "stop").touch()
    assert len((out / "turns").read_text().split()) > CREATES, "it did not watch"
    assert not (out / "seen").exists(), (out / "seen").read_text()


@pytest.fixture
def slow_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who makes the procfs waits for who traces it, and has then made a directory in its name."""
    make = shared_pids._make

    def wait_and_make(*about: Any) -> None:
        end = time.monotonic() + DEADLINE_S
        while not os.path.exists("/below") and time.monotonic() < end:
            time.sleep(0.01)
        make(*about)

    monkeypatch.setattr(shared_pids, "_make", wait_and_make)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the tracer knows the registers of x86-64")
@pytest.mark.usefixtures("slow_maker")
def test_whoever_is_traced_there_has_no_way_back_to_the_hosts_root(runner: Runner, out: Path) -> None:
    """A chroot is left by who may trace the one that is in it; what has no other root mounted cannot be left."""
    tried = traced(runner, out, runner.bundle("true"))
    assert ["manor:[1:PROC]", "0"] in [each[:2] for each in tried]
    assert all(each[2] == f"-{errno.ENOENT}" for each in tried), tried


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the tracer knows the registers of x86-64")
@pytest.mark.usefixtures("slow_maker")
def test_nobody_is_traced_there_from_a_user_namespace(runner: Runner, out: Path) -> None:
    """There the procfs has to be made in sight of the host's, so that the maker must not be traceable at all."""
    joining = runner.bundle("true")
    with_user_namespace(joining)
    tried = traced(runner, out, joining)
    assert ["manor:[1:PROC]", "refused"] in tried
    assert {each[1] for each in tried} == {"refused"}, tried


def traced(runner: Runner, out: Path, joining: Bundle) -> list[list[str]]:
    """What a tracer says of the stages of `joining`, which joins its PID namespace, and its user namespace if any."""
    bundle = runner.bundle("/tracer", f"{out.parent}/marker/file")
    (bundle.rootfs / "tracer").write_bytes(compile_static("tracer"))
    (bundle.rootfs / "tracer").chmod(0o755)
    bundle.config["mounts"] += [bind(out, "/out"), bind(joining.rootfs, "/other")]
    for kind in ("bounding", "effective", "permitted"):
        bundle.config["process"]["capabilities"][kind].append("CAP_SYS_PTRACE")
    if "uidMappings" in joining.config["linux"]:
        with_user_namespace(bundle)
    with Pipes() as pipes:
        tracer = runner.create(bundle, pipes.stdio)
        pipes.close_far_ends()
        run(start(tracer))
        for kind in ("user", "pid"):
            join(joining, tracer, kind)
        assert runner.run(joining).code == 0
        (out / "stop").touch()
        told = pipes.collect(tracer.pid).stdout.splitlines()
    tracer.ended()
    runner.delete(tracer)
    assert told[0] == "ready"
    return [line.split() for line in told[1:]]


def test_the_procfs_shows_the_processes_of_the_namespace_that_is_joined(runner: Runner) -> None:
    first = runner.bundle("sleep", "1234")
    container = runner.create(first)
    run(start(container))
    second = runner.bundle(
        "sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline; echo; [ $$ != 1 ] && ls /proc/self/fd"
    )
    share_pids(second, container)
    assert runner.run(second).stdout.split() == ["sleep", "1234", "0", "1", "2", "3"]


@pytest.mark.parametrize("with_users", [False, True])
def test_a_container_that_joins_a_pid_namespace_may_have_a_terminal(runner: Runner, with_users: bool) -> None:
    """Only who may mount can put /dev/console in its place, and init may not any more when it is born there."""
    first = runner.bundle("sleep", "1234")
    second = runner.bundle(
        "sh", "-c", "test -t 0 -a -t 1 -a -t 2 && test -c /dev/console && tty && : < /dev/tty && exit 21"
    )
    if with_users:
        with_user_namespace(first)
        with_user_namespace(second)
    container = runner.create(first)
    run(start(container))
    second.config["process"]["terminal"] = True
    for kind in ("user", "pid"):
        join(second, container, kind)
    terminal = runner.create(second)
    run(start(terminal))
    status = os.waitpid(terminal.pid, WALL)[1]
    terminal.ended()
    runner.delete(terminal)
    assert os.waitstatus_to_exitcode(status) == 21


def test_a_procfs_that_cannot_be_made_there_is_told_with_its_mount(runner: Runner) -> None:
    container = runner.create(runner.bundle("true"))
    bundle = runner.bundle("true")
    share_pids(bundle, container)
    bundle.config["mounts"][0]["options"] = ["nosuchoption"]
    with pytest.raises(
        StageError, match=r"mounts\[0\]: mount proc on /proc: .*Unknown parameter 'nosuchoption'"
    ):
        runner.create(bundle)


@pytest.mark.usefixtures("id_maps")
def test_hooks_and_mount_sources_are_had_before_init_is_born(runner: Runner, tmp_path: Path) -> None:
    container = runner.create(runner.bundle("true"))
    bundle = runner.bundle("cat", "/data/file")
    share_pids(bundle, container)
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/file").write_text("from the host\n")
    mapping = [{"containerID": 0, "hostID": 0, "size": 10}]
    mount = {"destination": "/data", "source": str(tmp_path / "volume"), "options": ["bind"]}
    bundle.config["mounts"].append(mount | {"uidMappings": mapping, "gidMappings": mapping})
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"cat > {tmp_path}/told"]}
    bundle.config["hooks"] = {"createRuntime": [hook], "createContainer": [{"path": "/bin/true"}]}
    assert runner.run(bundle).stdout == "from the host\n"
    assert '"status":"creating"' in (tmp_path / "told").read_text().replace(" ", "")
