"""The Streaming service: where the streams that clients open and the processes that they are of come together, by id.

A client of ours names in a process's stdin, stdout or stderr a stream that it has opened here before, and it opens it
again when it was restarted. So either side may come first, and clients come and go while a process stays.

    client                                            shim
    Stream: Any(StreamInit(id))     ───────►          a new stream, of a process that is there or to come
                                    ◄───────          Any(Empty): it is known
                                                      … and then what `stream_io` says

Source: containerd core/streaming/proxy, internal/cri/io/streaming.go.
"""

from __future__ import annotations

from shim.api.codec import CodecError, decode, encode
from shim.api.streaming import StreamInit
from shim.api.ttrpc import Status
from shim.api.types import Any, Empty, pack, unpack
from shim.errors import already_exists
from shim.streams import StreamMethod
from shim.ttrpc.status import ABORTED, INVALID_ARGUMENT, RESOURCE_EXHAUSTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from shim.streams import Listener, Stream

    class End(Listener, Protocol):
        """The side of a process; it listens to the stream of whatever client is there."""

        def attach(self, stream: Stream) -> None:
            """A client has come, perhaps in the place of another."""


# What a client may say before its process is there; containerd's says how much room it has. There may be thousands of
# clients, and what they have all said is bounded, too; a message is counted as no less than what it takes to keep it.
MOST_EARLY_MESSAGES = 16
MOST_EARLY_BYTES = 4 << 10
MOST_EARLY_BYTES_OF_ALL = 4 << 20
LEAST_BYTES = 128
MOST_ID_BYTES = 1 << 10
_KNOWN = encode(pack(Empty()))


class Exchange:
    """One per shim."""

    def __init__(self) -> None:
        self._arrivals: dict[str, Arrival] = {}
        self._ends: dict[str, End] = {}
        self.early_bytes = 0  # that are kept

    def methods(self) -> dict[str, StreamMethod]:
        """All of them, for the server."""
        return {"Stream": StreamMethod(lambda stream: Arrival(self, stream))}

    def arrived(self, arrival: Arrival) -> None:
        """A client has said which stream it has opened. One that opened the same before is told that it is over."""
        end = self._ends.get(arrival.id)
        if end is not None:
            arrival.hand_to(end)
            return
        before = self._arrivals.pop(arrival.id, None)
        if before is not None:
            before.forget()
            superseded(before.stream, arrival.id)
        self._arrivals[arrival.id] = arrival

    def left(self, arrival: Arrival) -> None:
        """A client whose process never came has gone."""
        if self._arrivals.get(arrival.id) is arrival:
            del self._arrivals[arrival.id]

    def claim(self, stream_id: str, end: End) -> None:
        """`end` is a process's side of that stream until it is released. AlreadyExists if another one is."""
        if stream_id in self._ends:
            raise already_exists(f"stream {stream_id}")
        self._ends[stream_id] = end
        arrival = self._arrivals.pop(stream_id, None)
        if arrival is not None:
            arrival.hand_to(end)

    def release(self, stream_id: str, end: End) -> None:
        """The process is gone."""
        if self._ends.get(stream_id) is end:
            del self._ends[stream_id]


class Arrival:
    """A client's stream until there is a process for it; what was said meanwhile is kept for it."""

    def __init__(self, exchange: Exchange, stream: Stream) -> None:
        self._exchange = exchange
        self.stream = stream
        self.id = ""
        self._said: list[bytes] = []
        self._all_said = False

    def message(self, payload: bytes) -> None:
        """The first names the stream."""
        if self.id:
            if self._has_room(len(payload)):
                self._said.append(payload)
                self._exchange.early_bytes += max(len(payload), LEAST_BYTES)
            else:
                self.gone()
                self.stream.fail(Status(RESOURCE_EXHAUSTED, f"stream {self.id}: no process has it yet"))
            return
        try:
            stream_id = unpack(decode(Any, payload), StreamInit).id
        except CodecError as error:
            self.stream.fail(Status(INVALID_ARGUMENT, f"stream: {error}"))
            return
        if not 1 <= len(stream_id) <= MOST_ID_BYTES:
            why = f"its id is longer than {MOST_ID_BYTES} bytes" if stream_id else "it has no id"
            self.stream.fail(Status(INVALID_ARGUMENT, f"stream: {why}"))
            return
        self.id = stream_id
        self.stream.send(_KNOWN)
        self._exchange.arrived(self)

    def _has_room(self, size: int) -> bool:
        return (
            len(self._said) < MOST_EARLY_MESSAGES
            and sum(map(len, self._said)) + size <= MOST_EARLY_BYTES
            and self._exchange.early_bytes + size <= MOST_EARLY_BYTES_OF_ALL
        )

    def forget(self) -> list[bytes]:
        """What was said, which is not kept any more."""
        said, self._said = self._said, []
        self._exchange.early_bytes -= sum(max(len(each), LEAST_BYTES) for each in said)
        return said

    def closed(self) -> None:
        """It is kept: that its client has nothing to say is worth knowing for the process to come."""
        self._all_said = True
        if not self.id:
            self.stream.end()

    def room(self) -> None:
        """Nothing waits for it."""

    def gone(self) -> None:
        """The client has hung up."""
        self.forget()
        self._exchange.left(self)

    def hand_to(self, end: End) -> None:
        """The process is there."""
        self.stream.listener = end
        said = self.forget()
        end.attach(self.stream)
        for payload in said:
            end.message(payload)
        if self._all_said:
            end.closed()


def superseded(stream: Stream, stream_id: str) -> None:
    """Tell a client that another one has taken its place: an end would look like that of the process."""
    stream.fail(Status(ABORTED, f"stream {stream_id}: another client has opened it"))
