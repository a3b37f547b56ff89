"""What callers of the ttrpc door can make it hold, one by one and all together: a real server, and raw sockets."""

from __future__ import annotations

import os
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shim import callers, open_calls, server
from shim.api.codec import encode
from shim.api.task import WaitRequest, WaitResponse
from shim.api.ttrpc import Request
from shim.ttrpc import status
from shim.ttrpc.client import Client
from shim.ttrpc.status import RpcError
from tests.unit.shim.serving import SERVICE, Served, eventually


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
        # The limit, an answer more, and the calls of one read that wait, each with what it takes besides its bytes.
        waiting = server.READ_BYTES // (10 + len(request)) * (server.CALL_BYTES + len(SERVICE) + len("Large"))
        assert 2_000_000 <= held < 4_000_000 + waiting
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


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """For this process to open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as free:
        number = free.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_who_says_nothing_makes_room_and_else_others_wait(served: Served) -> None:
    request = Request(SERVICE, "AtOnce", encode(WaitRequest()), 0, [])
    call = struct.pack(">IIBB", len(encode(request)), 1, 1, 0) + encode(request)
    with (
        Client(served.path) as known,
        raw(served.path) as silent,
        socket.socket(socket.AF_UNIX) as second,
        socket.socket(socket.AF_UNIX) as third,
    ):
        assert known.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse).exit_status == 7
        eventually(lambda: len(served.server.callers) == 2)
        for each in (silent, second, third):
            each.settimeout(60)
        with no_descriptor_left():
            second.connect(served.path)
            second.sendall(call)
            assert silent.recv(1) == b""
            assert second.recv(4096)
            third.connect(served.path)
            third.sendall(call)
            assert known.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse).exit_status == 7
            assert len(served.server.callers) == 2
        assert third.recv(4096)


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
