"""The ttrpc door of a shim: sockets on the loop, calls to handlers, answers back.

Only a peer with our own uid and gid is let in. A connection that sends faster than it reads its answers,
or has too many calls open, is not read from until it has caught up, so what it can make us hold is
bounded; what all of them can is `callers`' business. What the methods do is the services'; what the bytes
mean is `ttrpc`'s.
"""

from __future__ import annotations

import _socket
import gc
import os
from _struct import Struct

from runtime.linux.image import trim_heap
from runtime.record import replace
from shim.api.codec import decode, encode
from shim.api.message import Message
from shim.api.ttrpc import Status
from shim.callers import FREE_BYTES, Callers
from shim.errors import is_a_bug, status_of
from shim.log import WARNING
from shim.loop import EPOLLIN, EPOLLOUT
from shim.open_calls import Method, OpenCall, OpenCalls
from shim.streams import Stream, StreamMethod
from shim.tasks import Outcome
from shim.ttrpc.connection import Call, Refused, ServerConnection, StreamData, StreamGone
from shim.ttrpc.frames import ProtocolError
from shim.ttrpc.status import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, unknown_method, unknown_service

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.linux.fds import OwnedFd
    from shim.log import Log
    from shim.loop import Loop

READ_BYTES = 64 * 1024
ACCEPTS_PER_TURN = 16
MAX_OPEN_CALLS = 512  # that do something: they end by themselves, and more are read then
# One for each process, for as long as it lives: more are refused, or nobody could ask for its end.
MAX_OPEN_WAITS = 4096
MAX_STREAMS = 64  # of one connection; containerd has one connection a stream
MAX_UNSENT_BYTES = 8 << 20
# What a call takes that waits for its turn, besides what it brings.
CALL_BYTES = 512
# A crowd that is turned away makes one line of the log in that time.
QUIET_S = 1.0

_CREDENTIALS = Struct("iII")  # struct ucred: pid, uid, gid


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
        self.callers = Callers(self._note, self._relieved)
        self.open_calls = OpenCalls(self.callers.count_calls)
        self.answered = 0  # calls of all callers, but for those that have failed
        self._notes = 0  # since the last line of the log
        self._deserted: Outcome | None = None
        self._listen()

    def _listen(self) -> None:
        self.loop.watch(self._listener.fileno(), EPOLLIN, self._accept)

    def _accept(self, _events: int) -> None:
        accepted = 0
        try:
            for accepted in range(ACCEPTS_PER_TURN):  # noqa: B007 -- so many were let in before it failed
                fd, _address = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
                self._let_in(_socket.socket(fileno=fd))
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors
            # accept(2) takes one before it looks whether anybody waits, which is certain only of the first of a turn:
            # the one who has just come, and had no time to say anything, would be closed to make room for nobody.
            if accepted:
                return
            if not self.callers.drop_silent(
                f"accept: {error.strerror}"
            ):  # no new callers until there are some
                self._note(f"accept: {error.strerror}")
                self.loop.unwatch(self._listener.fileno())
                self.loop.call_later(1.0, self._listen)

    def _let_in(self, peer: _socket.socket) -> None:
        _pid, uid, gid = _CREDENTIALS.unpack(
            peer.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if (uid, gid) != (os.geteuid(), os.getegid()):
            self._note(f"a connection of uid {uid} gid {gid} was refused")
            peer.close()
        elif not self.callers.has_room():
            self._note(f"a connection was refused: there are {len(self.callers)} others")
            peer.close()
        else:
            peer.setblocking(False)
            self.callers.join(Connection(self, peer))

    def _note(self, text: str) -> None:
        """Log what may come in crowds: the first, and how many more there were when it is quiet again."""
        if not self._notes:
            self.log.write(WARNING, text)
            self.loop.call_later(QUIET_S, self._note_others)
        self._notes += 1

    def _note_others(self) -> None:
        others, self._notes = self._notes - 1, 0
        if others:
            self._note(f"{others} more of what was logged last")

    def _relieved(self) -> None:
        """Much that was held is not any more: give the memory back, when those who come now have been served."""
        self.loop.call_later(QUIET_S, _give_back)

    def forget(self, connection: Connection) -> None:
        """Called by a connection that has ended."""
        self.callers.leave(connection)
        if self._deserted is not None and not self.callers and not self._deserted.done:
            self._deserted.set()

    def deserted(self) -> Outcome:
        """Set once nobody is connected; what was true then may not be so any more for who is told."""
        if self._deserted is None or self._deserted.done:
            self._deserted = Outcome()
        if not self.callers:
            self._deserted.set()
        return self._deserted

    def close(self) -> None:
        """Stop serving: nobody is let in any more, and whoever is in is cut off."""
        if self.loop.is_watched(self._listener.fileno()):
            self.loop.unwatch(self._listener.fileno())
        self._listener.close()
        for connection in self.callers.all():
            connection.close()


def _give_back() -> None:
    gc.collect()  # takes the interpreter's free lists as well, each of which keeps whole pools of memory
    trim_heap()


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
        self._arrived_bytes = 0
        self.held = 0  # `callers`
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
                self._arrived_bytes += _size(event)
        if self._arrived:
            self._begin_next()
        elif not self.closed:
            self._rearm()
        self._account()

    def _account(self) -> None:
        """Have what is held for this caller counted, which may be the end of it."""
        if not self.closed:
            held = len(self._unsent) + self._arrived_bytes + self.protocol.held
            if held != self.held:
                self._server.callers.hold(self, held)

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
        self._account()

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
        self._arrived_bytes -= _size(event)
        self._server.callers.has_called(self)
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
        if excess := self._excess(call, method):
            self._fail(call.stream_id, Status(RESOURCE_EXHAUSTED, excess))
            return
        size = len(call.payload)
        try:
            message = decode(method.request, call.payload)
            if size > FREE_BYTES:
                call = replace(call, payload=b"")  # for as long as the call is open, once is enough
            answer = method.handler(message, call)
        except Exception as error:
            self.answer(call.stream_id, None, error)
            return
        if isinstance(answer, Message):
            self.answer(call.stream_id, answer, None)
            return
        open_call = OpenCall(self._server.open_calls, call, method.abandon, size, self.answer)
        self._calls[call.stream_id] = open_call
        self._waits += method.abandon
        open_call.run(self._loop, answer)

    def _excess(self, call: Call, method: Method) -> str:
        """What there is too much of for this call to be begun; "" if there is not."""
        if method.abandon and self._waits >= MAX_OPEN_WAITS:
            return f"{self._waits} calls wait already"
        large = len(call.payload) > FREE_BYTES
        return self._server.open_calls.excess(method.abandon, large)

    def answer(self, stream_id: int, message: Message | None, error: Exception | None) -> None:
        """Send what a call came to."""
        self._forget(stream_id)
        self._begin_soon()
        if error is not None:
            if is_a_bug(error):
                self._server.log.bug(error)
            self._fail(stream_id, status_of(error))
            return
        self._server.answered += 1
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
        self._arrived_bytes = 0
        self.protocol = ServerConnection()  # with what has come of half a message
        self._server.forget(self)
        calls, self._calls = self._calls, {}
        for open_call in calls.values():
            open_call.abandon()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.listener.gone()


def _size(event: Call | StreamData) -> int:
    """What something takes in memory that waits for its turn, more or less."""
    size = CALL_BYTES + len(event.payload or b"")
    return size + len(event.service) + len(event.method) if isinstance(event, Call) else size
