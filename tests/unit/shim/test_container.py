"""A container's life as containerd sees it: events in order, exits that come early or late, refusals.

The runtime is a stand-in that records what it is asked; processes are numbers whose exits the tests make.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Generator
from typing import Any

import pytest

from runtime.errors import ConfigError, InvalidArgument, InvalidId, InvalidState, NotFound, StageError
from runtime.linux.fds import OwnedFd
from runtime.waiting import Sleep
from shim.api import task, types
from shim.loop import Loop
from shim.tasks import Outcome
from shim.ttrpc import status
from shim.ttrpc.connection import Call
from shim.ttrpc.status import RpcError
from tests.unit.shim.fake_container import Shim
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


def test_drive_is_bound_to_its_time(loop: Loop) -> None:
    def forever() -> Generator[Any, Any, None]:
        yield Sleep(60)

    with pytest.raises(AssertionError):
        drive(loop, forever(), 0.05)
