"""Pausing, killing, counting and removing a container's cgroups."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from runtime.cgroups import counters, stats_v1, stats_v2
from runtime.cgroups.cgroup import Cgroup
from runtime.errors import CgroupError
from runtime.spec.model import DeviceRule, Memory, Pids, Resources
from runtime.waiting import run
from tests.e2e.cgroups.yard import Yard, until
from tests.harness.waiting import catches

BUSY = "while :; do :; done"
FAMILY = "sleep 100 & sleep 100 & sh -c 'sleep 100 & wait' & wait"


def cpu_time(pid: int) -> int:
    return sum(
        int(ticks) for ticks in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    )


def stands_still(pid: int) -> bool:
    """Whether a busy process has had no CPU time for a while."""
    before = cpu_time(pid)
    time.sleep(0.2)
    return cpu_time(pid) == before


def test_frozen_container_stands_still_until_it_is_thawed(yard: Yard) -> None:
    cgroup = yard.make()
    pid = yard.spawn(cgroup, "sh", "-c", BUSY)
    assert not cgroup.frozen()
    run(cgroup.wait_frozen(5))
    assert cgroup.frozen()
    until(lambda: stands_still(pid))  # the last of its time may be put down after it has stopped
    before = cpu_time(pid)
    cgroup.thaw()
    until(lambda: cpu_time(pid) > before)
    assert not cgroup.frozen()


def test_freezing_returns_at_once_and_is_done_soon(yard: Yard) -> None:
    cgroup = yard.make()
    yard.spawn(cgroup, "sh", "-c", FAMILY)
    until(lambda: len(cgroup.pids()) >= 4)
    cgroup.freeze()
    assert cgroup.freezer().asked()
    until(cgroup.frozen)
    cgroup.thaw()
    assert not cgroup.freezer().asked()


def test_kill_reaches_every_process_of_a_paused_container(yard: Yard) -> None:
    cgroup = yard.make()
    pid = yard.spawn(cgroup, "sh", "-c", FAMILY)
    until(lambda: len(cgroup.pids()) >= 4)
    run(cgroup.wait_frozen(5))
    cgroup.signal_all(signal.SIGKILL)
    assert yard.wait(pid) == -signal.SIGKILL
    until(lambda: not cgroup.holders())


def test_kill_outruns_a_container_that_forks(yard: Yard) -> None:
    cgroup = yard.make()
    pid = yard.spawn(cgroup, "sh", "-c", "for i in $(seq 20); do while :; do sleep 0.001; done & done; wait")
    until(lambda: len(cgroup.pids()) > 20)
    cgroup.signal_all(signal.SIGKILL)
    until(lambda: not cgroup.holders())
    yard.wait(pid)


def test_other_signals_reach_everybody_and_leave_a_pause_alone(yard: Yard) -> None:
    cgroup = yard.make()
    pid = yard.spawn(cgroup, "sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done")
    until(lambda: catches(pid, signal.SIGTERM))
    run(cgroup.wait_frozen(5))
    cgroup.signal_all(signal.SIGTERM)
    assert cgroup.freezer().asked()
    until(cgroup.frozen)  # v2 wakes a task that is signalled, and puts it back to sleep
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    cgroup.thaw()
    assert yard.wait(pid) == 7


def test_members_of_inner_cgroups_are_the_containers_too(yard: Yard) -> None:
    cgroup = yard.make("outer")
    inner = yard.make("outer/inner")
    pid = yard.spawn(inner, "sleep", "100")
    assert cgroup.pids() == [pid]
    cgroup.signal_all(signal.SIGKILL)
    assert yard.wait(pid) == -signal.SIGKILL


def test_busy_cgroup_is_not_removed_and_says_who_is_in_it(yard: Yard) -> None:
    cgroup = yard.make()
    pid = yard.spawn(cgroup, "sleep", "100")
    assert not cgroup.try_delete()
    assert cgroup.holders() == [pid]
    cgroup.signal_all(signal.SIGKILL)
    yard.wait(pid)
    until(cgroup.try_delete)
    assert not any(os.path.exists(path) for path in cgroup.paths.values())
    assert cgroup.holders() == []
    assert cgroup.try_delete()


def test_cgroups_that_a_container_made_are_removed_with_it(yard: Yard) -> None:
    cgroup = yard.make()
    for path in cgroup.paths.values():
        for name in ("a/b/c", "a/d", "e"):
            Path(path, name).mkdir(parents=True)
    assert cgroup.try_delete()
    assert not any(os.path.exists(path) for path in cgroup.paths.values())


def test_nest_deeper_than_a_path_can_be_is_removed(yard: Yard) -> None:
    cgroup = yard.make()
    directory = os.open(cgroup.paths[yard.layout.hierarchies[-1].name], os.O_RDONLY)
    for _level in range(30):
        os.mkdir("x" * 200, dir_fd=directory)
        deeper = os.open("x" * 200, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = deeper
    os.close(directory)
    assert cgroup.try_delete()


def test_counters_count(yard: Yard) -> None:
    cgroup = yard.make(memory=Memory(limit=64 << 20), pids=Pids(limit=33))
    pid = yard.spawn(cgroup, "sh", "-c", BUSY)
    until(lambda: cpu_time(pid) >= 10)  # of 10 ms
    found = counters.read(cgroup)
    assert found.pids is not None
    assert (found.pids.current, found.pids.limit) == (1, 33)
    if isinstance(found, stats_v1.Metrics):
        assert found.cpu is not None
        assert found.cpu.usage.total > 50_000_000
        assert found.memory is not None
        assert found.memory.usage is not None
        assert found.memory.usage.limit == 64 << 20
        assert 0 < found.memory.usage.usage <= 64 << 20
        assert found.memory_oom_control == stats_v1.MemoryOomControl(0, 0, 0)
    else:
        assert isinstance(found, stats_v2.Metrics)
        assert found.cpu is not None
        assert found.cpu.usage_usec > 50_000
        assert found.memory is not None
        assert found.memory.usage_limit == 64 << 20
        assert 0 < found.memory.usage <= 64 << 20
        assert found.memory_events is not None
        assert found.memory_events.oom_kill == 0


def test_counters_of_a_container_that_is_gone_are_not_an_accident(yard: Yard) -> None:
    cgroup = yard.make()
    assert cgroup.try_delete()
    assert cgroup.oom_kill_count() == 0
    assert cgroup.pids() == []
    assert not cgroup.frozen()
    cgroup.signal_all(signal.SIGTERM)
    cgroup.signal_all(signal.SIGKILL)
    for resources in (Resources(pids=Pids(limit=5)), Resources(devices=(DeviceRule(allow=False),))):
        with pytest.raises(CgroupError, match=f"update cgroup {cgroup.path}: .*No such file"):
            cgroup.apply(resources)


def test_kill_reaches_one_who_was_left_in_a_single_hierarchy(yard: Yard) -> None:
    if not yard.layout.v1:
        pytest.skip("there is but one hierarchy")
    cgroup = yard.make()
    pid = yard.spawn(cgroup, "sleep", "100")
    for hierarchy in yard.layout.hierarchies:
        if "memory" not in hierarchy.controllers:
            Path(hierarchy.mountpoint, "cgroup.procs").write_text(str(pid))
    assert not cgroup.try_delete()
    assert [name for name, path in cgroup.paths.items() if os.path.exists(path)] == ["memory"]
    cgroup.signal_all(signal.SIGKILL)
    assert yard.wait(pid) == -signal.SIGKILL


@pytest.mark.parametrize("path", ["", "/"])
def test_whole_hierarchy_is_nobodys_cgroup(yard: Yard, path: str) -> None:
    with pytest.raises(Exception, match="names no cgroup"):
        Cgroup(yard.layout, "x").child(path)
