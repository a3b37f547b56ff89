"""How the processes of a container end: what is on record, what is told, and in which order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from runtime.errors import CgroupError
from shim import container as containers
from shim import stats
from shim.api import task, types
from shim.api.events import TaskExit
from shim.api.message import Message
from shim.journal import Exit
from shim.ttrpc import status
from shim.ttrpc.status import RpcError
from tests.unit.shim.fake_container import Shim
from tests.unit.shim.loops import settle, turn_until

PRIVATE_PID = {"namespaces": [{"type": "pid"}]}


def test_the_events_of_a_life_come_in_containerds_order(shim: Shim) -> None:
    pid = shim.create()
    assert shim.start() == pid
    shim.reaper.end(pid, 3 << 8)
    assert shim.told() == ["create", "start", "exit c1"]
    answer = shim.delete()
    assert (answer.pid, answer.exit_status) == (pid, 3)
    assert answer.exited_at is not None
    assert shim.told() == ["create", "start", "exit c1", "delete"]


def test_an_init_that_ends_before_its_start_is_answered_is_reported_after_the_start(shim: Shim) -> None:
    shim.create()
    shim.runtime.ending["start"] = 1 << 8
    shim.start()
    settle(shim.loop)
    assert shim.told() == ["create", "start", "exit c1"]
    assert shim.ask("Wait", task.WaitRequest("c1")).exit_status == 1


def test_an_init_that_ends_before_its_create_is_answered_is_reported_after_the_create(shim: Shim) -> None:
    shim.runtime.ending["create"] = 9
    shim.create()
    settle(shim.loop)
    assert shim.told() == ["create", "exit c1"]
    assert shim.ask("Wait", task.WaitRequest("c1")).exit_status == 137


def test_an_exec_that_ends_before_its_start_is_answered_is_reported_after_the_start(shim: Shim) -> None:
    shim.create()
    shim.start()
    shim.add_exec()
    shim.runtime.ending["exec"] = 0
    shim.start(exec_id="e1")
    settle(shim.loop)
    assert shim.told()[2:] == ["execadded", "execstarted", "exit e1"]


def test_every_exit_is_on_record_before_anybody_is_told(shim: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[list[str]] = []

    def publish(event: Message) -> None:
        if isinstance(event, TaskExit):
            known.append([entry.exec_id for entry in shim.on_record()])

    monkeypatch.setattr(shim.pod.events, "publish", publish)
    pid = shim.create(linux=PRIVATE_PID)
    shim.start()
    shim.add_exec()
    exec_pid = shim.start(exec_id="e1")
    shim.reaper.end(exec_pid, 5 << 8)
    shim.reaper.end(pid, 9)
    assert known == [["e1"], ["e1", ""]]
    assert shim.on_record() == [
        Exit("c1", "e1", exec_pid, 8, 5, 0, 1_000_000_000),
        Exit("c1", "", pid, 7, 137, 9, 1_000_000_000),
    ]


def test_inits_exit_is_on_record_while_it_is_held_back(shim: Shim) -> None:
    pid = shim.create(linux=PRIVATE_PID)
    shim.start()
    shim.add_exec()
    exec_pid = shim.start(exec_id="e1")
    shim.reaper.end(pid, 0)
    assert [entry.pid for entry in shim.on_record()] == [pid]
    shim.reaper.end(exec_pid, 9)
    assert [entry.pid for entry in shim.on_record()] == [pid, exec_pid]
    assert shim.told()[-2:] == ["exit e1", "exit c1"]


def test_the_journal_keeps_what_is_not_deleted(shim: Shim) -> None:
    pid = shim.create()
    shim.start()
    for exec_id in ("e1", "e2"):
        shim.add_exec(exec_id)
        shim.reaper.end(shim.start(exec_id=exec_id), 0)
    shim.delete(exec_id="e1")
    assert [entry.exec_id for entry in shim.pod.journal.undeleted()] == ["e2"]
    shim.reaper.end(pid, 0)
    assert [entry.exec_id for entry in shim.pod.journal.undeleted()] == ["", "e2"]
    shim.delete()
    assert list(shim.pod.journal.undeleted()) == []


def test_the_last_counters_of_a_container_are_read_before_its_cgroup_goes(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = [types.Any("metrics", b"while it runs"), types.Any("metrics", b"the last")]
    monkeypatch.setattr(stats, "read", lambda _cgroup: counted.pop(0))
    pid = shim.create()
    shim.start()
    assert shim.ask("Stats", task.StatsRequest("c1")).stats.value == b"while it runs"
    shim.reaper.end(pid, 9)
    for _ in range(2):
        assert shim.ask("Stats", task.StatsRequest("c1")).stats.value == b"the last"


def test_an_ended_container_has_a_process_until_it_is_deleted(shim: Shim) -> None:
    """containerd 2.x, when it starts, forgets a task that has none, and with it how it ended."""
    pid = shim.create()
    shim.start()
    found: list[int] = []
    shim.pod.find("c1").runtime.cgroup.pids = lambda: found  # type: ignore[method-assign]
    assert shim.ask("Pids", task.PidsRequest("c1")).processes == []
    shim.reaper.end(pid, 9)
    assert [each.pid for each in shim.ask("Pids", task.PidsRequest("c1")).processes] == [pid]


def test_a_container_that_is_never_started_can_be_deleted(shim: Shim) -> None:
    shim.create()
    answer = shim.delete()
    assert answer.exit_status == 137
    assert shim.told() == ["create", "exit c1", "delete"]
    with pytest.raises(RpcError) as failure:
        shim.status()
    assert failure.value.code == status.NOT_FOUND


def test_inits_exit_is_the_last_of_its_container(shim: Shim) -> None:
    pid = shim.create(linux=PRIVATE_PID)
    shim.start()
    shim.add_exec()
    exec_pid = shim.start(exec_id="e1")
    shim.reaper.end(pid, 9)
    settle(shim.loop)
    assert shim.told()[-1] == "execstarted"
    shim.reaper.end(exec_pid, 9)
    assert shim.told()[-2:] == ["exit e1", "exit c1"]


def test_an_exec_that_cannot_be_killed_does_not_hold_inits_exit_for_ever(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "LAST_EXITS_TIMEOUT_S", 0.05)
    pid = shim.create(linux=PRIVATE_PID)
    shim.start()
    shim.add_exec()
    exec_pid = shim.start(exec_id="e1")
    shim.reaper.end(pid, 9)
    turn_until(shim.loop, lambda: shim.told()[-1] == "exit c1")
    shim.reaper.end(exec_pid, 9)
    assert shim.told().count("exit c1") == 1


def test_no_exec_can_be_started_while_inits_exit_is_held_back(shim: Shim) -> None:
    pid = shim.create(linux=PRIVATE_PID)
    shim.start()
    for exec_id in ("e1", "e2"):
        shim.add_exec(exec_id)
    shim.start(exec_id="e1")
    shim.reaper.end(pid, 9)
    with pytest.raises(RpcError, match="init process is not running"):
        shim.start(exec_id="e2")


@pytest.mark.parametrize(
    ("namespaces", "killed"),
    [([{"type": "pid"}], []), ([{"type": "pid", "path": "/proc/1/ns/pid"}], [9]), ([{"type": "ipc"}], [9])],
)
def test_without_a_pid_namespace_of_its_own_all_of_a_container_is_killed_with_its_init(
    shim: Shim, namespaces: list[dict[str, str]], killed: list[int]
) -> None:
    pid = shim.create(linux={"namespaces": namespaces})
    shim.start()
    cgroup = shim.pod.find("c1").runtime.cgroup
    shim.reaper.end(pid)
    assert cgroup.signals == killed  # type: ignore[attr-defined]


def test_what_is_left_of_a_paused_container_is_killed_and_thawed_when_its_init_ends(shim: Shim) -> None:
    pid = shim.create(linux=PRIVATE_PID)
    shim.start()
    shim.ask("Pause", task.PauseRequest("c1"))
    cgroup = shim.pod.find("c1").runtime.cgroup
    shim.reaper.end(pid, 9)
    assert cgroup.signals == [9, 0]  # type: ignore[attr-defined]


def test_inits_exit_is_told_though_what_it_left_cannot_be_killed(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_number: int) -> None:
        raise CgroupError("write cgroup.kill: no such device")

    logged: list[str] = []
    log = SimpleNamespace(write=lambda _level, text: logged.append(text))
    monkeypatch.setattr(shim.pod, "log", log)
    pid = shim.create()
    shim.start()
    monkeypatch.setattr(shim.pod.find("c1").runtime.cgroup, "signal_all", refuse)
    shim.reaper.end(pid, 3 << 8)
    assert shim.told()[-1] == "exit c1"
    assert "kill what is left of container c1: write cgroup.kill: no such device" in logged
    assert shim.delete().exit_status == 3


def test_of_two_who_delete_a_container_one_does_and_the_other_is_told_that_it_has_gone(shim: Shim) -> None:
    pid = shim.create()
    shim.start()
    shim.reaper.end(pid)
    first, second = (shim.begin("Delete", task.DeleteRequest("c1")) for _ in range(2))
    turn_until(shim.loop, lambda: first and second)
    assert first == [task.DeleteResponse(pid, 0, first[0].exited_at)]
    assert isinstance(second[0], RpcError)
    assert shim.told().count("delete") == 1
    assert shim.runtime.asked.count("delete") == 1
