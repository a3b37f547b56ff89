"""Kills for want of memory: told once each, and whose limit it was. The cgroups are directories of plain files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shim import oom
from shim.journal import Oom
from shim.oom import OomWatch
from tests.harness.processes import descriptors


class Loop:
    """Takes what it is given; the tests say what happens."""

    def __init__(self) -> None:
        self.watched: dict[int, Callable[[int], None]] = {}
        self.timers: list[SimpleNamespace] = []

    def watch(self, fd: int, _events: int, callback: Callable[[int], None]) -> None:
        self.watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        self.watched.pop(fd, None)

    def call_later(self, _delay_s: float, callback: Callable[[], None]) -> SimpleNamespace:
        timer = SimpleNamespace(callback=callback)
        timer.cancel = lambda: self.timers.remove(timer) if timer in self.timers else None
        self.timers.append(timer)
        return timer

    def pass_time(self) -> None:
        while self.timers:
            self.timers.pop(0).callback()


class Memory:
    """The memory controller: `top` above `pods` above `pod` above `c1`."""

    def __init__(self, top: Path, version: int) -> None:
        self.version = version
        self.places = {
            name: top / where
            for name, where in (("pods", "pods"), ("pod", "pods/pod"), ("c1", "pods/pod/c1"))
        }
        for place in self.places.values():
            place.mkdir(parents=True)
            if version == 1:
                self._write(place, "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n")
                self._write(place, "memory.failcnt", "5\n")
                (place / "cgroup.event_control").touch()
            else:
                self._write(place, "memory.events", "low 0\noom 0\noom_kill 0\n")
                self._write(place, "memory.events.local", "low 0\noom 3\noom_kill 0\n")
        hierarchy = SimpleNamespace(name="memory", version=version, mountpoint=str(top))
        self.layout: Any = SimpleNamespace(find=lambda name: hierarchy if name == "memory" else None)
        self.cgroup: Any = SimpleNamespace(paths={"memory": str(self.places["c1"])})

    def _write(self, place: Path, name: str, text: str) -> None:
        (place / name).write_text(text)

    def kill(self, count: int, whose: str = "", file: str = "") -> None:
        """The kernel's counters after `count` kills in c1, when the limit of `whose` was hit."""
        c1 = self.places["c1"]
        if self.version == 1:
            self._write(c1, "memory.oom_control", f"oom_kill_disable 0\nunder_oom 0\noom_kill {count}\n")
            if whose:
                self._write(self.places[whose], file or "memory.failcnt", f"{5 + count}\n")
            return
        self._write(c1, "memory.events", f"low 0\noom {count if whose == 'c1' else 0}\noom_kill {count}\n")
        if whose:
            self._write(self.places[whose], "memory.events.local", f"low 0\noom {3 + count}\n")


class World:
    def __init__(self, directory: Path, version: int) -> None:
        self.loop = Loop()
        self.memory = Memory(directory, version)
        self.told = 0
        loop: Any = self.loop
        self.watch = OomWatch(loop, self.memory.layout, self.memory.cgroup, self._killed)

    def _killed(self) -> None:
        self.told += 1

    def notify(self) -> None:
        """What the kernel does at its own time."""
        for fd, callback in list(self.loop.watched.items()):
            if self.memory.version == 1:
                os.eventfd_write(fd, 1)
            callback(0)


@pytest.fixture(params=[1, 2])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(tmp_path, request.param)


@pytest.mark.parametrize(
    ("whose", "level"), [("c1", oom.CONTAINER), ("pod", oom.POD), ("pods", oom.ABOVE), ("", oom.ABOVE)]
)
def test_it_is_told_whose_limit_was_hit(world: World, whose: str, level: str) -> None:
    world.memory.kill(1, whose)
    world.notify()
    assert world.told == 1
    assert world.watch.last is not None
    assert world.watch.last.level == level
    assert world.watch.last.cgroup == (str(world.memory.places[whose]) if whose else "")


def test_each_kill_is_judged_by_what_has_changed_since_the_last(world: World) -> None:
    levels = []
    for number, whose in enumerate(("c1", "pod", "c1"), 1):
        world.memory.kill(number, whose)
        if whose == "pod" and world.memory.version == 2:  # what c1 has counted stays
            world.memory._write(world.memory.places["c1"], "memory.events", f"oom 1\noom_kill {number}\n")
        world.notify()
        assert world.watch.last is not None
        levels.append(world.watch.last.level)
    assert levels == [oom.CONTAINER, oom.POD, oom.CONTAINER]


@pytest.mark.parametrize(
    ("hit", "level"), [(("pods", "pod"), oom.POD), (("pods", "pod", "c1"), oom.CONTAINER)]
)
def test_of_several_limits_that_were_hit_the_nearest_counts(
    world: World, hit: tuple[str, ...], level: str
) -> None:
    for whose in hit:
        world.memory.kill(1, whose)
    world.notify()
    assert world.watch.last is not None
    assert world.watch.last.level == level


def test_a_cgroup_above_that_has_gone_is_passed_over(world: World) -> None:
    for file in world.memory.places["pods"].glob("memory.*"):
        file.unlink()
    (
        world.memory.places["pods"] / "memory.failcnt"
    ).mkdir()  # reading it fails, and not as a file that is not there
    (world.memory.places["pods"] / "memory.events").mkdir()
    world.memory.kill(1, "pod")
    world.notify()
    assert world.told == 1
    assert world.watch.last is not None
    assert world.watch.last.level == oom.POD


def test_what_was_killed_before_is_not_told(tmp_path: Path) -> None:
    first = World(tmp_path, 2)
    first.memory.kill(2, "c1")
    loop: Any = first.loop
    told: list[int] = []
    later = OomWatch(loop, first.memory.layout, first.memory.cgroup, lambda: told.append(1))
    assert not later.look()
    assert (later.kills, told) == (2, [])
    later.close()


def test_a_container_that_has_ended_already_is_not_watched(world: World) -> None:
    for file in world.memory.places["c1"].iterdir():
        file.unlink()
    loop: Any = Loop()
    before = descriptors()
    late = OomWatch(loop, world.memory.layout, world.memory.cgroup, lambda: None)
    assert (late.look(), late.claim(), loop.watched) == (False, None, {})
    assert not descriptors() - before


def test_a_watch_that_cannot_be_had_leaves_no_descriptor(tmp_path: Path) -> None:
    memory = Memory(tmp_path, 1)
    (memory.places["c1"] / "cgroup.event_control").unlink()
    loop: Any = Loop()
    before = descriptors()
    assert not OomWatch(loop, memory.layout, memory.cgroup, lambda: None).look()
    assert not descriptors() - before


def test_closing_gives_the_descriptors_back(tmp_path: Path) -> None:
    before = descriptors()
    for version in (1, 2):
        World(tmp_path / str(version), version).watch.close()
    assert not descriptors() - before


def test_before_linux_5_2_what_a_cgroup_counts_with_those_below_is_all_there_is(tmp_path: Path) -> None:
    memory = Memory(tmp_path, 2)
    for name in ("pod", "pods"):
        (memory.places[name] / "memory.events.local").unlink()
    loop: Any = Loop()
    watch = OomWatch(loop, memory.layout, memory.cgroup, lambda: None)
    memory.kill(1)
    memory._write(memory.places["pod"], "memory.events", "low 0\noom 1\noom_kill 1\n")
    assert watch.look()
    assert watch.last == Oom(oom.POD, str(memory.places["pod"]))
    watch.close()


def test_v1_asks_the_kernel_to_be_told_and_takes_what_it_was_told(tmp_path: Path) -> None:
    world = World(tmp_path, 1)
    (notify,) = world.loop.watched
    asked = (world.memory.places["c1"] / "cgroup.event_control").read_text().split()
    assert asked[0] == str(notify)
    world.notify()
    with pytest.raises(BlockingIOError):  # or the loop would be woken again and again
        os.eventfd_read(notify)
    world.watch.close()


def test_v1_looks_for_an_announced_kill_more_than_once(tmp_path: Path) -> None:
    world = World(tmp_path, 1)
    world.notify()
    for _ in range(3):
        world.loop.timers.pop(0).callback()
    world.notify()
    assert len(world.loop.timers) == 1
    for _ in range(3):
        world.loop.timers.pop(0).callback()
    world.memory.kill(1, "c1")
    world.loop.pass_time()
    assert world.told == 1


def test_a_limit_that_was_met_and_kept_is_not_a_kill(world: World) -> None:
    world.notify()
    world.loop.pass_time()
    assert (world.told, world.watch.last, world.watch.claim()) == (0, None, None)


def test_a_kill_that_nobody_was_notified_of_is_seen_at_the_exit(world: World) -> None:
    world.memory.kill(1, "c1")
    assert world.watch.claim() == world.watch.last
    assert world.told == 1
    world.notify()
    assert world.told == 1


def test_a_kill_is_claimed_by_one_exit(world: World) -> None:
    world.memory.kill(1, "c1")
    world.notify()
    assert world.watch.claim() is not None
    assert world.watch.claim() is None
    assert world.watch.last is not None


def test_when_it_is_closed_nothing_is_told_any_more(world: World) -> None:
    world.notify()
    world.watch.close()
    world.memory.kill(1, "c1")
    world.loop.pass_time()
    assert not world.watch.look()
    assert (world.loop.watched, world.loop.timers, world.told) == ({}, [], 0)
    world.watch.close()


def test_v1_announces_a_kill_before_it_has_happened(tmp_path: Path) -> None:
    world = World(tmp_path, 1)
    world.notify()
    assert world.told == 0
    world.memory.kill(1, "c1")
    world.loop.pass_time()
    assert world.told == 1


def test_v1_announces_kills_in_other_containers_of_the_pod_too(tmp_path: Path) -> None:
    world = World(tmp_path, 1)
    world.memory._write(world.memory.places["pod"], "memory.failcnt", "6\n")
    world.notify()
    world.loop.pass_time()
    assert world.told == 0


def test_v1_counts_the_limit_of_memory_and_swap_too(tmp_path: Path) -> None:
    world = World(tmp_path, 1)
    world.memory.kill(1, "pod", "memory.memsw.failcnt")
    world.notify()
    assert world.watch.last is not None
    assert world.watch.last.level == oom.POD


def test_a_kernel_that_does_not_count_is_believed_at_its_word(tmp_path: Path) -> None:
    world = World(tmp_path, 1)
    world.memory._write(world.memory.places["c1"], "memory.oom_control", "oom_kill_disable 0\n")
    world.notify()
    assert world.told == 1


def test_in_v2_a_cgroup_of_the_containers_own_making_is_the_container(tmp_path: Path) -> None:
    """Its limit counts in the container's memory.events, and in no memory.events.local of ours."""
    world = World(tmp_path, 2)
    world.memory._write(world.memory.places["c1"], "memory.events", "oom 1\noom_kill 1\n")
    world.notify()
    assert world.watch.last is not None
    assert world.watch.last.level == oom.CONTAINER


def test_a_cgroup_that_has_gone_ends_the_watch(world: World) -> None:
    for file in world.memory.places["c1"].iterdir():
        file.unlink()
    if world.memory.version == 1:
        world.notify()
        assert world.loop.watched == {}
    assert not world.watch.look()


def test_without_a_memory_controller_there_is_nothing_to_watch() -> None:
    loop: Any = Loop()
    layout: Any = SimpleNamespace(find=lambda _name: None)
    watch = OomWatch(loop, layout, SimpleNamespace(paths={}), lambda: None)  # type: ignore[arg-type]
    assert not watch.look()
    assert watch.claim() is None
    watch.close()
