"""Streams of a container's processes, as its shim opens, waits for and gives them back; the runtime is a stand-in."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import StageError
from runtime.linux.fds import OwnedFd
from shim import container as containers
from shim import process
from shim.api import task, types
from shim.api.options import Options
from shim.stdio import PipeIo
from shim.tasks import Outcome
from shim.ttrpc.connection import Call
from tests.harness.processes import descriptors
from tests.unit.shim.fake_container import PROCESS, Shim
from tests.unit.shim.loops import settle, turn_until


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
