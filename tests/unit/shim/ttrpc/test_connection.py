"""Who may say what on a ttrpc connection: both sides, by their events and bytes."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

from shim.api.codec import decode, encode
from shim.api.ttrpc import KeyValue, Request, Response, Status
from shim.ttrpc import connection
from shim.ttrpc.connection import (
    NAMESPACE,
    TRACEPARENT,
    Answer,
    Call,
    ClientConnection,
    Refused,
    ServerConnection,
    StreamData,
    StreamGone,
)
from shim.ttrpc.frames import (
    DATA,
    MAX_PAYLOAD,
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    OversizedError,
    ProtocolError,
    pack_frame,
)
from shim.ttrpc.status import INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED
from tests.unit.shim.ttrpc.bytes_by_hand import (
    REQUEST_BYTES,
    assert_refused,
    data,
    only_frame,
    oversized,
    request,
    status_of,
)
from tests.wire import tables

if TYPE_CHECKING:
    pass


# --- a call, as the server sees it -------------------------------------------------------------------


def test_a_request_becomes_a_call_with_its_deadline_and_metadata() -> None:
    sent = Request(
        "containerd.task.v2.Task",
        "State",
        b"payload",
        5_000_000_000,
        (KeyValue(NAMESPACE, "k8s.io"), KeyValue(TRACEPARENT, "00-1-2-01"), KeyValue(NAMESPACE, "other")),
    )
    (call,) = ServerConnection().receive(request(1, payload=encode(sent)))
    assert isinstance(call, Call)
    assert (call.stream_id, call.service, call.method, call.payload) == (1, sent.service, "State", b"payload")
    assert call.timeout_ns == 5_000_000_000
    assert call.remote_open is False
    assert call.metadata == ((NAMESPACE, "k8s.io"), (TRACEPARENT, "00-1-2-01"), (NAMESPACE, "other"))
    assert (call.header(NAMESPACE), call.header(TRACEPARENT), call.header("x")) == ("k8s.io", "00-1-2-01", "")


def test_metadata_is_found_whatever_the_case_of_its_name() -> None:
    assert Call(1, "", "", b"", 0, (("Traceparent", "x"),)).header("traceparent") == "x"


def test_the_namespace_goes_by_the_name_that_containerd_gives_it() -> None:
    assert tables.constants("ttrpc")["namespace_metadata_key"] == NAMESPACE


def test_a_call_is_answered_with_one_response_frame() -> None:
    server = ServerConnection()
    server.receive(request(1) + request(3))
    frame = only_frame(server.respond(3, b"out"))
    assert (frame.stream_id, frame.kind, frame.flags) == (3, RESPONSE, 0)
    assert frame.payload is not None
    assert decode(Response, frame.payload) == Response(None, b"out")
    assert status_of(server.fail(1, Status(NOT_FOUND, "no"))) == (1, NOT_FOUND)
    assert server.pending == 0


def test_a_call_is_answered_once() -> None:
    server = ServerConnection()
    server.receive(request(1))
    server.respond(1, b"")
    with pytest.raises(StreamGone):
        server.respond(1, b"")
    with pytest.raises(StreamGone):
        server.fail(1, Status(NOT_FOUND))
    with pytest.raises(StreamGone):
        server.send_data(1, b"")
    with pytest.raises(StreamGone):
        server.end_stream(1)


def test_a_call_that_was_forgotten_is_not_answered() -> None:
    server = ServerConnection()
    server.receive(request(1))
    server.forget(1)
    server.forget(1)
    assert server.pending == 0
    with pytest.raises(StreamGone):
        server.respond(1, b"")


def test_a_result_too_large_for_a_frame_becomes_resource_exhausted() -> None:
    server = ServerConnection()
    server.receive(request(1))
    assert status_of(server.respond(1, bytes(MAX_PAYLOAD))) == (1, RESOURCE_EXHAUSTED)
    assert server.pending == 0


def test_a_failure_too_large_for_a_frame_is_told_in_short() -> None:
    server = ServerConnection()
    server.receive(request(1))
    assert status_of(server.fail(1, Status(NOT_FOUND, "x" * MAX_PAYLOAD))) == (1, NOT_FOUND)


def test_a_long_failure_is_told_in_short() -> None:
    server = ServerConnection()
    server.receive(request(1))
    reply = server.fail(1, Status(NOT_FOUND, "x" * (connection.MAX_TEXT + 1)))
    assert status_of(reply) == (1, NOT_FOUND)
    assert len(reply) < connection.MAX_TEXT + 100


def test_more_metadata_than_the_limit_is_refused_and_the_connection_stays() -> None:
    server = ServerConnection()
    pairs = [KeyValue(f"name-{number}", "x" * 100) for number in range(connection.MAX_METADATA_BYTES // 100)]
    (event,) = server.receive(request(1, payload=encode(Request("service", "Method", b"", 0, pairs))))
    assert isinstance(event, Refused)
    assert event.status.code == RESOURCE_EXHAUSTED
    (event,) = server.receive(request(3, payload=encode(Request("service", "Method", b"", 0, pairs[:100]))))
    assert isinstance(event, Call)
    assert len(event.metadata) == 100


def test_what_is_not_whole_yet_is_counted() -> None:
    server = ServerConnection()
    whole = request(1)
    assert (server.held, server.receive(whole[:-1]), server.held) == (0, [], len(whole) - 1)
    server.receive(whole[-1:])
    server.receive(oversized(3, REQUEST)[:-1])
    assert server.held == 0


def test_calls_are_independent_and_come_in_order() -> None:
    calls = ServerConnection().receive(request(1) + request(5) + request(7))
    assert [call.stream_id for call in calls] == [1, 5, 7]


# --- what a client must not do -----------------------------------------------------------------------


@pytest.mark.parametrize("stream_id", [0, 2, 4, 3, 5])
def test_an_even_reused_or_lower_stream_id_is_refused_and_the_next_accepted(stream_id: int) -> None:
    server = ServerConnection()
    server.receive(request(5))
    server.respond(5, b"")
    assert_refused(server, request(stream_id), stream_id, INVALID_ARGUMENT)
    (call,) = server.receive(request(7))
    assert isinstance(call, Call)


def test_a_refused_stream_takes_nothing_with_it() -> None:
    server = ServerConnection()
    server.receive(request(1))
    assert_refused(server, request(2), 2, INVALID_ARGUMENT)
    assert status_of(server.fail(1, Status(NOT_FOUND))) == (1, NOT_FOUND)


def test_reusing_the_id_of_a_call_that_is_open_ends_that_call() -> None:
    server = ServerConnection()
    server.receive(request(1))
    assert_refused(server, request(1), 1, INVALID_ARGUMENT)
    with pytest.raises(StreamGone):
        server.respond(1, b"")


def test_a_request_that_cannot_be_decoded_is_refused() -> None:
    server = ServerConnection()
    assert_refused(server, request(1, payload=b"\x0a\xff"), 1, INVALID_ARGUMENT)
    assert server.pending == 0


@pytest.mark.parametrize("kind", [REQUEST, DATA, 9])
def test_an_oversized_message_is_refused_on_its_stream_and_the_connection_stays(kind: int) -> None:
    server = ServerConnection()
    assert_refused(server, oversized(1, kind), 1, RESOURCE_EXHAUSTED)
    (call,) = server.receive(request(3))
    assert isinstance(call, Call)


def test_an_oversized_request_uses_up_no_stream_id() -> None:
    server = ServerConnection()
    server.receive(oversized(3, REQUEST))
    (call,) = server.receive(request(1))
    assert isinstance(call, Call)


@pytest.mark.parametrize("kind", [0, RESPONSE, 4, 255])
def test_frames_of_other_types_are_ignored(kind: int) -> None:
    server = ServerConnection()
    assert server.receive(pack_frame(1, kind, 255, b"whatever")) == []
    assert server.receive(request(1)) == [Call(1, "service", "Method", b"in")]


def test_what_is_no_ttrpc_ends_the_connection() -> None:
    with pytest.raises(ProtocolError):
        ServerConnection().receive(b"PRI * HTTP/2.0\r\n")
    with pytest.raises(ProtocolError):
        ClientConnection().receive(b"PRI * HTTP/2.0\r\n")


# --- streams, as the server sees them ----------------------------------------------------------------


def test_a_client_may_send_until_it_closes_its_side() -> None:
    server = ServerConnection()
    (call,) = server.receive(request(1, REMOTE_OPEN))
    assert isinstance(call, Call)
    assert call.remote_open
    stream = data(1, 0, b"a") + data(1) + data(1, REMOTE_CLOSED | NO_DATA)
    assert server.receive(stream) == [
        StreamData(1, b"a", closed=False),
        StreamData(1, b"", closed=False),  # an empty message is a message
        StreamData(1, None, closed=True),
    ]
    assert_refused(server, data(1, 0, b"late"), 1, INVALID_ARGUMENT)


def test_a_frame_without_data_is_no_message() -> None:
    server = ServerConnection()
    server.receive(request(1, REMOTE_OPEN))
    assert server.receive(data(1, NO_DATA)) == [StreamData(1, None, closed=False)]


def test_the_frame_that_closes_a_stream_must_have_no_data() -> None:
    server = ServerConnection()
    server.receive(request(1, REMOTE_OPEN))
    assert_refused(server, data(1, REMOTE_CLOSED, b"a"), 1, INVALID_ARGUMENT)
    assert server.pending == 0


@pytest.mark.parametrize("flags", [0, REMOTE_CLOSED])
def test_data_on_a_stream_without_more_to_come_is_refused(flags: int) -> None:
    server = ServerConnection()
    server.receive(request(1, flags))
    assert_refused(server, data(1, 0, b"a"), 1, INVALID_ARGUMENT)


@pytest.mark.parametrize("stream_id", [1, 2, 3])
def test_data_on_a_stream_that_is_not_there_is_refused(stream_id: int) -> None:
    server = ServerConnection()
    server.receive(request(1))
    server.respond(1, b"")
    assert_refused(server, data(stream_id, 0, b"a"), stream_id, INVALID_ARGUMENT)


def test_a_server_stream_ends_with_a_closing_data_frame() -> None:
    server = ServerConnection()
    server.receive(request(1, REMOTE_CLOSED) + request(3, REMOTE_CLOSED))
    frame = only_frame(server.send_data(1, b""))
    assert (frame.stream_id, frame.kind, frame.flags, frame.payload) == (1, DATA, 0, b"")
    frame = only_frame(server.end_stream(1))
    assert (frame.stream_id, frame.kind, frame.flags, frame.payload) == (
        1,
        DATA,
        REMOTE_CLOSED | NO_DATA,
        b"",
    )
    frame = only_frame(server.end_stream(3, b"last"))
    assert (frame.stream_id, frame.kind, frame.flags, frame.payload) == (3, DATA, REMOTE_CLOSED, b"last")
    assert server.pending == 0


def test_what_a_client_says_before_it_knows_of_the_end_is_no_fault_of_its() -> None:
    server = ServerConnection()
    server.receive(request(1, REMOTE_OPEN))
    server.end_stream(1)
    with pytest.raises(StreamGone):
        server.send_data(1, b"")
    with pytest.raises(StreamGone):
        server.end_stream(1)
    assert server.receive(data(1, 0, b"late")) == [StreamData(1, b"late", closed=False)]
    assert server.receive(data(1, REMOTE_CLOSED | NO_DATA, b"")) == [StreamData(1, None, closed=True)]
    assert server.pending == 0
    assert_refused(server, data(1, 0, b"too late"), 1, INVALID_ARGUMENT)


def test_a_message_too_large_for_a_stream_leaves_it_open() -> None:
    server = ServerConnection()
    server.receive(request(1))
    with pytest.raises(OversizedError):
        server.send_data(1, bytes(MAX_PAYLOAD + 1))
    with pytest.raises(OversizedError):
        server.end_stream(1, bytes(MAX_PAYLOAD + 1))
    assert status_of(server.fail(1, Status(NOT_FOUND))) == (1, NOT_FOUND)


# --- any bytes at all --------------------------------------------------------------------------------


def _random_stream(random: Random) -> bytes:
    stream = bytearray()
    for _ in range(random.randint(1, 8)):
        stream_id = random.choice((0, 1, 1, 2, 3, 5, 0xFFFFFFFF, 0x80000001))
        payload = random.choice((b"", REQUEST_BYTES, b"\x0a", b"x" * 300, random.randbytes(9)))
        kind, flags = random.choice((0, REQUEST, REQUEST, RESPONSE, DATA, DATA, 200)), random.randrange(8)
        stream += pack_frame(stream_id, kind, flags, payload)
    if random.random() < 0.5:
        stream[random.randrange(len(stream))] ^= 1 << random.randrange(8)
    return bytes(stream)


def test_a_server_accepts_any_bytes_or_raises_a_protocol_error() -> None:
    random = Random(5)
    for _ in range(3000):
        server = ServerConnection()
        try:
            for event in server.receive(_random_stream(random)):
                if isinstance(event, Refused):
                    only_frame(event.reply)
                elif isinstance(event, Call) and event.stream_id in server._streams:
                    assert event.stream_id % 2 == 1
        except ProtocolError:
            continue
        for stream_id in list(server._streams):
            server.respond(stream_id, b"")
        assert server.pending == 0


def test_a_client_accepts_any_bytes_or_raises_a_protocol_error() -> None:
    random = Random(6)
    for _ in range(3000):
        client = ClientConnection()
        client.call("s", "m", b"")
        client.open_stream("s", "m", client_streams=True)
        client.open_stream("s", "m", client_streams=False)
        try:
            events = client.receive(_random_stream(random))
        except ProtocolError:
            continue
        ended = [event.stream_id for event in events if isinstance(event, Answer) or event.closed]
        assert len(ended) == len(set(ended)) == 3 - client.pending


def test_the_drawing_of_states_names_the_states() -> None:
    assert connection.__doc__ is not None
    for state in (connection.OPEN, connection.HALF_CLOSED):
        assert state.upper().replace("-", "_") in connection.__doc__
