"""ttrpc frames: bytes in, frames out, and the other way round. What a frame means is `connection`'s business.

     0        4        8    9    10                     10 + length
     ├────────┼────────┼────┼────┼──────────────────────┤
     │ length │ stream │type│flag│ payload              │      numbers are big endian; length counts the
     └────────┴────────┴────┴────┴──────────────────────┘      payload only and is at most 4 MiB

A frame that announces more than 4 MiB is reported and its payload thrown away as it comes, so that one
request that is too large costs no memory and does not end the connection. A length of 16 MiB and more is
no ttrpc: its first byte is always 0 there. Source: containerd/ttrpc channel.go, PROTOCOL.md.
"""

from __future__ import annotations

from _struct import Struct

from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

HEADER = Struct(">IIBB")
HEADER_BYTES: Final = 10
MAX_PAYLOAD: Final = 4 << 20

# type
REQUEST: Final = 1
RESPONSE: Final = 2
DATA: Final = 3

# flags
REMOTE_CLOSED: Final = 1  # the sender has nothing more to say on this stream
REMOTE_OPEN: Final = 2  # the sender will say more on this stream
NO_DATA: Final = 4  # there is no message in this frame, not even an empty one


class ProtocolError(Exception):
    """What came is not ttrpc, and where the next frame begins cannot be told: the connection has to end."""


class OversizedError(Exception):
    """A payload that we were asked to send is larger than a frame may be; nothing was sent."""


class Frame(Record):
    """One frame. `payload` is None if it was too large, and `announced` then how many bytes it had."""

    stream_id: int
    kind: int
    flags: int
    payload: bytes | None
    announced: int


def pack_frame(stream_id: int, kind: int, flags: int, payload: bytes) -> bytes:
    """The bytes of one frame. OversizedError if the payload is larger than a frame may be."""
    if len(payload) > MAX_PAYLOAD:
        raise OversizedError(f"message of {len(payload)} bytes exceeds {MAX_PAYLOAD}")
    return HEADER.pack(len(payload), stream_id, kind, flags) + payload


class FrameReader:
    """Cuts a byte stream into frames, however the bytes arrive; holds what is not a whole frame yet."""

    __slots__ = ("_buffer", "_discard", "_wanted")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted = HEADER_BYTES  # how much the buffer must hold before looking at it is worth while
        self._discard = 0  # how much is still to come of a payload that is too large

    @property
    def held(self) -> int:
        """How many bytes of a frame that is not whole yet have come."""
        return len(self._buffer)

    def receive(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes. ProtocolError if this is not ttrpc: feed it nothing more then."""
        if self._discard:
            dropped = min(self._discard, len(data))
            self._discard -= dropped
            data = data[dropped:]
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted:
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        return self._cut(data)

    def _cut(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        position = 0
        self._wanted = HEADER_BYTES
        while len(data) - position >= HEADER_BYTES:
            length, stream_id, kind, flags = HEADER.unpack_from(data, position)
            start, stop = position + HEADER_BYTES, position + HEADER_BYTES + length
            if length > MAX_PAYLOAD:
                if length >> 24:
                    raise ProtocolError(f"frame of {length} bytes: this is not ttrpc")
                frames.append(Frame(stream_id, kind, flags, None, length))
                self._discard = max(0, stop - len(data))
                position = min(stop, len(data))
            elif stop <= len(data):
                frames.append(Frame(stream_id, kind, flags, data[start:stop], length))
                position = stop
            else:
                self._wanted = stop - position
                break
        self._buffer += data[position:]
        return frames
