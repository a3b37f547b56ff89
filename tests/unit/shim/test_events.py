"""Publishing to containerd: order, and a containerd that refuses, hangs, or comes and goes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from shim import backlog, events
from shim.api.codec import decode, encode
from shim.api.events import ForwardRequest, TaskExit, TaskOOM, TaskStart
from shim.api.ttrpc import Status
from shim.api.types import Empty, unpack
from shim.events import Publisher
from shim.log import Log
from shim.loop import EPOLLIN, Loop
from shim.tasks import Outcome
from shim.ttrpc import status
from shim.ttrpc.connection import NAMESPACE, Call, ServerConnection
from tests.harness.processes import descriptors
from tests.unit.shim.log_io import Heard
from tests.unit.shim.loops import drive, settle, turn_until
from tests.unit.shim.stdio_peer import interrupted_after


class Containerd:
    """The events service on the same loop; `behave` answers a call, "" for not at all."""

    def __init__(self, loop: Loop, path: str) -> None:
        self.loop = loop
        self.path = path
        self.calls: list[Call] = []
        self.behaviour = ["ok"]
        self.peers: list[socket.socket] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        loop.watch(self.listener.fileno(), EPOLLIN, lambda _events: self._accept())

    def _accept(self) -> None:
        peer, _address = self.listener.accept()
        protocol = ServerConnection()
        self.peers.append(peer)

        def receive(_events: int) -> None:
            data = peer.recv(65536)
            if not data:
                self.loop.unwatch(peer.fileno())
                peer.close()
                return
            for call in protocol.receive(data):
                assert isinstance(call, Call)
                self.calls.append(call)
                behaviour = self.behaviour.pop(0) if len(self.behaviour) > 1 else self.behaviour[0]
                if behaviour == "ok":
                    peer.sendall(protocol.respond(call.stream_id, encode(Empty())))
                elif behaviour == "hang up":
                    self.loop.unwatch(peer.fileno())
                    peer.close()
                    return
                elif behaviour == "refuse":
                    peer.sendall(protocol.fail(call.stream_id, Status(status.INVALID_ARGUMENT, "not this")))

        self.loop.watch(peer.fileno(), EPOLLIN, receive)

    def taken(self) -> list[int]:
        """The pids of the exit events that came, in order."""
        found = []
        for call in self.calls:
            envelope = decode(ForwardRequest, call.payload).envelope
            assert envelope is not None
            assert envelope.event is not None
            found.append(unpack(envelope.event, TaskExit).pid)
        return found

    def stop(self) -> None:
        for each in (self.listener, *self.peers):
            if each.fileno() >= 0:
                self.loop.unwatch(each.fileno())
                each.close()
        os.unlink(self.path)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "ttrpc")


def publisher(loop: Loop, address: str) -> Publisher:
    return Publisher(loop, address, "k8s.io", Log("", "test"))


def test_an_event_says_what_when_and_whose(loop: Loop, path: str) -> None:
    daemon = Containerd(loop, path)
    made = publisher(loop, path)
    made.publish(TaskStart("c1", 42))
    drive_sent(loop, made)
    (call,) = daemon.calls
    assert (call.service, call.method) == ("containerd.services.events.ttrpc.v1.Events", "Forward")
    assert call.header(NAMESPACE) == "k8s.io"
    envelope = decode(ForwardRequest, call.payload).envelope
    assert envelope is not None
    assert envelope.event is not None
    assert envelope.timestamp is not None
    assert (envelope.topic, envelope.namespace) == ("/tasks/start", "k8s.io")
    assert envelope.event.type_url == "containerd.events.TaskStart"
    assert unpack(envelope.event, TaskStart).pid == 42
    assert envelope.timestamp.seconds > 1_700_000_000
    made.close()
    daemon.stop()


def drive_sent(loop: Loop, made: Publisher) -> None:
    turn_until(loop, lambda: made.sent().done)


def exits(made: Publisher, *pids: int) -> None:
    for pid in pids:
        made.publish(TaskExit("c1", "c1", pid))


def test_events_arrive_in_order_one_at_a_time(loop: Loop, path: str) -> None:
    daemon = Containerd(loop, path)
    made = publisher(loop, path)
    exits(made, *range(1, 51))
    drive_sent(loop, made)
    assert daemon.taken() == list(range(1, 51))
    assert len(daemon.peers) == 1
    made.close()
    daemon.stop()


def test_events_wait_while_something_is_started_but_not_for_long(loop: Loop, path: str) -> None:
    daemon = Containerd(loop, path)
    busy = [True]
    made = Publisher(loop, path, "k8s.io", Log("", "test"), lambda: busy[0])
    exits(made, 1)
    settle(loop, events.COURTESY_S * 3)
    assert daemon.taken() == []
    busy[0] = False
    turn_until(loop, daemon.taken)
    assert daemon.taken() == [1]
    busy[0] = True
    exits(made, 2)
    drive_sent(loop, made)
    assert daemon.taken() == [1, 2]
    made.close()
    daemon.stop()


def test_events_of_the_time_without_containerd_arrive_after_it(loop: Loop, path: str) -> None:
    made = publisher(loop, path)
    exits(made, 1, 2)
    settle(loop, 0.1)
    assert not made.sent().done
    daemon = Containerd(loop, path)
    drive_sent(loop, made)
    daemon.stop()
    exits(made, 3)
    settle(loop, 0.05)
    again = Containerd(loop, path)
    drive_sent(loop, made)
    assert (daemon.taken(), again.taken()) == ([1, 2], [3])
    made.close()
    again.stop()


def test_a_containerd_that_does_not_answer_is_asked_again(
    loop: Loop, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "ANSWER_TIMEOUT_S", 0.05)
    daemon = Containerd(loop, path)
    daemon.behaviour = ["hang", "ok"]
    made = publisher(loop, path)
    exits(made, 1, 2)
    drive_sent(loop, made)
    assert daemon.taken() == [1, 1, 2]
    made.close()
    daemon.stop()


def test_a_containerd_that_hangs_up_instead_of_answering_is_asked_again(loop: Loop, path: str) -> None:
    daemon = Containerd(loop, path)
    daemon.behaviour = ["hang up", "ok"]
    made = publisher(loop, path)
    exits(made, 1, 2)
    drive_sent(loop, made)
    assert daemon.taken() == [1, 1, 2]
    made.close()
    daemon.stop()


def test_a_containerd_that_accepts_nobody_does_not_stop_the_loop(loop: Loop, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as before_us:
        listener.bind(path)
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = before_us.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(path)
        made = publisher(loop, path)
        exits(made, 1)
        with interrupted_after(30):
            settle(loop, 0.1)
        assert not made.sent().done
        made.close()


def test_an_event_that_is_refused_every_time_does_not_hold_up_the_next(
    loop: Loop, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "FIRST_DELAY_S", 0.001)
    daemon = Containerd(loop, path)
    daemon.behaviour = ["refuse"] * events.MAX_REFUSALS + ["ok"]
    made = publisher(loop, path)
    exits(made, 1, 2)
    drive_sent(loop, made)
    assert daemon.taken() == [1] * events.MAX_REFUSALS + [2]
    made.close()
    daemon.stop()


def test_the_queue_is_bounded_and_the_oldest_go_first(
    loop: Loop, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(events, "MAX_QUEUED", 3)
    log = tmp_path / "log"
    log.touch()
    made = Publisher(loop, path, "k8s.io", Log(str(log), "test"))
    exits(made, *range(1, 11))
    daemon = Containerd(loop, path)
    drive_sent(loop, made)
    assert daemon.taken() == [8, 9, 10]
    assert "7 events were dropped" in log.read_text()
    made.close()
    daemon.stop()


def test_what_is_too_much_for_memory_waits_on_disk_and_comes_in_order(
    loop: Loop, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(events, "MAX_QUEUED", 3)
    monkeypatch.setattr(backlog, "_READ_BYTES", 100)  # one at a time
    (tmp_path / "pod").mkdir()
    made = Publisher(loop, path, "k8s.io", Log("", "test"), directory=str(tmp_path / "pod"))
    exits(made, *range(1, 11))
    assert os.listdir(tmp_path / "pod") == [backlog.FILE]
    daemon = Containerd(loop, path)
    turn_until(loop, lambda: len(daemon.calls) >= 4)
    exits(made, *range(11, 15))
    drive_sent(loop, made)
    assert daemon.taken() == list(range(1, 15))
    assert os.listdir(tmp_path / "pod") == []
    made.close()
    daemon.stop()


def test_a_backlog_that_is_damaged_costs_what_it_had_and_nothing_later(
    loop: Loop, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(events, "MAX_QUEUED", 2)
    pod, heard = tmp_path / "pod", Heard()
    pod.mkdir()
    made = Publisher(loop, path, "k8s.io", heard, directory=str(pod))
    exits(made, 1, 2, 3, 4)
    os.truncate(pod / backlog.FILE, 3)
    daemon = Containerd(loop, path)
    drive_sent(loop, made)
    exits(made, 5)
    drive_sent(loop, made)
    assert daemon.taken() == [1, 2, 5]
    assert [line.partition(":")[0] for line in heard.lines] == ["error 2 events are lost"]
    made.close()
    daemon.stop()


def test_when_it_is_closed_nothing_waits_on_disk_any_more(
    loop: Loop, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(events, "MAX_QUEUED", 2)
    (tmp_path / "pod").mkdir()
    made = Publisher(loop, path, "k8s.io", Log("", "test"), directory=str(tmp_path / "pod"))
    exits(made, 1, 2, 3, 4)
    settle(loop)
    made.close()
    daemon = Containerd(loop, path)
    settle(loop, 0.2)
    assert (daemon.calls, os.listdir(tmp_path / "pod")) == ([], [])
    daemon.stop()


def test_when_even_the_disk_has_no_room_it_is_said(
    loop: Loop, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(events, "MAX_QUEUED", 2)
    monkeypatch.setattr(backlog, "MAX_BYTES", 300)
    log = tmp_path / "log"
    log.touch()
    made = Publisher(loop, path, "k8s.io", Log(str(log), "test"), directory=str(tmp_path))
    exits(made, *range(1, 11))
    assert "some are dropped from now on" in log.read_text()
    daemon = Containerd(loop, path)
    drive_sent(loop, made)
    taken = daemon.taken()
    assert taken == list(range(1, len(taken) + 1))
    assert f"{10 - len(taken)} events were dropped" in log.read_text()
    made.close()
    daemon.stop()


def test_nothing_is_sent_before_what_is_on_record_is_on_disk(loop: Loop, path: str) -> None:
    daemon = Containerd(loop, path)
    on_disk = Outcome()

    def settle_record() -> Generator[Any, Any, None]:
        yield on_disk

    made = Publisher(loop, path, "k8s.io", Log("", "test"), settle=settle_record)
    exits(made, 1, 2)
    settle(loop, 0.1)
    assert daemon.taken() == []
    on_disk.set()
    drive_sent(loop, made)
    assert daemon.taken() == [1, 2]
    made.close()
    daemon.stop()


def test_without_an_address_nobody_is_told(loop: Loop) -> None:
    made = publisher(loop, "")
    made.publish(TaskOOM("c1"))
    assert made.sent().done
    made.close()


def test_closing_in_the_middle_of_a_call_leaves_nothing(loop: Loop, path: str) -> None:
    daemon = Containerd(loop, path)
    daemon.behaviour = ["hang"]
    before = descriptors()
    made = publisher(loop, path)
    exits(made, 1)
    turn_until(loop, lambda: daemon.calls)
    made.close()
    settle(loop)
    assert not descriptors() - before
    daemon.stop()


def test_sent_is_an_outcome_that_a_generator_can_wait_for(loop: Loop, path: str) -> None:
    daemon = Containerd(loop, path)
    made = publisher(loop, path)
    exits(made, 1)

    def wait() -> Generator[Any, Any, None]:
        yield made.sent()

    drive(loop, wait())
    assert daemon.taken() == [1]
    made.close()
    daemon.stop()
