"""A container's life as containerd sees it: events in order, exits that come early or late, refusals.

The runtime is a stand-in that records what it is asked; processes are numbers whose exits the tests make.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ConfigError, InvalidArgument, InvalidId, InvalidState, NotFound, StageError
from runtime.linux.fds import OwnedFd
from runtime.waiting import Sleep
from shim import container as containers
from shim import process
from shim.api import task, types
from shim.api.options import Options
from shim.loop import Loop
from shim.stdio import PipeIo
from shim.tasks import Outcome
from shim.ttrpc import status
from shim.ttrpc.connection import Call
from shim.ttrpc.status import RpcError
from tests.harness.processes import descriptors
from tests.unit.shim.fake_container import PROCESS, Shim
from tests.unit.shim.loops import drive, settle, turn_until

PRIVATE_PID = {"namespaces": [{"type": "pid"}]}


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


def test_the_state_of_a_process_follows_its_life(shim: Shim) -> None:
    pid = shim.create()
    assert shim.status() == types.STATUS_CREATED
    shim.start()
    shim.add_exec()
    assert (shim.status(), shim.status("e1")) == (types.STATUS_RUNNING, types.STATUS_CREATED)
    exec_pid = shim.start(exec_id="e1")
    assert shim.status("e1") == types.STATUS_RUNNING
    shim.reaper.end(exec_pid)
    assert (shim.status(), shim.status("e1")) == (types.STATUS_RUNNING, types.STATUS_STOPPED)
    shim.reaper.end(pid)
    assert shim.status() == types.STATUS_STOPPED


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
    shim.ask("Kill", task.KillRequest("c1", "", 15))
    assert shim.runtime.asked[-1] == "kill 15 False"


def test_a_pause_waits_for_a_start_that_is_under_way(shim: Shim) -> None:
    shim.create()
    starting = shim.begin("Start", task.StartRequest("c1"))
    pausing = shim.begin("Pause", task.PauseRequest("c1"))
    assert shim.runtime.asked[-1] == "start"
    turn_until(shim.loop, lambda: pausing)
    assert isinstance(starting[0], task.StartResponse)
    assert shim.told() == ["create", "start", "paused"]


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
    with pytest.raises(ConfigError, match="the request brings no process"):
        shim.ask("Exec", task.ExecProcessRequest(id="c1", exec_id="e2"))
    with pytest.raises(RpcError) as failure:
        shim.start(exec_id="e9")
    assert failure.value.code == status.NOT_FOUND


def test_what_cannot_be_created_is_refused_before_anything_is_done(shim: Shim) -> None:
    with pytest.raises(InvalidId):
        shim.create("../c")
    bundle = str(shim.directory)
    with pytest.raises(RpcError) as failure:
        shim.ask("Create", task.CreateTaskRequest(id="c1", bundle=bundle, checkpoint="/var/checkpoint"))
    assert failure.value.code == status.UNIMPLEMENTED
    assert (shim.runtime.asked, len(shim.pod)) == ([], 0)


@pytest.mark.parametrize("number", [-1, 0, 65, 1 << 31])
def test_a_signal_that_does_not_exist_is_sent_to_nobody(shim: Shim, number: int) -> None:
    shim.create()
    shim.start()
    shim.add_exec()
    shim.start(exec_id="e1")
    with pytest.raises(InvalidArgument, match=f"signal {number} does not exist"):
        shim.ask("Kill", task.KillRequest("c1", "e1", number))


def test_an_exec_hears_each_signal_until_it_has_ended(shim: Shim) -> None:
    shim.create()
    shim.start()
    shim.add_exec()
    with subprocess.Popen(["sleep", "60"]) as running:
        try:
            shim.runtime.pidfd = OwnedFd(os.pidfd_open(running.pid))
            shim.start(exec_id="e1")
            shim.ask("Kill", task.KillRequest("c1", "e1", signal.SIGTERM))
            assert running.wait(30) == -signal.SIGTERM
            with pytest.raises(RpcError, match="process already finished") as failure:  # and not told yet
                shim.ask("Kill", task.KillRequest("c1", "e1", signal.SIGTERM))
            assert failure.value.code == status.NOT_FOUND
        finally:
            running.kill()
    shim.runtime.pidfd.close()


def test_who_waits_for_an_exec_that_is_deleted_before_its_start_is_told(shim: Shim) -> None:
    shim.create()
    shim.start()
    shim.add_exec()
    waiting = shim.begin("Wait", task.WaitRequest("c1", "e1"))
    shim.delete(exec_id="e1")
    turn_until(shim.loop, lambda: waiting)
    assert shim.told() == ["create", "start", "execadded"]


def test_of_two_who_delete_an_exec_one_does_and_the_other_leaves_its_successor_alone(shim: Shim) -> None:
    shim.create()
    shim.start()
    shim.add_exec()
    shim.reaper.end(shim.start(exec_id="e1"))
    io = shim.pod.find("c1").process("e1").io
    assert io is not None
    io.drained = Outcome()
    first, second = (shim.begin("Delete", task.DeleteRequest("c1", "e1")) for _ in range(2))
    io.drained.set()
    turn_until(shim.loop, lambda: first)
    assert not second
    shim.add_exec()
    turn_until(shim.loop, lambda: second)
    assert isinstance(first[0], task.DeleteResponse)
    assert isinstance(second[0], RpcError)
    assert shim.status("e1") == types.STATUS_CREATED


class Client:
    """Who has a fifo for the output of each process, and reads it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: list[int] = []

    def fifo(self) -> str:
        path = str(self._directory / f"out-{len(self._open)}")
        os.mkfifo(path)
        self._open.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        return path

    def close(self) -> None:
        for number in self._open:
            os.close(number)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """No descriptor is left when it is gone."""
    (tmp_path / "client").mkdir()
    before = descriptors()
    made = Client(tmp_path / "client")
    yield made
    made.close()
    assert not descriptors() - before


def create_for(shim: Shim, client: Client, container_id: str = "c1") -> int:
    """A container whose output goes to the client, and whose streams belong to user 1000."""
    shim.create("other")
    shim.delete("other")
    request = task.CreateTaskRequest(
        id=container_id,
        bundle=str(shim.directory / "other"),
        stdout=client.fifo(),
        options=types.pack(Options(io_uid=1000, io_gid=1001)),
    )
    pid: int = shim.ask("Create", request).pid
    return pid


def add_exec_for(shim: Shim, client: Client, exec_id: str = "e1") -> None:
    spec = types.Any("process", json.dumps(PROCESS).encode())
    request = task.ExecProcessRequest(id="c1", exec_id=exec_id, spec=spec, stdout=client.fifo())
    shim.ask("Exec", request)


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Whom pipes were given to."""
    given: list[tuple[int, int]] = []

    def fchown(number: int, uid: int, gid: int) -> None:
        assert stat.S_ISFIFO(os.fstat(number).st_mode)
        given.append((uid, gid))

    monkeypatch.setattr(os, "fchown", fchown)
    return given


def test_the_pipes_of_a_container_and_its_execs_belong_to_who_must_open_them(
    shim: Shim, client: Client, owners: list[tuple[int, int]]
) -> None:
    """In a user namespace nobody could open root's by /dev/stdout. What is given back shows in `client`."""
    pid = create_for(shim, client)
    assert owners == [(1000, 1001)]
    shim.start()
    add_exec_for(shim, client)
    shim.runtime.pidfd = OwnedFd(os.pidfd_open(os.getpid()))
    exec_pid = shim.start(exec_id="e1")
    assert owners == [(1000, 1001)] * 2
    shim.reaper.end(exec_pid)
    shim.delete(exec_id="e1")
    assert shim.runtime.pidfd.closed
    shim.reaper.end(pid)
    shim.delete()


def test_a_deleted_container_gives_back_what_its_execs_had(
    shim: Shim, client: Client, owners: list[tuple[int, int]]
) -> None:
    pid = create_for(shim, client)
    shim.start()
    add_exec_for(shim, client)
    shim.runtime.pidfd = OwnedFd(os.pidfd_open(os.getpid()))
    shim.reaper.end(shim.start(exec_id="e1"))
    shim.reaper.end(pid)
    shim.delete()
    assert shim.runtime.pidfd.closed


@pytest.mark.parametrize("step", ["create", "exec"])
def test_what_was_opened_for_a_process_that_cannot_be_had_is_closed(
    shim: Shim, client: Client, owners: list[tuple[int, int]], step: str
) -> None:
    pid = create_for(shim, client)
    shim.start()
    add_exec_for(shim, client)
    path = client.fifo()
    before = descriptors()
    shim.runtime.failing[step] = StageError("2:INIT", "mount", "/x", "no such file")
    if step == "exec":
        answers = shim.begin("Start", task.StartRequest("c1", "e1"))
    else:
        bundle = str(shim.directory / "other")
        answers = shim.begin("Create", task.CreateTaskRequest(id="c2", bundle=bundle, stdout=path))
    turn_until(shim.loop, lambda: answers)
    assert isinstance(answers[0], StageError)
    assert not descriptors() - before
    shim.runtime.failing.clear()
    shim.reaper.end(pid)
    shim.delete()


def test_deleting_a_container_forgets_its_execs_and_frees_the_id(shim: Shim) -> None:
    pid = shim.create()
    shim.start()
    shim.add_exec()
    shim.reaper.end(pid)
    shim.delete()
    shim.create()
    assert shim.pod.find("c1").execs == {}


def test_the_pod_tells_when_it_has_no_container_any_more(shim: Shim) -> None:
    assert shim.pod.emptied().done
    shim.runtime.failing["create"] = StageError("2:INIT", "mount", "/x", "no such file")
    with pytest.raises(StageError):
        shim.create()
    assert shim.pod.emptied().done
    shim.runtime.failing.clear()
    shim.create()
    emptied = shim.pod.emptied()
    assert not emptied.done
    shim.delete()
    assert emptied.done


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


@pytest.mark.parametrize("exec_id", ["", "e1"])
def test_deleting_waits_a_moment_for_a_writer_that_lingers(
    shim: Shim, monkeypatch: pytest.MonkeyPatch, exec_id: str
) -> None:
    monkeypatch.setattr(containers, "QUIET_TIMEOUT_S", 60.0)
    pid = shim.create()
    shim.start()
    if exec_id:
        shim.add_exec()
        pid = shim.start(exec_id=exec_id)
    shim.reaper.end(pid)
    io = shim.pod.find("c1").process(exec_id).io
    assert io is not None
    io.drained, io.pending = Outcome(), lambda: False  # type: ignore[method-assign]
    deleting = shim.begin("Delete", task.DeleteRequest("c1", exec_id))
    settle(shim.loop, 0.02)
    assert not deleting
    io.drained.set()
    turn_until(shim.loop, lambda: deleting)
    assert isinstance(deleting[0], task.DeleteResponse)


@pytest.mark.parametrize("method", ["State", "Delete"])
def test_who_waits_for_so_long_only_is_answered_though_the_client_does_not_read(
    shim: Shim, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Else containerd, which waits as long as we would, would never get a container deleted whose reader is gone."""
    for module, name in (
        (containers, "QUIET_TIMEOUT_S"),
        (containers, "DRAIN_TIMEOUT_S"),
        (process, "SETTLE_TIMEOUT_S"),
    ):
        monkeypatch.setattr(module, name, 1000.0)
    pid = shim.create()
    shim.start()
    shim.reaper.end(pid)
    shim.ask("State", task.StateRequest("c1"))
    io = shim.pod.find("c1").init.io
    assert io is not None
    io.drained = Outcome()
    io.pending = io.is_awaited = lambda: True  # type: ignore[method-assign]
    request = {"State": task.StateRequest, "Delete": task.DeleteRequest}[method]("c1")
    assert shim.ask(method, request, Call(1, "", method, b"", timeout_ns=500_000_000)).exit_status == 0


def test_the_state_of_an_ended_init_waits_for_its_client_but_for_who_asks_first(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is containerd's own Start; the next may be about to let go of the streams."""
    monkeypatch.setattr(process, "SETTLE_TIMEOUT_S", 1000.0)
    pid = shim.create()
    shim.start()
    shim.add_exec()
    exec_pid = shim.start(exec_id="e1")
    container = shim.pod.find("c1")
    for io in (container.init.io, container.process("e1").io):
        assert io is not None
        io.drained, io.is_awaited = Outcome(), lambda: True  # type: ignore[method-assign]
    assert [shim.status(), shim.status()] == [types.STATUS_RUNNING] * 2
    shim.reaper.end(exec_pid)
    assert [shim.status("e1"), shim.status("e1")] == [types.STATUS_STOPPED] * 2
    shim.reaper.end(pid)
    asked = shim.begin("State", task.StateRequest("c1"))
    settle(shim.loop, 0.02)
    assert not asked
    assert container.init.io is not None
    container.init.io.drained.set()
    turn_until(shim.loop, lambda: asked)
    container.init.io.drained = Outcome()
    monkeypatch.setattr(process, "SETTLE_TIMEOUT_S", 0.02)  # or a client that never reads
    assert shim.status() == types.STATUS_STOPPED
    container.init.io.is_awaited = lambda: False  # type: ignore[method-assign]
    monkeypatch.setattr(process, "SETTLE_TIMEOUT_S", 1000.0)
    assert shim.status() == types.STATUS_STOPPED


def test_the_state_of_an_init_that_ends_at_once_is_told_to_who_asks_first(
    shim: Shim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SETTLE_TIMEOUT_S", 1000.0)
    pid = shim.create()
    io = shim.pod.find("c1").init.io
    assert io is not None
    io.drained, io.is_awaited = Outcome(), lambda: True  # type: ignore[method-assign]
    assert shim.status() == types.STATUS_CREATED
    shim.start()
    shim.reaper.end(pid)
    assert shim.status() == types.STATUS_STOPPED


@pytest.mark.parametrize("exec_id", ["", "e1"])
def test_the_streams_of_a_process_hear_of_its_end(shim: Shim, exec_id: str) -> None:
    heard: list[str] = []
    pid = shim.create()
    shim.start()
    if exec_id:
        shim.add_exec()
        pid = shim.start(exec_id=exec_id)
    io = shim.pod.find("c1").process(exec_id).io
    assert io is not None
    io.process_ended = lambda: heard.append("ended")  # type: ignore[method-assign]
    shim.reaper.end(pid)
    assert heard == ["ended"]


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
    before = descriptors()
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
    assert not descriptors() - before
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
