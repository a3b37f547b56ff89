"""The ttrpc door: a real server on a loop in a thread, a real client, and peers that misbehave."""

from __future__ import annotations

import gc
import os
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import NotFound
from runtime.linux.fds import OwnedFd
from runtime.waiting import Sleep
from shim import callers, open_calls, server
from shim.api.codec import encode
from shim.api.task import WaitRequest, WaitResponse
from shim.api.ttrpc import Request
from shim.errors import failed_precondition
from shim.log import Log
from shim.loop import Loop
from shim.open_calls import Method
from shim.server import Server
from shim.streams import Stream, StreamMethod
from shim.tasks import Cancelled, Outcome
from shim.ttrpc import status
from shim.ttrpc.client import Client
from shim.ttrpc.connection import Answer, Call, ClientConnection, StreamData
from shim.ttrpc.status import RpcError

SERVICE = "test.Service"


class Echo:
    """Says what it hears."""

    def __init__(self, stream: Stream, heard: list[str]) -> None:
        self._stream = stream
        self._heard = heard

    def message(self, payload: bytes) -> None:
        self._heard.append(payload.decode())
        self._stream.send(payload)

    def closed(self) -> None:
        self._heard.append("closed")
        self._stream.end()

    def room(self) -> None:
        pass

    def gone(self) -> None:
        self._heard.append("gone")


class Service:
    """Methods of every kind; `request.id` says what to do."""

    def __init__(self) -> None:
        self.event = Outcome()
        self.ended: list[str] = []
        self.begun = 0
        self.heard: list[str] = []

    def at_once(self, request: WaitRequest, _call: Call) -> WaitResponse:
        if request.id == "missing":
            raise NotFound("no such thing")
        if request.id == "bug":
            raise ZeroDivisionError("a bug")
        if request.id == "large":
            return WaitResponse(len(request.exec_id))
        return WaitResponse(7)

    def later(self, request: WaitRequest, _call: Call) -> Generator[Any, Any, WaitResponse]:
        self.begun += 1
        if request.id == "refused":
            raise failed_precondition("not now")
        try:
            yield Sleep(float(request.exec_id or "0.01"))
        except TimeoutError:
            self.ended.append("timed out")
            raise
        except Cancelled:
            self.ended.append("cancelled")
            raise
        self.ended.append("finished")
        return WaitResponse(8)

    def wait(self, _request: WaitRequest, _call: Call) -> Generator[Any, Any, WaitResponse]:
        self.begun += 1
        try:
            yield self.event
        except Cancelled:
            self.ended.append("abandoned")
            raise
        return WaitResponse(9)

    def large(self, _request: WaitRequest, call: Call) -> WaitRequest:
        return WaitRequest(exec_id="x" * 1_000_000)

    def stream(self, stream: Stream) -> Echo:
        return Echo(stream, self.heard)

    def methods(self) -> dict[str, Method | StreamMethod]:
        return {
            "AtOnce": Method(WaitRequest, self.at_once),
            "Later": Method(WaitRequest, self.later),
            "Wait": Method(WaitRequest, self.wait, abandon=True),
            "Large": Method(WaitRequest, self.large),
            "Stream": StreamMethod(self.stream),
        }


class Served:
    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "socket")
        self.log = directory / "log"
        self.log.touch()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        self.loop = Loop()
        self.failures: list[Exception] = []
        self.loop.on_failure = self.failures.append
        self.service = Service()
        services = {SERVICE: self.service.methods()}
        self.server = Server(self.loop, OwnedFd(listener.detach()), services, Log(str(self.log), "test"))
        self._wake, self._woken = os.pipe()
        self.loop.watch(self._wake, 1, lambda _events: None)
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def close(self) -> None:
        self.loop.stop()
        os.write(self._woken, b"x")
        self._thread.join()
        self.server.close()
        self.loop.close()
        os.close(self._wake)
        os.close(self._woken)
        assert self.failures == []

    def ask(self, method: str, what: str = "", more: str = "", timeout_s: float = 60) -> WaitResponse:
        with Client(self.path) as client:
            return client.request(SERVICE, method, WaitRequest(what, more), WaitResponse, timeout_s)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.close()


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_handler_may_answer_at_once_or_after_waiting(served: Served) -> None:
    assert served.ask("AtOnce").exit_status == 7
    assert served.ask("Later").exit_status == 8


def test_one_slow_call_does_not_hold_up_another_on_the_same_connection(served: Served) -> None:
    with Client(served.path) as client:
        slow = client.begin(SERVICE, "Wait", encode(WaitRequest()))
        started = time.monotonic()
        assert client.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse).exit_status == 7
        assert time.monotonic() - started < 5
        served.loop.call_soon(served.service.event.set)
        os.write(served._woken, b"")
        client.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse)  # wakes the loop
        client.finish(slow)


@pytest.mark.parametrize(
    ("method", "what", "code", "text"),
    [
        ("AtOnce", "missing", status.NOT_FOUND, "no such thing"),
        ("AtOnce", "bug", status.UNKNOWN, "a bug"),
        ("Later", "refused", status.FAILED_PRECONDITION, "not now"),
        ("Absent", "", status.UNIMPLEMENTED, "method Absent"),
    ],
)
def test_a_failure_becomes_a_status_with_its_text(
    served: Served, method: str, what: str, code: int, text: str
) -> None:
    with pytest.raises(RpcError) as failure:
        served.ask(method, what)
    assert failure.value.code == code
    assert text in failure.value.message


def test_a_service_that_is_not_there_is_unimplemented(served: Served) -> None:
    with Client(served.path) as client, pytest.raises(RpcError) as failure:
        client.call("containerd.task.v9.Task", "Create", b"")
    assert failure.value.code == status.UNIMPLEMENTED
    assert failure.value.message == "service containerd.task.v9.Task"


def test_a_payload_that_is_no_message_is_the_callers_fault(served: Served) -> None:
    with Client(served.path) as client, pytest.raises(RpcError) as failure:
        client.call(SERVICE, "AtOnce", b"\x0a\xff")
    assert failure.value.code == status.INVALID_ARGUMENT


def test_only_a_bug_is_logged(served: Served) -> None:
    for what in ("missing", "bug"):
        with pytest.raises(RpcError):
            served.ask("AtOnce", what)
    lines = served.log.read_text().splitlines()
    assert len(lines) == 1
    assert "ZeroDivisionError: a bug" in lines[0]
    assert "Service.at_once" in lines[0]


def test_a_deadline_is_thrown_into_the_handler_and_told_to_the_caller(served: Served) -> None:
    with Client(served.path) as client:
        call = client.begin(SERVICE, "Later", encode(WaitRequest(exec_id="60")), timeout_s=0.05)
        with pytest.raises(RpcError) as failure:
            client.finish(call, 5)
    assert failure.value.code == status.DEADLINE_EXCEEDED
    assert served.service.ended == ["timed out"]


def test_a_caller_that_leaves_abandons_its_waits_but_not_what_it_began(served: Served) -> None:
    client = Client(served.path)
    client.begin(SERVICE, "Wait", encode(WaitRequest()))
    client.begin(SERVICE, "Later", encode(WaitRequest(exec_id="0.1")))
    eventually(lambda: served.service.begun == 2)
    client.close()
    eventually(lambda: len(served.service.ended) == 2)
    assert served.service.ended == ["abandoned", "finished"]


def test_a_method_that_streams_wants_a_caller_who_does(served: Served) -> None:
    with Client(served.path) as client, pytest.raises(RpcError, match="Stream: its caller must stream"):
        client.call(SERVICE, "Stream", b"")


def test_streams_of_a_connection_are_limited_and_those_that_are_over_do_not_count(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_STREAMS", 2)
    client = ClientConnection()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(served.path)
        peer.settimeout(60)

        def opened() -> Answer | StreamData:
            stream_id, opening = client.open_stream(SERVICE, "Stream", client_streams=True)
            peer.sendall(opening + client.send_data(stream_id, b"x"))
            while True:
                for event in client.receive(peer.recv(65536)):
                    return event

        assert [opened() for _ in range(2)] == [StreamData(1, b"x", False), StreamData(3, b"x", False)]
        refusal = opened()
        assert isinstance(refusal, Answer)
        with pytest.raises(RpcError, match="2 streams are open on this connection already"):
            refusal.result()
        peer.sendall(client.close_send(3))
        assert client.receive(peer.recv(65536)) == [StreamData(3, None, True)]
        assert opened() == StreamData(7, b"x", False)


def test_what_a_caller_said_before_it_hung_up_is_heard(served: Served) -> None:
    client = ClientConnection()
    count = 200
    for _ in range(5):
        served.service.heard.clear()
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(served.path)
            stream_id, opening = client.open_stream(SERVICE, "Stream", client_streams=True)
            said = b"".join(client.send_data(stream_id, b"x") for _ in range(count))
            peer.sendall(opening + said + client.close_send(stream_id))
        eventually(lambda: served.service.heard[-1:] == ["closed"])
        assert served.service.heard == ["x"] * count + ["closed"]
        client = ClientConnection()


def test_bytes_that_are_no_ttrpc_end_that_connection_only(served: Served) -> None:
    with Client(served.path) as good, socket.socket(socket.AF_UNIX) as bad:
        bad.connect(served.path)
        bad.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert bad.recv(1) == b""
        assert good.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse).exit_status == 7


def test_many_calls_in_one_packet_are_all_answered(served: Served) -> None:
    with Client(served.path) as client:
        calls = [client.begin(SERVICE, "AtOnce", encode(WaitRequest())) for _ in range(500)]
        assert len([client.finish(call) for call in calls]) == 500


def test_a_caller_that_reads_no_answers_is_not_read_from_and_costs_bounded_memory(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_UNSENT_BYTES", 2_000_000)
    request = encode(Request(SERVICE, "Large", b"", 0, []))
    with socket.socket(socket.AF_UNIX) as greedy, Client(served.path) as polite:
        greedy.connect(served.path)
        greedy.setblocking(False)
        sent = 0
        refused = 0
        while refused < 20:
            try:
                greedy.send(struct.pack(">IIBB", len(request), 2 * sent + 1, 1, 0) + request)
                sent += 1
            except BlockingIOError:
                refused += 1
                time.sleep(0.01)
        held = max(caller.held for caller in served.server.callers.all())
        assert 2_000_000 <= held < 4_000_000
        assert polite.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse).exit_status == 7


def test_too_many_open_calls_stop_the_reading_until_some_are_answered(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_OPEN_CALLS", 10)
    with Client(served.path) as client:
        calls = [client.begin(SERVICE, "Later", encode(WaitRequest(exec_id="0.2"))) for _ in range(30)]
        time.sleep(0.1)
        assert served.service.begun == 10
        for call in calls:
            client.finish(call)
        assert served.service.begun == 30


def test_too_many_waits_are_refused_and_other_calls_still_served(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_OPEN_WAITS", 10)
    with Client(served.path) as client:
        calls = [client.begin(SERVICE, "Wait", encode(WaitRequest())) for _ in range(11)]
        with pytest.raises(RpcError) as failure:
            client.finish(calls[10])
        assert failure.value.code == status.RESOURCE_EXHAUSTED
        served.loop.call_soon(served.service.event.set)
        assert client.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse).exit_status == 7
        for call in calls[:10]:
            client.finish(call)
        assert client.request(SERVICE, "Wait", WaitRequest(), WaitResponse).exit_status == 9


def test_a_peer_of_another_user_is_shut_out(tmp_path: Path, served: Served) -> None:
    if os.geteuid():
        pytest.skip("needs another user's process")
    os.chmod(tmp_path, 0o777)
    os.chmod(served.path, 0o777)
    for directory in (tmp_path.parent, tmp_path.parent.parent):
        os.chmod(directory, 0o755)
    child = os.fork()
    if not child:
        os.setgid(1234)
        os.setuid(1234)
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.settimeout(60)
            try:
                stranger.connect(served.path)
                os._exit(0 if stranger.recv(1) == b"" else 1)
            except ConnectionResetError:
                os._exit(0)
            except OSError:
                os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_a_server_knows_when_the_last_caller_has_hung_up(served: Served) -> None:
    told: list[str] = []
    assert served.server.deserted().done
    first, second = Client(served.path), Client(served.path)
    for client in (first, second):
        client.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse)
    served.server.deserted().subscribe(lambda _value: told.append("deserted"))
    first.close()
    second.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse)
    assert told == []
    second.close()
    eventually(lambda: told == ["deserted"])


def raw(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(60)
    made.connect(path)
    return made


def test_half_frames_of_many_are_held_within_one_limit(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callers, "MAX_HELD_BYTES", 1_000_000)
    half = struct.pack(">IIBB", 1_000_000, 1, 1, 0) + bytes(300_000)
    with Client(served.path) as polite:
        crowd = [raw(served.path) for _ in range(8)]
        for each in crowd:
            each.sendall(half)
        eventually(lambda: len(served.server.callers) == 4)  # the last three, and the polite one
        assert served.server.callers.held <= 1_000_000
        assert polite.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse).exit_status == 7
        for each in crowd:
            each.close()
    eventually(lambda: not served.server.callers)
    assert served.server.callers.held == 0


def test_who_says_nothing_makes_room_for_another(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "MAX_CALLERS", 4)
    with Client(served.path) as known:
        assert known.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse).exit_status == 7
        crowd = [raw(served.path) for _ in range(100)]
        assert served.ask("AtOnce").exit_status == 7
        assert known.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse).exit_status == 7
        for each in crowd:
            each.close()
    assert len(served.log.read_bytes().splitlines()) <= 10


def test_what_open_calls_have_brought_is_not_kept(served: Served) -> None:
    padded = encode(WaitRequest()) + b"\xfa\x7f\xa0\x8d\x06" + bytes(100_000)  # a field that nobody knows
    with Client(served.path) as client:
        client.begin(SERVICE, "Wait", padded)
        client.begin(SERVICE, "Later", encode(WaitRequest(exec_id="60")))
        eventually(lambda: served.server.open_calls.waits and served.server.open_calls.others)
        (caller,) = served.server.callers.all()
        assert isinstance(caller, server.Connection)
        assert [len(each._call.payload) for each in caller._calls.values()] == [0, 4]


def test_too_many_open_calls_of_all_are_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_calls, "MAX_WAITS_OF_ALL", 3)
    with Client(served.path) as first, Client(served.path) as second:
        calls = [first.begin(SERVICE, "Wait", encode(WaitRequest())) for _ in range(3)]
        eventually(lambda: served.server.open_calls.waits == 3)
        with pytest.raises(RpcError) as failure:
            second.request(SERVICE, "Wait", WaitRequest(), WaitResponse)
        assert failure.value.code == status.RESOURCE_EXHAUSTED
        assert second.request(SERVICE, "Later", WaitRequest(), WaitResponse).exit_status == 8
        served.loop.call_soon(served.service.event.set)
        assert second.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse).exit_status == 7
        for call in calls:
            first.finish(call)
        assert second.request(SERVICE, "Wait", WaitRequest(), WaitResponse).exit_status == 9
    assert (served.server.open_calls.waits, served.server.open_calls.others) == (0, 0)


def test_too_much_brought_by_open_calls_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_calls, "MAX_CALL_BYTES_OF_ALL", 50_000)
    large = WaitRequest("x" * 60_000, "0.2")
    with Client(served.path) as client:
        first = client.begin(SERVICE, "Later", encode(large))
        with pytest.raises(RpcError, match="have brought 60"):
            client.request(SERVICE, "Later", large, WaitResponse)
        assert client.request(SERVICE, "Later", WaitRequest(), WaitResponse).exit_status == 8
        client.finish(first)
        assert client.request(SERVICE, "Later", large, WaitResponse).exit_status == 8


def test_what_is_over_goes_at_once_and_not_with_a_collection(served: Served) -> None:
    gc.collect()
    gc.disable()
    try:
        made: list[weakref.ref[object]] = []
        with Client(served.path) as client:
            waits = [client.begin(SERVICE, "Wait", encode(WaitRequest())) for _ in range(3)]
            eventually(lambda: served.server.open_calls.waits == 3)
            (caller,) = served.server.callers.all()
            made.append(weakref.ref(caller))
            assert isinstance(caller, server.Connection)
            made += [weakref.ref(each._task._generator) for each in caller._calls.values() if each._task]
            del caller
            client.request(SERVICE, "Later", WaitRequest(), WaitResponse)
            assert len(made) == 1 + len(waits)
        eventually(lambda: served.service.ended.count("abandoned") == 3)
        eventually(lambda: [each() for each in made] == [None] * 4)
    finally:
        gc.enable()
