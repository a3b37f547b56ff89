"""The ttrpc door: a real server on a loop in a thread, a real client, and peers that misbehave."""

from __future__ import annotations

import gc
import os
import socket
import time
import weakref
from pathlib import Path

import pytest

from shim import server
from shim.api.codec import decode, encode
from shim.api.task import WaitRequest, WaitResponse
from shim.ttrpc import status
from shim.ttrpc.client import Client
from shim.ttrpc.connection import Answer, ClientConnection, StreamData
from shim.ttrpc.frames import DATA, REMOTE_CLOSED, pack_frame
from shim.ttrpc.status import RpcError
from tests.unit.shim.serving import SERVICE, Served, eventually


def test_a_handler_may_answer_at_once_or_after_waiting(served: Served) -> None:
    assert served.ask("AtOnce").exit_status == 7
    assert served.ask("Later").exit_status == 8
    assert served.server.answered == 2


def test_one_slow_call_does_not_hold_up_another_on_the_same_connection(served: Served) -> None:
    with Client(served.path) as client:
        slow = client.begin(SERVICE, "Wait", encode(WaitRequest()))
        assert client.request(SERVICE, "AtOnce", WaitRequest(), WaitResponse).exit_status == 7
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
    assert served.server.answered == 0


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


def test_data_for_a_call_that_takes_none_ends_that_call_only(served: Served) -> None:
    client = ClientConnection()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(served.path)
        peer.settimeout(60)
        waiting, call = client.call(SERVICE, "Wait", encode(WaitRequest()))
        streaming, opening = client.open_stream(SERVICE, "Stream", client_streams=True)
        peer.sendall(call + opening)
        eventually(lambda: served.service.begun == 1)
        for stream_id, payload, flags in ((waiting, b"x", 0), (streaming, b"x", REMOTE_CLOSED)):
            peer.sendall(pack_frame(stream_id, DATA, flags, payload))
            (refusal,) = client.receive(peer.recv(65536))
            assert isinstance(refusal, Answer)
            assert (refusal.stream_id, refusal.status and refusal.status.code) == (
                stream_id,
                status.INVALID_ARGUMENT,
            )
        eventually(lambda: served.service.ended == ["abandoned"] and served.service.heard == ["gone"])
        _later, call = client.call(SERVICE, "AtOnce", encode(WaitRequest()))
        peer.sendall(call)
        (answer,) = client.receive(peer.recv(65536))
        assert isinstance(answer, Answer)
        assert answer.status is None


def test_an_answer_that_does_not_fit_at_once_arrives_whole(served: Served) -> None:
    with Client(served.path) as client:
        calls = [client.begin(SERVICE, "Large", encode(WaitRequest())) for _ in range(3)]
        time.sleep(0.02)  # the first has filled what the kernel holds
        answers = [decode(WaitRequest, client.finish(call, 60)) for call in calls]
    assert [len(answer.exec_id) for answer in answers] == [1_000_000] * 3


def test_many_calls_in_one_packet_are_all_answered(served: Served) -> None:
    with Client(served.path) as client:
        calls = [client.begin(SERVICE, "AtOnce", encode(WaitRequest())) for _ in range(500)]
        assert len([client.finish(call) for call in calls]) == 500


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
