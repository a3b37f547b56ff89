"""Who may say what on a ttrpc connection, as a client sees it: calls, answers and streams, by their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from shim.api.codec import decode, encode
from shim.api.ttrpc import KeyValue, Request, Response, Status
from shim.ttrpc.connection import (
    Answer,
    ClientConnection,
    ServerConnection,
    StreamData,
    StreamGone,
)
from shim.ttrpc.frames import (
    DATA,
    MAX_PAYLOAD,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    OversizedError,
    pack_frame,
)
from shim.ttrpc.status import DATA_LOSS, NOT_FOUND, RESOURCE_EXHAUSTED, RpcError
from tests.unit.shim.ttrpc.bytes_by_hand import only_frame, oversized

if TYPE_CHECKING:
    pass


def test_calls_get_odd_rising_stream_ids() -> None:
    client = ClientConnection()
    assert [client.call("s", "m", b"")[0] for _ in range(3)] == [1, 3, 5]
    assert client.pending == 3


def test_a_call_is_one_request_frame() -> None:
    _, opening = ClientConnection().call("s", "m", b"in", 7, [("k", "v"), ("k", "w")])
    frame = only_frame(opening)
    assert (frame.stream_id, frame.kind, frame.flags) == (1, REQUEST, 0)
    assert frame.payload is not None
    sent = decode(Request, frame.payload)
    assert sent == Request("s", "m", b"in", 7, (KeyValue("k", "v"), KeyValue("k", "w")))


def test_a_call_has_no_time_limit_unless_it_is_given() -> None:
    client = ClientConnection()
    for opening in (client.call("s", "m", b"")[1], client.open_stream("s", "m", client_streams=True)[1]):
        payload = only_frame(opening).payload
        assert payload is not None
        assert decode(Request, payload) == Request("s", "m")


def test_answers_come_in_any_order() -> None:
    client, server = ClientConnection(), ServerConnection()
    server.receive(client.call("s", "a", b"")[1] + client.call("s", "b", b"")[1])
    answers = client.receive(server.respond(3, b"b") + server.fail(1, Status(NOT_FOUND, "gone")))
    assert answers == [Answer(3, None, b"b"), Answer(1, Status(NOT_FOUND, "gone"), b"")]
    assert isinstance(answers[0], Answer)
    assert answers[0].result() == b"b"
    assert isinstance(answers[1], Answer)
    with pytest.raises(RpcError, match="NotFound: gone"):
        answers[1].result()
    assert client.pending == 0


def test_a_status_that_says_ok_is_none() -> None:
    client = ClientConnection()
    client.call("s", "m", b"")
    response = pack_frame(1, RESPONSE, 0, encode(Response(Status(0, ""), b"out")))
    assert client.receive(response) == [Answer(1, None, b"out")]


def test_a_call_too_large_for_a_frame_is_not_begun() -> None:
    client = ClientConnection()
    with pytest.raises(OversizedError):
        client.call("s", "m", bytes(MAX_PAYLOAD))
    assert client.pending == 0
    assert client.call("s", "m", b"")[0] == 1


def test_late_and_unknown_answers_are_ignored() -> None:
    client, server = ClientConnection(), ServerConnection()
    server.receive(client.call("s", "m", b"")[1])
    client.forget(1)
    assert client.receive(server.respond(1, b"late")) == []
    assert client.receive(pack_frame(9, RESPONSE, 0, b"")) == []
    assert client.receive(pack_frame(2, DATA, 0, b"")) == []
    assert client.receive(oversized(5, RESPONSE)) == []


@pytest.mark.parametrize("kind", [0, REQUEST, 4])
def test_a_client_ignores_frames_of_other_types(kind: int) -> None:
    client = ClientConnection()
    client.call("s", "m", b"")
    assert client.receive(pack_frame(1, kind, 0, b"")) == []
    assert client.pending == 1


def test_an_answer_that_cannot_be_had_is_a_failure_of_its_call_only() -> None:
    client = ClientConnection()
    client.call("s", "m", b"")
    client.call("s", "m", b"")
    client.call("s", "m", b"")
    events = client.receive(pack_frame(1, RESPONSE, 0, b"\xff") + oversized(3, RESPONSE))
    assert [
        (event.stream_id, event.status.code) for event in events if isinstance(event, Answer) and event.status
    ] == [
        (1, DATA_LOSS),
        (3, RESOURCE_EXHAUSTED),
    ]
    assert client.pending == 1


def test_both_sides_of_a_bidirectional_stream() -> None:
    client, server = ClientConnection(), ServerConnection()
    stream_id, opening = client.open_stream("s", "m", client_streams=True)
    assert only_frame(opening).flags == REMOTE_OPEN
    server.receive(opening)
    assert server.receive(client.send_data(stream_id, b"up")) == [StreamData(1, b"up", closed=False)]
    assert client.receive(server.send_data(stream_id, b"")) == [StreamData(1, b"", closed=False)]
    assert server.receive(client.close_send(stream_id)) == [StreamData(1, None, closed=True)]
    with pytest.raises(StreamGone):
        client.send_data(stream_id, b"late")
    with pytest.raises(StreamGone):
        client.close_send(stream_id)
    assert client.receive(server.end_stream(stream_id)) == [StreamData(1, None, closed=True)]
    assert (client.pending, server.pending) == (0, 0)


def test_a_client_does_not_send_on_a_stream_of_the_server_only() -> None:
    client = ClientConnection()
    stream_id, opening = client.open_stream("s", "m", b"in", client_streams=False)
    assert only_frame(opening).flags == REMOTE_CLOSED
    with pytest.raises(StreamGone):
        client.send_data(stream_id, b"x")


def test_a_failed_stream_ends_with_a_response() -> None:
    client, server = ClientConnection(), ServerConnection()
    stream_id, opening = client.open_stream("s", "m", client_streams=True)
    server.receive(opening)
    assert client.receive(server.fail(stream_id, Status(NOT_FOUND, "no"))) == [
        Answer(1, Status(NOT_FOUND, "no"), b"")
    ]
    with pytest.raises(StreamGone):
        client.send_data(stream_id, b"x")
