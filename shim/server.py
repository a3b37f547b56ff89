"""The ttrpc door of a shim: sockets on the loop, calls to handlers, answers back.

Only a peer with our own uid and gid is let in. A connection that sends faster than it reads its answers,
or has too many calls open, is not read from until it has caught up, so what it can make us hold is
bounded. What the methods do is the services' business; what the bytes mean is `ttrpc`'s.
"""

from __future__ import annotations

import _socket
import os
from _struct import Struct

from runtime.record import Record
from shim.api.codec import decode, encode
from shim.api.message import Message
from shim.api.ttrpc import Status
from shim.errors import is_a_bug, status_of
from shim.log import ERROR, WARNING
from shim.loop import EPOLLIN, EPOLLOUT
from shim.streams import Stream, StreamMethod
from shim.tasks import Outcome, spawn
from shim.ttrpc.connection import Call, Refused, ServerConnection, StreamData, StreamGone
from shim.ttrpc.frames import ProtocolError
from shim.ttrpc.status import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, unknown_method, unknown_service

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from typing import Any

    from runtime.linux.fds import OwnedFd
    from shim.log import Log
    from shim.loop import Loop, Timer
    from shim.tasks import Task

    Handler = Callable[[Any, Call], Message | Generator[Any, Any, Message]]

READ_BYTES = 64 * 1024
# containerd has one connection a container and one open Wait a process.
MAX_CONNECTIONS = 512
MAX_OPEN_CALLS = 512  # that do something: they end by themselves, and more are read then
MAX_OPEN_WAITS = 4096  # that end when a process does: more are refused, or nobody could ask for its end
MAX_STREAMS = 64  # of one connection; containerd has one connection a stream
MAX_UNSENT_BYTES = 8 << 20

_CREDENTIALS = Struct("iII")  # struct ucred: pid, uid, gid


class Method(Record):
    """What a method takes and who does it. An answer that is a generator is driven on the loop.

    `abandon`: it only waits for something, and is called off when its caller goes away. All others are
    finished, whoever is left to hear of it.
    """

    request: type[Message]
    handler: Handler
    abandon: bool = False


class Server:
    """Accepts on `listener`, which it owns, and serves `services`: methods by name, by service name."""

    def __init__(
        self,
        loop: Loop,
        listener: OwnedFd,
        services: Mapping[str, Mapping[str, Method | StreamMethod]],
        log: Log,
    ) -> None:
        self.loop = loop
        self.services = services
        self.log = log
        self._listener = _socket.socket(fileno=listener.release())
        self._listener.setblocking(False)
        self._connections: set[Connection] = set()
        self._deserted: Outcome | None = None
        self._listen()

    def _listen(self) -> None:
        self.loop.watch(self._listener.fileno(), EPOLLIN, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            fd, _address = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors: no new callers until there are some
            self.log.write(ERROR, f"accept: {error.strerror}")
            self.loop.unwatch(self._listener.fileno())
            self.loop.call_later(1.0, self._listen)
            return
        peer = _socket.socket(fileno=fd)
        _pid, uid, gid = _CREDENTIALS.unpack(
            peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if (uid, gid) != (os.geteuid(), os.getegid()) or len(self._connections) >= MAX_CONNECTIONS:
            self.log.write(WARNING, f"a connection of uid {uid} gid {gid} was refused")
            peer.close()
            return
        peer.setblocking(False)
        self._connections.add(Connection(self, peer))

    def forget(self, connection: Connection) -> None:
        """Called by a connection that has ended."""
        self._connections.discard(connection)
        if self._deserted is not None and not self._connections and not self._deserted.done:
            self._deserted.set()

    def deserted(self) -> Outcome:
        """Set once nobody is connected; what was true then may not be so any more for who is told."""
        if self._deserted is None or self._deserted.done:
            self._deserted = Outcome()
        if not self._connections:
            self._deserted.set()
        return self._deserted

    def close(self) -> None:
        """Stop serving: nobody is let in any more, and whoever is in is cut off."""
        if self.loop.is_watched(self._listener.fileno()):
            self.loop.unwatch(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections):
            connection.close()


class Connection:
    """One caller."""

    def __init__(self, server: Server, peer: _socket.socket) -> None:
        self._server = server
        self._loop = server.loop
        self._peer = peer
        self._fd = peer.fileno()
        self.protocol = ServerConnection()
        self._unsent = bytearray()
        self._arrived: list[Call | StreamData] = []  # read, but not begun
        self._streams: dict[int, Stream] = {}
        self._about_to_begin = False
        self._calls: dict[int, OpenCall] = {}
        self._waits = 0
        self._events = 0
        self._unheard = False  # nobody reads what we send
        self._short_of_room = False
        self.closed = False
        self._rearm()

    # --- bytes -------------------------------------------------------------------------------------

    def _rearm(self) -> None:
        """Watch for what makes sense now: room to send, and input only while the caller keeps up."""
        reading = self._keeps_up() and not self._arrived
        events = (EPOLLIN if reading else 0) | (EPOLLOUT if self._unsent and not self._unheard else 0)
        if events != self._events:
            self._loop.watch(self._fd, events, self._ready)
            self._events = events

    def _keeps_up(self) -> bool:
        return len(self._unsent) < MAX_UNSENT_BYTES and len(self._calls) - self._waits < MAX_OPEN_CALLS

    def _ready(self, events: int) -> None:
        if events & EPOLLOUT:
            self._flush()
        if events & ~EPOLLOUT and not self.closed:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._peer.recv(READ_BYTES)
            arrived = self.protocol.receive(data)
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            self.close()
            return
        if not data:
            self.close()
            return
        for event in arrived:
            if isinstance(event, Refused):
                self._abandon(event.stream_id)
                self.send(event.reply)
            else:
                self._arrived.append(event)
        if self._arrived:
            self._begin_next()
        elif not self.closed:
            self._rearm()

    def send(self, data: bytes) -> None:
        """Send bytes, now or as soon as there is room."""
        if self.closed or self._unheard:
            return
        self._unsent += data
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent and not self._unheard:
                sent = self._peer.send(self._unsent)
                del self._unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            if not self._streams:
                self.close()
                return
            self._unheard = True  # what a stream's caller said before it hung up is still to be read
        if self._unsent:
            self._short_of_room = True
        elif self._short_of_room:
            self._short_of_room = False
            self._loop.call_soon(self._tell_of_room)
        self._begin_soon()
        self._rearm()

    # --- calls -------------------------------------------------------------------------------------

    def _begin_soon(self) -> None:
        if self._arrived and not self._about_to_begin and self._keeps_up():
            self._about_to_begin = True
            self._loop.call_soon(self._begin_next)

    def _begin_next(self) -> None:
        """Begin one of the calls that a read brought; others have their turn before the next, if it keeps up."""
        self._about_to_begin = False
        if self.closed or not self._arrived:
            return
        event = self._arrived.pop(0)
        if isinstance(event, Call):
            self._begin(event)
        else:
            self._hear(event)
        self._begin_soon()
        if not self.closed:
            self._rearm()

    def _begin(self, call: Call) -> None:
        methods = self._server.services.get(call.service)
        method = methods.get(call.method) if methods is not None else None
        if method is None:
            unknown = unknown_service(call.service) if methods is None else unknown_method(call.method)
            self._fail(call.stream_id, unknown)
            return
        if isinstance(method, StreamMethod):
            self._open_stream(call, method)
            return
        if method.abandon and self._waits >= MAX_OPEN_WAITS:
            self._fail(call.stream_id, Status(RESOURCE_EXHAUSTED, f"{self._waits} calls wait already"))
            return
        try:
            answer = method.handler(decode(method.request, call.payload), call)
        except Exception as error:
            self.answer(call.stream_id, None, error)
            return
        if isinstance(answer, Message):
            self.answer(call.stream_id, answer, None)
            return
        open_call = OpenCall(self, call, method.abandon)
        self._calls[call.stream_id] = open_call
        self._waits += method.abandon
        open_call.run(answer)

    def answer(self, stream_id: int, message: Message | None, error: Exception | None) -> None:
        """Send what a call came to."""
        self._forget(stream_id)
        self._begin_soon()
        if error is not None:
            if is_a_bug(error):
                self._server.log.bug(error)
            self._fail(stream_id, status_of(error))
            return
        if self.closed or message is None:
            return
        try:
            self.send(self.protocol.respond(stream_id, encode(message)))
        except StreamGone:
            pass  # the caller broke the protocol on this stream meanwhile, and was told

    def _fail(self, stream_id: int, status: Status) -> None:
        if self.closed:
            return
        try:
            self.send(self.protocol.fail(stream_id, status))
        except StreamGone:
            pass

    def _abandon(self, stream_id: int) -> None:
        open_call = self._forget(stream_id)
        if open_call is not None:
            open_call.abandon()
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            stream.listener.gone()

    def _forget(self, stream_id: int) -> OpenCall | None:
        open_call = self._calls.pop(stream_id, None)
        self._waits -= open_call is not None and open_call.waits
        return open_call

    # --- streams -----------------------------------------------------------------------------------

    def _open_stream(self, call: Call, method: StreamMethod) -> None:
        if not call.remote_open:
            self._fail(call.stream_id, Status(INVALID_ARGUMENT, f"{call.method}: its caller must stream"))
        elif len(self._streams) >= MAX_STREAMS:
            text = f"{len(self._streams)} streams are open on this connection already"
            self._fail(call.stream_id, Status(RESOURCE_EXHAUSTED, text))
        else:
            self._streams[call.stream_id] = Stream(self, call.stream_id, method)

    def _hear(self, data: StreamData) -> None:
        stream = self._streams.get(data.stream_id)
        if stream is None:
            return  # of a call that takes no stream
        if data.payload is not None:
            stream.listener.message(data.payload)
        if data.closed:
            stream.heard_all = True
            if stream.ended:
                self.forget_stream(data.stream_id)
            stream.listener.closed()

    @property
    def has_room(self) -> bool:
        """True if nothing waits to be sent."""
        return not self._unsent

    def _tell_of_room(self) -> None:
        for stream in list(self._streams.values()):
            stream.listener.room()

    def limit_unsent(self, size: int) -> None:
        """Have the kernel hold no more than about `size` bytes for the caller; it counts its own with them."""
        self._peer.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, size)

    def forget_stream(self, stream_id: int) -> None:
        """Both sides have said all, or one has failed."""
        self._streams.pop(stream_id, None)
        self.protocol.forget(stream_id)

    def close(self) -> None:
        """The caller is gone: what only waited for it is called off, what was begun goes on."""
        if self.closed:
            return
        self.closed = True
        self._loop.unwatch(self._fd)
        self._peer.close()
        arrived, self._arrived = self._arrived, []
        for event in arrived:
            if isinstance(event, StreamData):
                self._hear(event)
        self._server.forget(self)
        calls, self._calls = self._calls, {}
        for open_call in calls.values():
            open_call.abandon()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.listener.gone()


class OpenCall:
    """A call whose handler has to wait, with the time that the caller gives it."""

    __slots__ = ("_call", "_connection", "_deadline", "_task", "_timed_out", "waits")

    def __init__(self, connection: Connection, call: Call, waits: bool) -> None:
        self._connection = connection
        self._call = call
        self.waits = waits
        self._deadline: Timer | None = None
        self._task: Task | None = None
        self._timed_out = False

    def run(self, generator: Generator[Any, Any, Message]) -> None:
        """Drive the handler, and hold it to the deadline."""
        loop = self._connection._loop  # noqa: SLF001 - a part of the connection, kept apart for its size
        self._task = spawn(loop, generator, self._finished)
        if self._call.timeout_ns > 0 and not self._task.done:
            self._deadline = loop.call_later(self._call.timeout_ns / 1e9, self._time_is_up)

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        if self.waits and self._task is not None:
            self._task.cancel()

    def _time_is_up(self) -> None:
        """Let the handler undo what it did; the caller is told that it took too long, whatever comes of that."""
        self._timed_out = True
        if self._task is not None:
            self._task.cancel(TimeoutError(f"{self._call.method}: the caller's deadline has passed"))

    def _finished(self, message: Message | None, error: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._timed_out and error is not None:
            error = TimeoutError(f"{self._call.method}: deadline exceeded: {error}")
        self._connection.answer(self._call.stream_id, message, error)
