"""Frames made by hand, and what they are answered with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shim.api.codec import decode, encode
from shim.api.ttrpc import Request, Response
from shim.ttrpc.connection import (
    Refused,
    ServerConnection,
)
from shim.ttrpc.frames import (
    DATA,
    HEADER,
    HEADER_BYTES,
    MAX_PAYLOAD,
    REQUEST,
    RESPONSE,
    FrameReader,
    pack_frame,
)

if TYPE_CHECKING:
    from shim.ttrpc.frames import Frame

REQUEST_BYTES = encode(Request("service", "Method", b"in"))


def request(stream_id: int, flags: int = 0, payload: bytes = REQUEST_BYTES) -> bytes:
    return pack_frame(stream_id, REQUEST, flags, payload)


def data(stream_id: int, flags: int = 0, payload: bytes = b"") -> bytes:
    return pack_frame(stream_id, DATA, flags, payload)


def oversized(stream_id: int, kind: int) -> bytes:
    return HEADER.pack(MAX_PAYLOAD + 1, stream_id, kind, 0) + bytes(MAX_PAYLOAD + 1)


def only_frame(stream: bytes) -> Frame:
    (frame,) = FrameReader().receive(stream)
    assert len(stream) == HEADER_BYTES + frame.announced
    return frame


def status_of(reply: bytes) -> tuple[int, int]:
    """The stream and the code of a response frame."""
    frame = only_frame(reply)
    assert (frame.kind, frame.flags) == (RESPONSE, 0)
    assert frame.payload is not None
    status = decode(Response, frame.payload).status
    assert status is not None
    return frame.stream_id, status.code


def assert_refused(server: ServerConnection, stream: bytes, stream_id: int, code: int) -> None:
    """`stream` is refused on that stream with that code, and the connection goes on."""
    (event,) = server.receive(stream)
    assert isinstance(event, Refused)
    assert (event.stream_id, event.status.code) == status_of(event.reply) == (stream_id, code)
