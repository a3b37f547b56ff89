"""A container's life as containerd sees it: events in order, exits that come early or late, refusals.

The runtime is a stand-in that records what it is asked; processes are numbers whose exits the tests make.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime import state
from runtime.container import Terms
from runtime.errors import InvalidState, NotFound, StageError
from runtime.linux.fds import OwnedFd
from runtime.operations.apart import ApartRequest, read_config
from runtime.spec.load import load_spec
from runtime.waiting import Sleep
from shim import container as containers
from shim import journal, stats
from shim.api import task, types
from shim.api.events import TaskExit
from shim.api.message import Message
from shim.exits import Hold
from shim.journal import Exit, Journal
from shim.log import Log
from shim.loop import Loop
from shim.pod import Pod
from shim.stdio import PipeIo
from shim.task_service import TaskService
from shim.tasks import Outcome, spawn
from shim.ttrpc import status
from shim.ttrpc.connection import Call
from shim.ttrpc.status import RpcError
from tests.unit.shim.loops import drive, settle, turn_until

CALL = Call(1, "", "", b"")
PROCESS = {"args": ["/bin/sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}}


class Reaper:
    """The reaper's promises, without processes: `end` makes one end."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._watches: dict[int, list[Callable[[int, int], None]]] = {}
        self._holds = 0
        self._kept: dict[int, int] = {}

    def hold(self) -> Hold:
        self._holds += 1
        return Hold(self)  # type: ignore[arg-type]

    def end_hold(self) -> None:
        self._holds -= 1
        if not self._holds:
            self._kept.clear()

    def watch(self, pid: int, ended: Callable[[int, int], None]) -> SimpleNamespace:
        if pid in self._kept:
            self._loop.call_soon(ended, self._kept[pid], 1_000_000_000)
            return SimpleNamespace(cancel=lambda: None)
        self._watches.setdefault(pid, []).append(ended)
        return SimpleNamespace(cancel=lambda: self._watches[pid].remove(ended))

    def end(self, pid: int, wait_status: int = 0) -> None:
        if self._holds:
            self._kept[pid] = wait_status
        for ended in self._watches.pop(pid, []):
            ended(wait_status, 1_000_000_000)


class Cgroup:
    def __init__(self) -> None:
        self.signals: list[int] = []
        self.paths: dict[str, str] = {}

    def signal_all(self, number: int) -> None:
        self.signals.append(number)

    def thaw(self) -> None:
        self.signals.append(0)


class Runtime:
    """operations.*: each step can be made to fail, to take time, or to have its process end meanwhile."""

    def __init__(self, reaper: Reaper) -> None:
        self.reaper = reaper
        self.failing: dict[str, Exception] = {}
        self.ending: dict[str, int] = {}
        self.asked: list[str] = []
        self.next_pid = 100
        self.pidfd: OwnedFd | None = None

    ApartRequest = ApartRequest

    def _step(self, name: str) -> Generator[Any, Any, int]:
        self.asked.append(name)
        pid = self.next_pid
        yield Sleep(0.001)
        if name in self.failing:
            raise self.failing[name]
        return pid

    def create_apart(self, _host: object, request: Any) -> Generator[Any, Any, SimpleNamespace]:
        spec = load_spec(read_config(request.bundle))
        pid = yield from self._step("create")
        self.next_pid += 1
        is_first = any(each.type == "pid" and not each.path for each in spec.linux.namespaces)
        terms = Terms(namespaces=0, init_is_first=is_first)
        made = SimpleNamespace(
            id=request.id,
            bundle=request.bundle,
            terms=terms,
            pid=pid,
            cgroup=Cgroup(),
            console=None,
            start_time=7,
        )
        made.pidfd = self.pidfd
        made.status, made.marks, made.warnings = state.CREATED, (("clone", 1),), ()

        def require(operation: str, *allowed: str) -> None:
            if made.status not in allowed:
                raise InvalidState(f"cannot {operation} container {made.id} in {made.status} state")

        def ended() -> None:
            made.status = state.STOPPED

        made.require, made.ended = require, ended
        return made

    def start(self, made: SimpleNamespace) -> Generator[Any, Any, None]:
        made.status = state.RUNNING
        if "start" in self.ending:
            self.reaper.end(made.pid, self.ending["start"])
        yield from self._step("start")
        made.marks += (("execve", 2),)

    def exec_(self, made: SimpleNamespace, _request: Any) -> Generator[Any, Any, SimpleNamespace]:
        made.require("exec in", state.RUNNING)
        pid = yield from self._step("exec")
        self.next_pid += 1
        if "exec" in self.ending:
            self.reaper.end(pid, self.ending["exec"])
        return SimpleNamespace(
            pid=pid, pidfd=self.pidfd, console=None, marks=(("clone", 1),), warnings=(), start_time=8
        )

    def kill(self, made: SimpleNamespace, number: int, everyone: bool) -> None:
        self.asked.append(f"kill {number} {everyone}")
        if made.status == state.STOPPED:
            raise NotFound("process already finished")

    def pause(self, made: SimpleNamespace) -> Generator[Any, Any, None]:
        made.require("pause", state.CREATED, state.RUNNING)
        yield from self._step("pause")
        made.status = state.PAUSED

    def resume(self, made: SimpleNamespace) -> None:
        made.require("resume", state.PAUSED)
        made.status = state.RUNNING

    def delete(self, made: SimpleNamespace) -> Generator[Any, Any, None]:
        made.require("delete", state.STOPPED, state.CREATED)
        yield from self._step("delete")
        if made.status == state.CREATED:
            self.reaper.end(made.pid, 9)

    def update(self, _made: SimpleNamespace, resources: Any) -> Iterator[Any]:
        self.asked.append(f"update {resources.pids.limit}")
        yield from ()


class Shim:
    """A pod with its service, and everything it told containerd."""

    def __init__(self, loop: Loop, directory: Path, runtime: Runtime, reaper: Reaper) -> None:
        self.loop = loop
        self.directory = directory
        self.runtime = runtime
        self.reaper = reaper
        self.events: list[Message] = []
        self.spans: list[tuple[str, str]] = []
        self.shutdowns = 0
        layout = SimpleNamespace(find=lambda _controller: None)
        self.pod = Pod(
            loop,
            reaper,  # type: ignore[arg-type]
            SimpleNamespace(publish=self.events.append),  # type: ignore[arg-type]
            SimpleNamespace(layout=layout),  # type: ignore[arg-type]
            Log("", "test"),
            lambda name, parent, _marks, _attributes: self.spans.append((name, parent)),
            self._shutdown,
            Journal(str(directory), Log("", "test")),
        )
        self.service = TaskService(self.pod)

    def _shutdown(self) -> None:
        self.shutdowns += 1

    def on_record(self) -> list[Exit]:
        """What the exit journal holds."""
        return journal.read(str(self.directory))

    def told(self) -> list[str]:
        """The events so far: kind, and for exits whose."""
        return [
            f"exit {event.id}"
            if isinstance(event, TaskExit)
            else type(event).__name__.removeprefix("Task").lower()
            for event in self.events
        ]

    def begin(self, method: str, request: Message, call: Call = CALL) -> list[Any]:
        """Call; the answer or the failure is in the list once it is there."""
        answers: list[Any] = []
        try:
            answer = self.service.methods()[method].handler(request, call)
        except Exception as failure:
            return [failure]
        if isinstance(answer, Message):
            return [answer]
        spawn(self.loop, answer, lambda value, failure: answers.append(failure or value))
        return answers

    def ask(self, method: str, request: Message, call: Call = CALL) -> Any:
        answers = self.begin(method, request, call)
        turn_until(self.loop, lambda: answers)
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    def create(self, container_id: str = "c1", linux: object = None) -> int:
        bundle = self.directory / container_id
        bundle.mkdir(exist_ok=True)
        config = {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": PROCESS, "linux": linux or {}}
        (bundle / "config.json").write_text(json.dumps(config))
        request = task.CreateTaskRequest(id=container_id, bundle=str(bundle))
        pid: int = self.ask("Create", request).pid
        return pid

    def start(self, container_id: str = "c1", exec_id: str = "") -> int:
        pid: int = self.ask("Start", task.StartRequest(container_id, exec_id)).pid
        return pid

    def add_exec(self, exec_id: str = "e1", container_id: str = "c1") -> None:
        spec = types.Any("process", json.dumps(PROCESS).encode())
        self.ask("Exec", task.ExecProcessRequest(id=container_id, exec_id=exec_id, spec=spec))

    def delete(self, container_id: str = "c1", exec_id: str = "") -> task.DeleteResponse:
        answer: task.DeleteResponse = self.ask("Delete", task.DeleteRequest(container_id, exec_id))
        return answer

    def status(self, exec_id: str = "", container_id: str = "c1") -> int:
        answer: task.StateResponse = self.ask("State", task.StateRequest(container_id, exec_id))
        return answer.status


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def shim(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shim:
    reaper = Reaper(loop)
    runtime = Runtime(reaper)
    monkeypatch.setattr(containers, "operations", runtime)
    return Shim(loop, tmp_path, runtime, reaper)


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


def test_a_create_that_fails_leaves_the_id_free_and_says_nothing(shim: Shim) -> None:
    shim.runtime.failing["create"] = StageError("2:INIT", "mount", "/x", "no such file")
    with pytest.raises(StageError):
        shim.create()
    assert shim.told() == []
    assert len(shim.pod) == 0
    shim.runtime.failing.clear()
    shim.create()


def test_an_id_is_taken_while_its_container_is_being_created(shim: Shim) -> None:
    first = shim.begin("Create", task.CreateTaskRequest(id="c1", bundle=str(shim.directory)))
    shim.create("other")
    (shim.directory / "c1").mkdir()
    bundle = shim.directory / "other"
    slow = shim.begin("Create", task.CreateTaskRequest(id="c2", bundle=str(bundle)))
    with pytest.raises(RpcError) as failure:
        shim.ask("Create", task.CreateTaskRequest(id="c2", bundle=str(bundle)))
    assert failure.value.code == status.ALREADY_EXISTS
    with pytest.raises(RpcError) as failure:
        shim.ask("State", task.StateRequest("c2"))
    assert failure.value.code == status.NOT_FOUND
    turn_until(shim.loop, lambda: slow)
    assert "config.json" in str(first[0])


def test_a_start_that_fails_waits_for_its_init_to_end(shim: Shim) -> None:
    pid = shim.create()
    shim.runtime.failing["start"] = StageError("2:INIT", "execute", "/nope", "no such file")
    answers = shim.begin("Start", task.StartRequest("c1"))
    settle(shim.loop, 0.02)
    assert not answers
    shim.reaper.end(pid, 1 << 8)
    turn_until(shim.loop, lambda: answers)
    assert isinstance(answers[0], StageError)
    assert shim.told() == ["create", "exit c1"]
    shim.delete()


def test_an_exec_that_cannot_be_started_has_no_exit_but_whoever_waits_is_told(shim: Shim) -> None:
    shim.create()
    shim.start()
    shim.add_exec()
    waiting = shim.begin("Wait", task.WaitRequest("c1", "e1"))
    shim.runtime.failing["exec"] = StageError("2:INIT", "look up", "nope", "not found in $PATH")
    with pytest.raises(StageError):
        shim.start(exec_id="e1")
    turn_until(shim.loop, lambda: waiting)
    assert waiting[0].exit_status == 255
    assert shim.told() == ["create", "start", "execadded"]
    shim.delete(exec_id="e1")
    with pytest.raises(RpcError):
        shim.status("e1")


@pytest.mark.parametrize("exec_id", ["", "e1"])
def test_nothing_is_started_twice(shim: Shim, exec_id: str) -> None:
    shim.create()
    if exec_id:
        shim.start()
        shim.add_exec()
    answers = [shim.begin("Start", task.StartRequest("c1", exec_id)) for _ in range(2)]
    turn_until(shim.loop, lambda: all(answers))
    assert isinstance(answers[0][0], task.StartResponse)
    assert isinstance(answers[1][0], RpcError)


def test_a_running_process_is_not_deleted(shim: Shim) -> None:
    shim.create()
    shim.start()
    with pytest.raises(RpcError, match="cannot delete a running process") as failure:
        shim.delete()
    assert failure.value.code == status.FAILED_PRECONDITION


def test_signals_are_for_processes_that_run(shim: Shim) -> None:
    pid = shim.create()
    shim.start()
    shim.add_exec()
    with pytest.raises(RpcError) as failure:
        shim.ask("Kill", task.KillRequest("c1", "e1", 15))
    assert failure.value.code == status.FAILED_PRECONDITION
    exec_pid = shim.start(exec_id="e1")
    shim.reaper.end(exec_pid)
    with pytest.raises(RpcError, match="process already finished") as failure:
        shim.ask("Kill", task.KillRequest("c1", "e1", 15))
    assert failure.value.code == status.NOT_FOUND
    shim.ask("Kill", task.KillRequest("c1", "", 15, True))
    assert "kill 15 True" in shim.runtime.asked
    shim.reaper.end(pid)
    with pytest.raises(NotFound, match="process already finished"):
        shim.ask("Kill", task.KillRequest("c1", "", 15))


def test_pausing_is_seen_in_the_state_of_every_process(shim: Shim) -> None:
    shim.create()
    shim.start()
    shim.add_exec()
    shim.start(exec_id="e1")
    pausing = shim.begin("Pause", task.PauseRequest("c1"))
    assert (shim.status(), shim.status("e1")) == (types.STATUS_PAUSING, types.STATUS_PAUSING)
    turn_until(shim.loop, lambda: pausing)
    assert (shim.status(), shim.status("e1")) == (types.STATUS_PAUSED, types.STATUS_PAUSED)
    with pytest.raises(InvalidState, match="paused"):
        shim.add_exec("e2")
    shim.ask("Resume", task.ResumeRequest("c1"))
    assert shim.status() == types.STATUS_RUNNING
    assert shim.told()[-2:] == ["paused", "resumed"]


def test_a_container_that_is_not_started_is_not_paused(shim: Shim) -> None:
    """As containerd has it; the runtime itself would do it."""
    shim.create()
    with pytest.raises(InvalidState, match="cannot pause container c1 in created state"):
        shim.ask("Pause", task.PauseRequest("c1"))
    assert shim.status() == types.STATUS_CREATED


def test_a_pause_that_fails_leaves_a_running_container(shim: Shim) -> None:
    shim.create()
    shim.start()
    shim.runtime.failing["pause"] = TimeoutError("not frozen")
    with pytest.raises(TimeoutError):
        shim.ask("Pause", task.PauseRequest("c1"))
    assert shim.status() == types.STATUS_RUNNING


def test_ids_that_are_taken_bad_or_unknown_are_told_apart(shim: Shim) -> None:
    shim.create()
    shim.start()
    shim.add_exec()
    with pytest.raises(RpcError) as failure:
        shim.add_exec()
    assert failure.value.code == status.ALREADY_EXISTS
    with pytest.raises(Exception, match="invalid id"):
        shim.add_exec("../e")
    with pytest.raises(RpcError) as failure:
        shim.start(exec_id="e9")
    assert failure.value.code == status.NOT_FOUND


def test_deleting_a_container_forgets_its_execs_and_frees_the_id(shim: Shim) -> None:
    pid = shim.create()
    shim.start()
    shim.add_exec()
    shim.reaper.end(pid)
    shim.delete()
    shim.create()
    assert shim.pod.find("c1").execs == {}


@pytest.mark.parametrize("pending", [False, True])
def test_deleting_waits_longer_for_a_client_that_reads_slowly_than_for_a_writer_that_lingers(
    shim: Shim, monkeypatch: pytest.MonkeyPatch, pending: bool
) -> None:
    monkeypatch.setattr(containers, "QUIET_TIMEOUT_S", 0.02)
    monkeypatch.setattr(containers, "DRAIN_TIMEOUT_S", 0.2)
    pid = shim.create()
    shim.start()
    shim.reaper.end(pid)
    io = shim.pod.find("c1").init.io
    assert io is not None
    io.drained = Outcome()
    io.pending = lambda: pending  # type: ignore[method-assign]
    deleting = shim.begin("Delete", task.DeleteRequest("c1"))
    settle(shim.loop, 0.1)
    assert bool(deleting) is not pending
    turn_until(shim.loop, lambda: deleting)
    assert isinstance(deleting[0], task.DeleteResponse)


def test_wait_answers_everybody_before_and_after_the_end(shim: Shim) -> None:
    pid = shim.create()
    shim.start()
    before = [shim.begin("Wait", task.WaitRequest("c1")) for _ in range(3)]
    settle(shim.loop, 0.01)
    assert not any(before)
    shim.reaper.end(pid, 15)
    turn_until(shim.loop, lambda: all(before))
    assert {answer[0].exit_status for answer in before} == {143}
    assert shim.ask("Wait", task.WaitRequest("c1")).exit_status == 143


def test_pids_tell_which_processes_are_execs(shim: Shim) -> None:
    pid = shim.create()
    shim.start()
    shim.add_exec()
    exec_pid = shim.start(exec_id="e1")
    cgroup = shim.pod.find("c1").runtime.cgroup
    cgroup.pids = lambda: [pid, exec_pid, 999]  # type: ignore[method-assign]
    processes = shim.ask("Pids", task.PidsRequest("c1")).processes
    assert [process.pid for process in processes] == [pid, exec_pid, 999]
    assert [process.info is not None for process in processes] == [False, True, False]


def test_an_update_reads_oci_resources(shim: Shim) -> None:
    shim.create()
    resources = types.Any("resources", b'{"pids":{"limit":7}}')
    shim.ask("Update", task.UpdateTaskRequest("c1", resources))
    assert "update 7" in shim.runtime.asked


def test_a_shim_with_containers_does_not_end(shim: Shim) -> None:
    pid = shim.create()
    shim.ask("Shutdown", task.ShutdownRequest("c1"))
    assert shim.shutdowns == 0
    shim.start()
    shim.reaper.end(pid)
    shim.delete()
    shim.ask("Shutdown", task.ShutdownRequest("c1"))
    assert shim.shutdowns == 1


def test_connect_answers_for_containers_that_are_not_there(shim: Shim) -> None:
    assert shim.ask("Connect", task.ConnectRequest("other")).task_pid == 0
    pid = shim.create()
    assert shim.ask("Connect", task.ConnectRequest("c1")).task_pid == pid


def test_checkpoints_are_not_offered(shim: Shim) -> None:
    shim.create()
    with pytest.raises(RpcError) as failure:
        shim.ask("Checkpoint", task.CheckpointTaskRequest("c1"))
    assert failure.value.code == status.UNIMPLEMENTED


def test_a_start_is_traced_under_its_callers_span(shim: Shim) -> None:
    shim.create()
    call = Call(1, "", "", b"", metadata=(("traceparent", "00-aa-bb-01"),))
    shim.ask("Start", task.StartRequest("c1"), call)
    shim.add_exec()
    shim.start(exec_id="e1")
    assert shim.spans == [("create", ""), ("start", "00-aa-bb-01"), ("exec", "")]


def test_a_signal_waits_for_a_start_that_is_under_way(shim: Shim) -> None:
    shim.create()
    starting = shim.begin("Start", task.StartRequest("c1"))
    shim.ask("Kill", task.KillRequest("c1", "", 15))
    assert starting
    assert shim.runtime.asked[-2:] == ["start", "kill 15 False"]


@pytest.mark.parametrize("everyone", [False, True])
def test_sigkill_waits_for_no_start(shim: Shim, everyone: bool) -> None:
    shim.create()
    starting = shim.begin("Start", task.StartRequest("c1"))
    answers = shim.begin("Kill", task.KillRequest("c1", "", 9, everyone))
    assert [type(answer) for answer in answers] == [types.Empty]
    assert not starting
    assert shim.runtime.asked[-1] == f"kill 9 {everyone}"


def test_sigkill_for_an_exec_in_its_stages_is_refused_at_once(shim: Shim) -> None:
    shim.create()
    shim.start()
    shim.add_exec()
    starting = shim.begin("Start", task.StartRequest("c1", "e1"))
    (failure,) = shim.begin("Kill", task.KillRequest("c1", "e1", 9))
    assert isinstance(failure, RpcError)
    assert failure.code == status.FAILED_PRECONDITION
    assert not starting


def test_a_container_that_is_killed_while_it_is_being_paused_is_not_left_frozen(shim: Shim) -> None:
    shim.create()
    shim.start()
    pausing = shim.begin("Pause", task.PauseRequest("c1"))
    shim.ask("Kill", task.KillRequest("c1", "", 9))
    turn_until(shim.loop, lambda: pausing)
    assert isinstance(pausing[0], RpcError)
    assert shim.status() == types.STATUS_RUNNING
    assert "paused" not in shim.told()


@pytest.mark.parametrize("exec_id", ["", "e1"])
def test_a_process_whose_streams_cannot_be_attached_is_killed_and_reaped(
    shim: Shim, monkeypatch: pytest.MonkeyPatch, exec_id: str
) -> None:
    if exec_id:
        shim.create()
        shim.start()
        shim.add_exec()

    def refuse(_io: PipeIo, _console: object) -> None:
        raise PermissionError(1, "epoll_ctl")

    monkeypatch.setattr(PipeIo, "attach", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with subprocess.Popen(["sleep", "60"]) as victim:
        try:
            shim.runtime.next_pid = victim.pid
            shim.runtime.pidfd = OwnedFd(os.pidfd_open(victim.pid))
            with pytest.raises(PermissionError):
                _start_and_reap(shim, exec_id, victim)
            assert victim.returncode == -9
        finally:
            victim.kill()
    shim.runtime.pidfd.close()
    assert len(os.listdir("/proc/self/fd")) == before
    if exec_id:
        assert shim.status(exec_id=exec_id) == types.STATUS_STOPPED
        shim.delete(exec_id=exec_id)
    else:
        assert shim.runtime.asked == ["create", "delete"]
        assert shim.told() == []
        assert len(shim.pod) == 0


def _start_and_reap(shim: Shim, exec_id: str, victim: subprocess.Popen[bytes]) -> None:
    def reap() -> None:
        if victim.poll() is None:
            shim.loop.call_later(0.01, reap)
        else:
            shim.reaper.end(victim.pid, 9)

    shim.loop.call_later(0.01, reap)
    if exec_id:
        shim.start(exec_id=exec_id)
    else:
        shim.create()


def test_drive_is_bound_to_its_time(loop: Loop) -> None:
    def forever() -> Generator[Any, Any, None]:
        yield Sleep(60)

    with pytest.raises(AssertionError):
        drive(loop, forever(), 0.05)
