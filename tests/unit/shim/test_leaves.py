"""What a shim does with the leaves of execs: kills, removals that come later, and what is told of each."""

from __future__ import annotations

import signal
from collections.abc import Generator
from typing import Any

import pytest

from runtime.cgroups.leaf import CpuTime
from runtime.errors import CgroupError
from runtime.linux.fds import OwnedFd
from shim import leaves
from shim.api import task, types
from shim.ttrpc.status import RpcError
from tests.unit.shim.fake_container import Shim
from tests.unit.shim.loops import settle, turn_until


class FakeLeaf:
    """A leaf that is in use as long as a test says; `events` cannot be had, so it is looked at now and then."""

    name = "exec-1"

    def __init__(self, in_use: bool = False) -> None:
        self.in_use = in_use
        self.holding = True
        self.kills = 0
        self.refusing = False
        self.gone = False
        self.removed = False
        self.closed = 0

    def holds(self, _pid: int) -> bool:
        return self.holding

    def kill(self) -> bool:
        if self.refusing:
            raise CgroupError("kill cgroup: no")
        self.kills += 1
        return not self.gone

    def remove(self) -> bool:
        self.removed |= not self.in_use
        return self.removed

    def populated(self, _events: object) -> bool:
        return self.in_use

    def open_events(self) -> OwnedFd:
        raise FileNotFoundError

    def cpu_time(self) -> CpuTime:
        return CpuTime(30, 10, 20)

    def close(self) -> None:
        self.closed += 1


def started(shim: Shim, leaf: FakeLeaf | None, exec_id: str = "e1") -> int:
    """An exec in that leaf; its pid."""
    if not len(shim.pod):
        shim.create()
        shim.start()
    shim.runtime.leaf = leaf
    shim.add_exec(exec_id)
    return shim.start(exec_id=exec_id)


def kill(shim: Shim, exec_id: str = "e1") -> None:
    shim.ask("Kill", task.KillRequest("c1", exec_id, signal.SIGKILL))


@pytest.fixture
def trees(monkeypatch: pytest.MonkeyPatch, shim: Shim) -> list[int]:
    """The pids whose trees were killed by descent."""
    killed: list[int] = []

    def kill_tree(_container: object, pid: int) -> Generator[Any, Any, None]:
        killed.append(pid)
        yield from ()

    monkeypatch.setattr(leaves, "kill_tree", kill_tree)
    shim.runtime.pidfd = OwnedFd(-1)
    return killed


def test_a_leaf_goes_when_its_exec_has_ended(shim: Shim) -> None:
    leaf = FakeLeaf()
    pid = started(shim, leaf)
    settle(shim.loop, 0.02)
    assert not leaf.removed
    shim.reaper.end(pid)
    turn_until(shim.loop, lambda: leaf.removed)
    shim.delete(exec_id="e1")
    assert leaf.closed == 1


def test_delete_has_it_gone_however_soon_it_comes(shim: Shim) -> None:
    leaf = FakeLeaf()
    shim.reaper.end(started(shim, leaf))
    shim.delete(exec_id="e1")
    assert (leaf.removed, leaf.closed) == (True, 1)


def test_a_leaf_in_use_stays_and_keeps_nobody_waiting(shim: Shim) -> None:
    leaf = FakeLeaf(in_use=True)
    shim.reaper.end(started(shim, leaf))
    shim.delete(exec_id="e1")
    assert not leaf.removed
    leaf.in_use = False
    turn_until(shim.loop, lambda: leaf.removed)
    assert leaf.closed == 1


def test_delete_of_a_killed_exec_waits_for_the_rest_of_it(shim: Shim, trees: list[int]) -> None:
    leaf = FakeLeaf(in_use=True)
    pid = started(shim, leaf)
    kill(shim)
    shim.reaper.end(pid, signal.SIGKILL)
    deleted = shim.begin("Delete", task.DeleteRequest("c1", "e1"))
    settle(shim.loop)
    assert not deleted
    leaf.in_use = False
    turn_until(shim.loop, lambda: deleted)
    assert (leaf.kills, leaf.removed, trees) == (1, True, [])


def test_but_not_for_ever(shim: Shim, trees: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaves, "KILL_TIMEOUT_S", 0.02)
    leaf = FakeLeaf(in_use=True)
    pid = started(shim, leaf)
    kill(shim)
    shim.reaper.end(pid, signal.SIGKILL)
    shim.delete(exec_id="e1")
    assert (leaf.removed, trees) == (False, [])


def test_who_deletes_at_the_same_time_does_not_take_a_new_exec_of_that_name(
    shim: Shim, trees: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaves, "KILL_TIMEOUT_S", 0.05)
    pid = started(shim, FakeLeaf(in_use=True))
    kill(shim)
    shim.reaper.end(pid, signal.SIGKILL)
    first, second = (shim.begin("Delete", task.DeleteRequest("c1", "e1")) for _ in range(2))
    turn_until(shim.loop, lambda: first)
    shim.add_exec("e1")
    turn_until(shim.loop, lambda: second)
    assert (isinstance(second[0], RpcError), trees) == (True, [])
    assert shim.status(exec_id="e1") == types.STATUS_CREATED


def test_a_kill_goes_by_descent_where_there_is_no_leaf(shim: Shim, trees: list[int]) -> None:
    pid = started(shim, None)
    kill(shim)
    assert trees == [pid]


@pytest.mark.parametrize("trouble", ["holding", "refusing", "gone"])
def test_or_where_the_leaf_does_not_do(shim: Shim, trees: list[int], trouble: str) -> None:
    leaf = FakeLeaf()
    pid = started(shim, leaf)
    setattr(leaf, trouble, trouble != "holding")
    if trouble == "refusing":
        with pytest.raises(CgroupError):
            kill(shim)
    else:
        kill(shim)
        assert leaf.kills == 1 + (trouble == "gone")  # for whoever is still in it
    assert trees == [pid]


def test_an_exec_that_has_ended_by_itself_is_not_killed(shim: Shim, trees: list[int]) -> None:
    leaf = FakeLeaf(in_use=True)
    shim.reaper.end(started(shim, leaf))
    with pytest.raises(RpcError, match="already finished"):
        kill(shim)
    assert (leaf.kills, trees) == (0, [])


def test_more_than_are_watched_are_tried_when_another_exec_ends(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaves, "MOST_WATCHED", 1)
    many = [FakeLeaf(in_use=True) for _each in range(4)]
    for number, leaf in enumerate(many):
        shim.reaper.end(started(shim, leaf, f"e{number}"))
        shim.delete(exec_id=f"e{number}")
    assert [leaf.closed for leaf in many] == [0, 1, 1, 1]
    for leaf in many:
        leaf.in_use = False
    turn_until(shim.loop, lambda: many[0].removed)
    for number in range(2):
        shim.reaper.end(started(shim, FakeLeaf(), f"f{number}"))
        shim.delete(exec_id=f"f{number}")
    assert all(leaf.removed for leaf in many)
    assert len(shim.pod.find("c1").leaves) == 0


def test_the_end_of_a_container_closes_what_was_watched(shim: Shim) -> None:
    leaf = FakeLeaf(in_use=True)
    shim.reaper.end(started(shim, leaf))
    shim.delete(exec_id="e1")
    shim.reaper.end(100)
    shim.delete()
    assert (leaf.removed, leaf.closed) == (False, 1)


def test_what_an_exec_has_used_is_told_when_it_has_ended(shim: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, dict[str, str]]] = []
    lines: list[str] = []
    monkeypatch.setattr(
        shim.pod, "emit_span", lambda name, _parent, _marks, about: said.append((name, about))
    )
    monkeypatch.setattr(type(shim.pod.log), "write", lambda _log, _level, line: lines.append(line))
    for exec_id, leaf in (("e1", FakeLeaf()), ("e2", None)):
        pid = started(shim, leaf, exec_id)
        shim.reaper.end(pid, 7 << 8)
        shim.delete(exec_id=exec_id)
    runs = [about for name, about in said if name == "run"]
    assert [(about["exec.id"], about["process.exit.code"]) for about in runs] == [("e1", "7"), ("e2", "7")]
    assert (runs[0]["cpu.usage_usec"], runs[0]["cgroup"]) == ("30", "exec-1")
    assert "cpu.usage_usec" not in runs[1]
    assert "CPU time 30 us (user 10, system 20)" in lines[0]
