"""Both ends of a ttrpc connection, without a socket: bytes in, events out; answers in, bytes out.

    client                                            server
    call()           request, flags 0       ───────►  Call
    Answer           response, flags 0      ◄───────  respond() or fail()

    open_stream()    request, 2 or 1        ───────►  Call with `remote_open` or not
    send_data()      data, 0                ───────►  StreamData
    close_send()     data, 5, empty         ───────►  StreamData, `closed`
    StreamData       data, 0                ◄───────  send_data()
    StreamData       data, 1 (+4 if empty)  ◄───────  end_stream(): all is well
    Answer           response, flags 0      ◄───────  respond() or fail(): the last word either way

    A stream, as the server sees it; the client's view mirrors it.

             request, flag 2                data with flag 1
    (new) ───────────────────► OPEN ───────────────────────────► HALF_CLOSED ──┐
      │      request, flag 0 or 1                                     ▲        │ respond, fail,
      └───────────────────────────────────────────────────────────────┘        │ end_stream
                                 OPEN ─── respond, fail ──► (gone) ◄───────────┘
                                   │                          ▲
                                   └── end_stream ──► ENDED ──┘ data with flag 1

What a peer does wrong on one stream is answered on that stream (`Refused`, with the bytes to send) and
leaves the others alone. ProtocolError ends the connection. Source: containerd/ttrpc PROTOCOL.md, server.go.
"""

from __future__ import annotations

from runtime.record import Record
from shim.api.codec import CodecError, decode, encode
from shim.api.ttrpc import KeyValue, Request, Response, Status
from shim.ttrpc.frames import (
    DATA,
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    REQUEST,
    RESPONSE,
    FrameReader,
    OversizedError,
    pack_frame,
)
from shim.ttrpc.status import DATA_LOSS, INVALID_ARGUMENT, OK, RESOURCE_EXHAUSTED, RpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from shim.ttrpc.frames import Frame

NAMESPACE = "containerd-namespace-ttrpc"  # metadata: whose containers a call is about
TRACEPARENT = "traceparent"  # metadata: the caller's span, as W3C Trace Context writes it
# What a call may bring of metadata, all names and values together: containerd sends a few dozen bytes.
MAX_METADATA_BYTES = 16 << 10
# Of the text of a failure, in characters. Some repeat a name that the caller gave, which may be as long as a frame.
MAX_TEXT = 16 << 10

# What the peer may still do on a stream.
OPEN = "open"
HALF_CLOSED = "half-closed"
ENDED = "ended"  # by us: what the peer says before it knows is no fault of its


class StreamGone(LookupError):
    """We were about to say something on a stream that has ended, or that never was."""


# --- events ----------------------------------------------------------------------------------------


class Call(Record):
    """A request: answer it with `respond` or `fail`, or, where the method streams, with data first.

    `timeout_ns` is how long the caller will wait, counted from now; 0 means for ever. `metadata` is in the
    order of the wire; a name may come more than once. With `remote_open`, StreamData will follow.
    """

    stream_id: int
    service: str
    method: str
    payload: bytes
    timeout_ns: int = 0
    metadata: tuple[tuple[str, str], ...] = ()
    remote_open: bool = False

    def patience_s(self) -> float:
        """How long a handler may wait for somebody else: half of the time, for there is more to do, and then an answer
        to send. containerd does several calls in the ten seconds that it has for one container when it starts.
        """
        return self.timeout_ns / 2e9 if self.timeout_ns > 0 else float("inf")

    def header(self, name: str) -> str:
        """The first value that the metadata has for `name` (lower case), or an empty string."""
        for key, value in self.metadata:
            if key.lower() == name:
                return value
        return ""


class StreamData(Record):
    """One message on a stream (None if the frame brought none); `closed` if its sender has said all."""

    stream_id: int
    payload: bytes | None
    closed: bool


class Refused(Record):
    """The peer broke a rule on one stream. It is over: send `reply`, and drop what was done for it."""

    stream_id: int
    status: Status
    reply: bytes


class Answer(Record):
    """The last word of a server on a call. `status` is None if all is well."""

    stream_id: int
    status: Status | None
    payload: bytes

    def result(self) -> bytes:
        """The payload. RpcError if the status says otherwise."""
        if self.status is not None:
            raise RpcError(self.status.code, self.status.message)
        return self.payload


def _response_frame(stream_id: int, response: Response) -> bytes:
    return pack_frame(stream_id, RESPONSE, 0, encode(response))


class ServerConnection:
    """The side that is called."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._streams: dict[int, str] = {}
        self._last_stream_id = 0

    @property
    def pending(self) -> int:
        """How many calls have not been answered."""
        return len(self._streams)

    @property
    def held(self) -> int:
        """How many bytes have come of what is not whole yet."""
        return self._reader.held

    def receive(self, data: bytes) -> list[Call | StreamData | Refused]:
        """What `data` brings, in order. ProtocolError if it is not ttrpc: close the connection then."""
        events: list[Call | StreamData | Refused] = []
        for frame in self._reader.receive(data):
            if frame.payload is None:
                text = f"message of {frame.announced} bytes is too large"
                events.append(self._refuse(frame.stream_id, RESOURCE_EXHAUSTED, text))
            elif frame.kind == REQUEST:
                events.append(self._on_request(frame, frame.payload))
            elif frame.kind == DATA:
                events.append(self._on_data(frame, frame.payload))
            # Any other type is for a newer version to understand, and ignored.
        return events

    def respond(self, stream_id: int, payload: bytes) -> bytes:
        """The bytes that answer a call with a result. One that no frame can hold becomes ResourceExhausted.

        StreamGone if the call is not open; this ends it.
        """
        self._end(stream_id)
        try:
            return _response_frame(stream_id, Response(None, payload))
        except OversizedError as error:
            return _response_frame(stream_id, Response(Status(RESOURCE_EXHAUSTED, str(error))))

    def fail(self, stream_id: int, status: Status) -> bytes:
        """The bytes that answer a call with a failure. StreamGone if the call is not open; this ends it.

        A text of more than MAX_TEXT is cut.
        """
        self._end(stream_id)
        if len(status.message) > MAX_TEXT:
            status = Status(status.code, f"{status.message[:MAX_TEXT]} …")
        return _response_frame(stream_id, Response(status))

    def send_data(self, stream_id: int, payload: bytes) -> bytes:
        """The bytes of one message on a stream. StreamGone if it has ended, OversizedError if too large."""
        if self._streams.get(stream_id, ENDED) == ENDED:
            raise StreamGone(f"stream {stream_id} is not open")
        return pack_frame(stream_id, DATA, 0, payload)

    def end_stream(self, stream_id: int, payload: bytes | None = None) -> bytes:
        """The bytes that end a stream well, with a last message or none. StreamGone if it is not open.

        What the peer still says comes as StreamData, until it closes its side, or until `forget`.
        """
        flags = REMOTE_CLOSED | NO_DATA if payload is None else REMOTE_CLOSED
        last = pack_frame(stream_id, DATA, flags, payload or b"")
        was_open = self._streams.get(stream_id) == OPEN
        self._end(stream_id)
        if was_open:
            self._streams[stream_id] = ENDED
        return last

    def forget(self, stream_id: int) -> None:
        """Drop a call that nobody will answer, because its caller is gone."""
        self._streams.pop(stream_id, None)

    def _end(self, stream_id: int) -> None:
        if self._streams.get(stream_id, ENDED) == ENDED:
            raise StreamGone(f"stream {stream_id} is not open")
        del self._streams[stream_id]

    def _on_request(self, frame: Frame, payload: bytes) -> Call | Refused:
        fault = self._register(frame.stream_id)
        if fault:
            return self._refuse(frame.stream_id, INVALID_ARGUMENT, fault)
        try:
            request = decode(Request, payload)
        except CodecError as error:
            return self._refuse(frame.stream_id, INVALID_ARGUMENT, f"undecodable request: {error}")
        metadata = tuple([(pair.key, pair.value) for pair in request.metadata])
        if sum(len(key) + len(value) for key, value in metadata) > MAX_METADATA_BYTES:
            text = f"metadata of more than {MAX_METADATA_BYTES} bytes"
            return self._refuse(frame.stream_id, RESOURCE_EXHAUSTED, text)
        remote_open = bool(frame.flags & REMOTE_OPEN)
        self._streams[frame.stream_id] = OPEN if remote_open else HALF_CLOSED
        return Call(
            frame.stream_id,
            request.service,
            request.method,
            request.payload,
            request.timeout_nano,
            metadata,
            remote_open,
        )

    def _on_data(self, frame: Frame, payload: bytes) -> StreamData | Refused:
        state = self._streams.get(frame.stream_id)
        if state is None:
            return self._refuse(frame.stream_id, INVALID_ARGUMENT, "stream is not active")
        if state == HALF_CLOSED:
            return self._refuse(
                frame.stream_id, INVALID_ARGUMENT, "data on a stream that its sender has closed"
            )
        closed = bool(frame.flags & REMOTE_CLOSED)
        if closed and payload:
            return self._refuse(frame.stream_id, INVALID_ARGUMENT, "the frame that closes must have no data")
        if closed and state == ENDED:
            del self._streams[frame.stream_id]
        elif closed:
            self._streams[frame.stream_id] = HALF_CLOSED
        # An empty message is a message, unless the frame says that it is none, or closes.
        absent = closed or frame.flags & NO_DATA
        return StreamData(frame.stream_id, None if absent else payload, closed)

    def _register(self, stream_id: int) -> str:
        """Take note of a new stream's id; what is wrong with it, or an empty string."""
        if not stream_id & 1:
            return f"stream id {stream_id} is even: those are not the client's to choose"
        if stream_id <= self._last_stream_id:
            return f"stream id {stream_id} was used before, or comes after a higher one"
        self._last_stream_id = stream_id
        return ""

    def _refuse(self, stream_id: int, code: int, message: str) -> Refused:
        self._streams.pop(stream_id, None)
        status = Status(code, message)
        return Refused(stream_id, status, _response_frame(stream_id, Response(status)))


class ClientConnection:
    """The side that calls."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._streams: dict[int, str] = {}  # by what we may still do on them
        self._next_stream_id = 1

    @property
    def pending(self) -> int:
        """How many calls have not been answered."""
        return len(self._streams)

    def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        timeout_ns: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> tuple[int, bytes]:
        """A new call: its stream's id and the bytes that make it. OversizedError if no frame can hold it."""
        return self._open(0, Request(service, method, payload, timeout_ns, _pairs(metadata)), HALF_CLOSED)

    def open_stream(
        self,
        service: str,
        method: str,
        payload: bytes = b"",
        *,
        client_streams: bool,
        timeout_ns: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> tuple[int, bytes]:
        """A call of a streaming method: more will be said by us (`client_streams`), or by the server only."""
        request = Request(service, method, payload, timeout_ns, _pairs(metadata))
        if client_streams:
            return self._open(REMOTE_OPEN, request, OPEN)
        return self._open(REMOTE_CLOSED, request, HALF_CLOSED)

    def send_data(self, stream_id: int, payload: bytes) -> bytes:
        """The bytes of one message on a stream. StreamGone if we have closed our side, or it has ended."""
        if self._streams.get(stream_id) != OPEN:
            raise StreamGone(f"stream {stream_id} takes no more data")
        return pack_frame(stream_id, DATA, 0, payload)

    def close_send(self, stream_id: int) -> bytes:
        """The bytes that close our side of a stream. StreamGone if it is closed already."""
        if self._streams.get(stream_id) != OPEN:
            raise StreamGone(f"stream {stream_id} is closed already")
        self._streams[stream_id] = HALF_CLOSED
        return pack_frame(stream_id, DATA, REMOTE_CLOSED | NO_DATA, b"")

    def forget(self, stream_id: int) -> None:
        """Drop a call whose answer nobody waits for any more; should it come, it is ignored."""
        self._streams.pop(stream_id, None)

    def receive(self, data: bytes) -> list[Answer | StreamData]:
        """What `data` brings, in order. ProtocolError if it is not ttrpc: close the connection then."""
        events: list[Answer | StreamData] = []
        for frame in self._reader.receive(data):
            if frame.stream_id not in self._streams:
                continue  # a late answer to a call that was dropped
            if frame.payload is None:
                text = f"message of {frame.announced} bytes is too large"
                events.append(self._answer(frame.stream_id, Status(RESOURCE_EXHAUSTED, text)))
            elif frame.kind == RESPONSE:
                events.append(self._on_response(frame.stream_id, frame.payload))
            elif frame.kind == DATA:
                events.append(self._on_data(frame, frame.payload))
        return events

    def _open(self, flags: int, request: Request, state: str) -> tuple[int, bytes]:
        stream_id = self._next_stream_id
        opening = pack_frame(stream_id, REQUEST, flags, encode(request))
        self._next_stream_id += 2
        self._streams[stream_id] = state
        return stream_id, opening

    def _on_response(self, stream_id: int, payload: bytes) -> Answer:
        try:
            response = decode(Response, payload)
        except CodecError as error:
            return self._answer(stream_id, Status(DATA_LOSS, f"undecodable response: {error}"))
        return self._answer(stream_id, response.status, response.payload)

    def _on_data(self, frame: Frame, payload: bytes) -> StreamData:
        closed = bool(frame.flags & REMOTE_CLOSED)
        if closed:
            del self._streams[frame.stream_id]
        return StreamData(frame.stream_id, None if frame.flags & NO_DATA else payload, closed)

    def _answer(self, stream_id: int, status: Status | None, payload: bytes = b"") -> Answer:
        del self._streams[stream_id]
        if status is not None and status.code == OK:
            status = None
        return Answer(stream_id, status, payload)


def _pairs(metadata: Sequence[tuple[str, str]]) -> list[KeyValue]:
    return [KeyValue(key, value) for key, value in metadata]
