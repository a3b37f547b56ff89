"""The landlord's config, and its program: a file that the kernel executes, and what it does then."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.errors import CgroupError, StageError, Unsupported
from runtime.linux import mount
from runtime.linux.constants import CLONE_NEWNS
from runtime.linux.fds import OwnedFd
from runtime.spec.json import dump
from runtime.spec.load import load_spec
from runtime.spec.model import IdMapping
from runtime.waiting import Sleep
from shim import landlord
from shim.landlord import Landlord, config
from shim.landlord_program import program
from shim.loop import Loop
from shim.options import Handler
from shim.pod_plan import PodPlan
from tests.unit.shim.fake_container import Reaper
from tests.unit.shim.loops import drive, turn_until

PLAN = PodPlan("p1", ("network", "uts", "ipc", "pid"), cgroup_parent="/pods")


def test_its_config_is_one_that_the_runtime_takes() -> None:
    paths = {"network": "/proc/self/fd/3", "ipc": "/proc/self/fd/4"}
    spec = load_spec(dump(config(PLAN, paths, -500)))
    assert {each.type: each.path for each in spec.linux.namespaces} == {"pid": None, "mount": None, **paths}
    assert (spec.linux.cgroups_path, spec.process.oom_score_adj) == ("/pods/p1", -500)
    assert spec.root.readonly
    assert spec.process.no_new_privileges
    capabilities = spec.process.capabilities
    assert capabilities is not None
    assert not any(getattr(capabilities, name) for name in capabilities.FIELD_NAMES)
    assert (spec.process.user.uid, spec.process.user.gid) == (65535, 65535)


def test_its_ids_are_mapped() -> None:
    ids = (IdMapping(0, 200_000, 1000),)
    plan = PodPlan("p1", ("pid", "user"), uid_mappings=ids, gid_mappings=(IdMapping(0, 200_000, 1 << 20),))
    user = load_spec(dump(config(plan, {}, 0))).process.user
    assert (user.uid, user.gid) == (999, 65535)


def test_a_pod_without_a_cgroup_says_nothing_of_the_landlords() -> None:
    spec = load_spec(dump(config(PodPlan("p1", ("pid",)), {}, 0)))
    assert spec.linux.cgroups_path is None


# --- its life -----------------------------------------------------------------------------------------


class World:
    """A pod for a landlord whose process is one of ours, and what was asked of the runtime for it."""

    def __init__(self, loop: Loop, directory: Path) -> None:
        self.loop = loop
        self.asked: list[str] = []
        self.logged: list[str] = []
        self.deaths: list[tuple[int, int]] = []
        self.process = subprocess.Popen(["sleep", "60"])
        self.reaper = Reaper(loop)
        self.runtime = SimpleNamespace(
            id="p1",
            pid=self.process.pid,
            pidfd=OwnedFd(os.pidfd_open(self.process.pid)),
            ended=lambda: self.asked.append("ended"),
        )
        self.pod = SimpleNamespace(
            loop=loop,
            reaper=self.reaper,
            keep=(),
            host=None,
            handler=Handler(),
            log=SimpleNamespace(write=lambda _level, text: self.logged.append(text)),
        )
        self.bundle = directory / "bundle"
        self.failing: dict[str, Exception] = {}
        self.dies_in = ""
        self.request: Any = None  # of the create

    def step(self, name: str, *arguments: Any) -> Generator[Any, Any, Any]:
        self.asked.append(name)
        if name == "create":
            self.request = arguments[-1]
        yield Sleep(0.001)
        if name in self.failing:
            raise self.failing[name]
        if name == self.dies_in:
            self.reaper.end(self.process.pid, 9)
        return self.runtime

    def reap(self) -> None:
        """As the reaper does when somebody has killed it."""
        if self.process.poll() is None:
            self.loop.call_later(0.005, self.reap)
        else:
            self.reaper.end(self.process.pid, -self.process.returncode)

    def bring_up(self) -> Landlord:
        """The landlord, running."""
        made: Landlord = drive(
            self.loop,
            landlord.bring_up(
                self.pod,  # type: ignore[arg-type]
                PLAN,
                str(self.bundle),
                {},
                lambda status, when_ns: self.deaths.append((status, when_ns)),
            ),
        )
        return made


@pytest.fixture
def world(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(loop, tmp_path)
    for name, step in (("create_apart", "create"), ("start", "start"), ("delete", "delete")):
        monkeypatch.setattr(landlord, name, lambda *arguments, step=step: made.step(step, *arguments))
    yield made
    made.process.kill()
    made.process.wait()
    made.runtime.pidfd.close()


def test_its_death_is_told_once_and_what_it_has_is_removed_later(world: World) -> None:
    made = world.bring_up()
    assert world.asked == ["create", "start"]
    world.process.kill()
    world.reap()
    turn_until(world.loop, lambda: world.deaths)
    assert world.deaths == [(signal.SIGKILL, 1_000_000_000)]
    drive(world.loop, made.remove())
    assert world.asked[2:] == ["ended", "delete"]
    assert len(world.deaths) == 1


@pytest.mark.parametrize("step", ["create", "start"])
def test_one_that_ends_before_it_is_watched_is_told_of_too(world: World, step: str) -> None:
    world.dies_in = step
    world.bring_up()
    turn_until(world.loop, lambda: world.deaths)


@pytest.mark.parametrize(("own", "given"), [(-999, -998), (0, 0)])
def test_it_is_killed_for_memory_no_later_than_its_shim_may_say(
    world: World, monkeypatch: pytest.MonkeyPatch, own: int, given: int
) -> None:
    monkeypatch.setattr(landlord, "_own_score", lambda: own)
    world.bring_up()
    assert load_spec((world.bundle / "config.json").read_bytes()).process.oom_score_adj == given


def test_its_root_is_mounted_where_nobody_else_sees_it(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done: list[tuple[object, ...]] = []
    monkeypatch.setattr(landlord, "unshare", lambda flags: done.append(("unshare", flags)))
    monkeypatch.setattr(mount, "mount", lambda *arguments: done.append(arguments[1:4]))
    monkeypatch.setattr(landlord, "_PLACE", str(tmp_path))
    world.bring_up()
    world.request.prepare()
    assert done == [
        ("unshare", CLONE_NEWNS),
        ("/", None, mount.MS_SLAVE | mount.MS_REC),
        (str(tmp_path), "tmpfs", mount.MS_NOSUID | mount.MS_NODEV),
    ]
    (written,) = [each for each in tmp_path.iterdir() if each.is_file()]
    assert (written.read_bytes(), written.stat().st_mode & 0o777) == (program(), 0o555)


def test_one_that_is_removed_is_killed_first_and_nobody_is_told_of_its_death(world: World) -> None:
    made = world.bring_up()
    world.reap()
    drive(world.loop, made.remove())
    assert world.process.returncode == -signal.SIGKILL
    assert world.asked[2:] == ["ended", "delete"]
    assert world.deaths == []


def test_what_one_has_that_does_not_end_is_not_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlord, "_END_TIMEOUT_S", 0.02)
    made = world.bring_up()
    with pytest.raises(TimeoutError, match=f"landlord {made.pid} was killed and has not ended yet"):
        drive(world.loop, made.remove())
    assert "delete" not in world.asked


def test_one_whose_start_fails_is_killed_reaped_and_removed(world: World) -> None:
    world.failing["start"] = StageError("2:INIT", "execute", "/manor-landlord", "no")
    world.reap()
    with pytest.raises(StageError, match="no"):
        world.bring_up()
    assert world.process.returncode == -signal.SIGKILL
    assert world.asked == ["create", "start", "ended", "delete"]


def test_a_start_that_failed_is_told_though_what_is_left_cannot_be_removed(world: World) -> None:
    world.failing = {"start": StageError("2:INIT", "execute", "x", "first"), "delete": CgroupError("second")}
    world.reap()
    with pytest.raises(StageError, match="first"):
        world.bring_up()
    assert world.logged == ["remove landlord p1: second"]


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="nobody has written it")
def test_the_program_ignores_the_end_of_its_children_and_sleeps(tmp_path: Path) -> None:
    path = tmp_path / "landlord"
    path.write_bytes(program())
    path.chmod(0o755)
    running = subprocess.Popen([path])
    try:
        fields: dict[str, str] = {}
        deadline = time.monotonic() + 30
        while not int(fields.get("SigIgn", "0"), 16) & 1 << (signal.SIGCHLD - 1) or fields["State"][0] != "S":
            assert time.monotonic() < deadline, fields
            lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
            fields = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        running.terminate()
        assert running.wait(30) == -signal.SIGTERM
    finally:
        running.kill()
        running.wait()


def test_there_is_a_program_for_each_machine_that_we_know() -> None:
    for machine in ("x86_64", "aarch64"):
        assert len(program(machine)) < 256
    with pytest.raises(Unsupported, match="no landlord for pdp11"):
        program("pdp11")
