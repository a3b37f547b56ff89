"""The standard streams of a process as streams over the shim's own door: a pipe on one side, a client on the other.

    client                                            shim
    WindowUpdate(n)                 ───────►          output: n bytes more may be sent
                                    ◄───────          Data, never more than there is room for
                                    ◄───────          end: the process has said all
    end, or it hangs up             ───────►          it has taken all

    Data                            ───────►          stdin, never more than there is room for
                                    ◄───────          WindowUpdate(n): n bytes more have been taken
    end                             ───────►          the process reads the end of its input

The process writes into a pipe, and from there a piece at a time is read, sent and forgotten: who reads slowly slows
the process down, and the shim holds one piece. A client that is lost is waited for, with the pipe as the only buffer:
containerd opens its streams again when it was restarted. What the kernel had taken for it is lost with it, which is
why that is kept small; a piece that had not left us as a whole is sent again, from its first byte.
"""

from __future__ import annotations

import fcntl
import os
import termios

from runtime.errors import ManorError, describe
from runtime.linux.fds import OwnedFd, close_all, pipe
from runtime.waiting import Sleep
from shim.api.codec import CodecError, decode, encode
from shim.api.streaming import Data, WindowUpdate
from shim.api.ttrpc import Status
from shim.api.types import Any, pack, unpack
from shim.destinations import parse
from shim.errors import failed_precondition
from shim.exchange import superseded
from shim.loop import EPOLLIN, EPOLLOUT
from shim.streams import DEAF
from shim.tasks import Outcome
from shim.ttrpc.status import INVALID_ARGUMENT, RESOURCE_EXHAUSTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.waiting import Operation
    from shim.exchange import Exchange
    from shim.loop import Loop, Timer
    from shim.streams import Stream
    from shim.tasks import Steps

# What is sent at once. containerd's reader counts only what fits its buffer, which has this size: with larger pieces
# it would come to believe that nothing was sent, and make no more room.
PIECE_BYTES = 32 * 1024
# What a client may send before the process has taken any of it, and how much must be taken for it to be told so.
WINDOW_BYTES = 64 * 1024
UPDATE_BYTES = 32 * 1024
# What the kernel may hold for a reader. It doubles it, and counts some bytes of its own for each piece.
KERNEL_BYTES = 8 * 1024
# How long a client may take to open a stream that its process is to have. containerd opens it before it asks for the
# process, so this is for one that was restarted in between.
CLIENT_TIMEOUT_S = 10.0
# How long a client that has been told the end may take to hang up, which says that it has taken everything.
FAREWELL_S = 2.0
_MOST_ROOM = (1 << 31) - 1


class StreamError(ManorError):
    """A stream could not be opened; names it and the cause."""


class _End:
    """What both directions have in common: a client that comes and goes."""

    def __init__(self, loop: Loop, exchange: Exchange, name: str, stream_id: str) -> None:
        self._loop = loop
        self._exchange = exchange
        self._what = f"{name} streaming_id={stream_id}"
        self._id = stream_id
        self._stream: Stream | None = None
        self._left = False  # the client has said all: nobody comes in its place

    def _wait_for_client(self) -> Operation[None]:
        """Take the stream, and wait for who opens it, and may have left it already. StreamError, AlreadyExists."""
        self._exchange.claim(self._id, self)
        waited_s, delay_s = 0.0, 0.001
        while self._stream is None and not self._left:
            if waited_s >= CLIENT_TIMEOUT_S:
                limit = f"{CLIENT_TIMEOUT_S:g} s"
                raise StreamError(f"open {self._what}: no client opened it at this shim within {limit}")
            yield Sleep(delay_s)
            waited_s, delay_s = waited_s + delay_s, min(delay_s * 2, 0.05)

    def attach(self, stream: Stream) -> None:
        """A client has come, perhaps in the place of another."""
        if self._stream is not None:
            before = self._stream
            self.gone()
            superseded(before, self._id)
        self._stream = stream

    def gone(self) -> None:
        """The client was lost."""
        self._stream = None

    def _refuse(self, code: int, text: str) -> None:
        """The client has done what it must not: it is as good as lost."""
        stream = self._stream
        if stream is not None:
            self.gone()
            stream.fail(Status(code, f"{self._what}: {text}"))

    def _hang_up(self) -> None:
        """Say to the client that this is all."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.listener = DEAF
            stream.end()

    def closed(self) -> None:
        """The client has said all."""

    def message(self, payload: bytes) -> None:
        """The client has said something."""

    def room(self) -> None:
        """What was sent has left."""


class StreamOutput(_End):
    """One output of a process. Of the same shape as a log (`sinks`): who writes has a pipe."""

    def __init__(self, loop: Loop, exchange: Exchange, name: str, stream_id: str) -> None:
        super().__init__(loop, exchange, name, stream_id)
        self.drained = Outcome()
        self._source = OwnedFd(-1)
        self._write_end = OwnedFd(-1)
        self._room = 0  # that the client has, in bytes
        self._held = b""  # what was read and has not left us
        self._leaving = 0  # how much of it is in the frame that is being sent
        self._owed: int | None = None  # how much is still to be passed on, once that has been settled
        self._said_all = False
        self._farewell: Timer | None = None

    def open(self) -> Operation[None]:
        """Make the pipe, and wait for the client. StreamError, AlreadyExists, OSError."""
        self._source, self._write_end = pipe()
        os.set_blocking(self._source.fileno(), False)
        yield from self._wait_for_client()

    def write_end(self, _number: int) -> OwnedFd:
        """What the process writes into; the caller's from now on."""
        return OwnedFd(self._write_end.release())

    def reopen(self) -> Steps[None]:
        """A stream is no file."""
        yield from ()
        raise failed_precondition(f"reopen: {self._what} is no log")

    def is_awaited(self) -> bool:
        """True while a client is there that has not taken everything."""
        return self._stream is not None and not self.drained.done

    # --- the client --------------------------------------------------------------------------------

    def attach(self, stream: Stream) -> None:
        """A client has come: it gets what the one before it did not."""
        super().attach(stream)
        stream.limit_unsent(KERNEL_BYTES)
        self._room, self._left = 0, False
        if self._said_all:
            stream.end()

    def message(self, payload: bytes) -> None:
        """The client has made room."""
        try:
            update = unpack(decode(Any, payload), WindowUpdate).update
        except CodecError as error:
            self._refuse(INVALID_ARGUMENT, str(error))
            return
        if update < 0 or self._room + update > _MOST_ROOM:
            self._refuse(INVALID_ARGUMENT, f"a window of {self._room} and {update} bytes")
            return
        self._room += update
        self._send()

    def room(self) -> None:
        """What was sent has left."""
        self._count_sent()
        self._send()

    def closed(self) -> None:
        """The client says that it wants no more, or that it has it all."""
        self._hang_up()
        self._left = True
        self._without_client()

    def gone(self) -> None:
        """The client was lost. A part of a message is nothing to it."""
        if self._stream is not None and self._stream.has_room:
            self._count_sent()
        self._leaving = 0
        super().gone()
        self._without_client()

    def _without_client(self) -> None:
        if self._said_all or (self._left and self._owed is not None):
            self._end()
        else:
            self._rearm()

    # --- copying -----------------------------------------------------------------------------------

    def _rearm(self) -> None:
        if self._source.closed:
            return
        fd, wanted = self._source.fileno(), self._stream is not None and self._room > 0 and not self._held
        if wanted != self._loop.is_watched(fd):
            if wanted:
                self._loop.watch(fd, EPOLLIN, self._on_source)
            else:
                self._loop.unwatch(fd)
        if wanted and self._owed is not None:
            self._loop.call_soon(self._on_source, 0)

    def _on_source(self, _events: int) -> None:
        if self._source.closed or not self._loop.is_watched(self._source.fileno()):
            return
        try:
            self._held = os.read(self._source.fileno(), min(PIECE_BYTES, self._room))
        except BlockingIOError:
            if self._owed is not None:  # who is left behind may have taken out of the pipe what was counted
                self._say_all()
            return
        if self._held:
            self._send()
        else:
            self._say_all()

    def _send(self) -> None:
        """Send what is held, if there is somebody with room for it and nothing else is being sent."""
        stream = self._stream
        if stream is not None and self._held and self._room and not self._leaving:
            piece = self._held[: self._room]
            self._room -= len(piece)
            self._leaving = len(piece)
            stream.send(encode(pack(Data(piece))))
            if stream.has_room:
                self._count_sent()
        self._rearm()

    def _count_sent(self) -> None:
        count, self._leaving = self._leaving, 0
        self._held = self._held[count:]
        if self._owed is not None and count:
            self._owed -= count
            if self._owed <= 0 and not self._held:
                self._say_all()

    def _say_all(self) -> None:
        """Nothing more comes: tell the client, and wait until it says that it has it."""
        if not self._said_all:
            self._said_all = True
            self._close_source()
            if self._stream is None:
                self._end()
            else:
                self._stream.end()
                self._farewell = self._loop.call_later(FAREWELL_S, self._end)

    def finish(self) -> None:
        """Send what is in the pipe now, and end."""
        if self._owed is None and not self._said_all:
            self._owed = self._waiting()
            if self._owed <= 0 or self._left:
                self._say_all()
            else:
                self._rearm()

    def pending(self) -> bool:
        """True while there is output that no client has taken."""
        return not self._said_all and self._waiting() > 0

    def _waiting(self) -> int:
        there = fcntl.ioctl(self._source.fileno(), termios.FIONREAD, bytes(4))
        return int.from_bytes(there, "little") + len(self._held)

    def _close_source(self) -> None:
        if not self._source.closed:
            self._loop.unwatch(self._source.fileno())
            self._source.close()

    def _end(self) -> None:
        self._said_all = True
        self._close_source()
        if self._farewell is not None:
            self._farewell.cancel()
        if not self.drained.done:
            self.drained.set()

    def close(self) -> None:
        """Let go of it: a client that is there is told that this was all."""
        self._exchange.release(self._id, self)
        self._write_end.close()
        self._hang_up()
        self._end()


class StreamInput(_End):
    """The stdin of a process: `read_end` is what it reads, and `keeper` keeps its input from ending with a client.

    Its input ends when the client says that this was all; or, as with a fifo, when the keeper is closed and no client
    is there.
    """

    def __init__(self, loop: Loop, exchange: Exchange, stream_id: str) -> None:
        super().__init__(loop, exchange, "stdin", stream_id)
        self.read_end = OwnedFd(-1)
        self.keeper = OwnedFd(-1)
        self._sink = OwnedFd(-1)  # open while there is a client, or something of it
        self._held = bytearray()  # what came and is not in the pipe
        self._promised = 0  # how much the client may send

    def open(self) -> Operation[None]:
        """Make the pipe, and wait for the client. StreamError, AlreadyExists, OSError."""
        self.read_end, self.keeper = pipe()
        os.set_blocking(self.keeper.fileno(), False)  # and so for its copies
        yield from self._wait_for_client()

    # --- the client --------------------------------------------------------------------------------

    def attach(self, stream: Stream) -> None:
        """A client has come. It may send although nobody reads any more: it could not be told to stop."""
        super().attach(stream)
        if self._sink.closed and not self.keeper.closed:
            try:
                self._sink = OwnedFd(fcntl.fcntl(self.keeper.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))
            except OSError as error:
                self._refuse(RESOURCE_EXHAUSTED, describe(error))
                return
        self._promised = 0
        self._make_room()

    def message(self, payload: bytes) -> None:
        """The client has sent something."""
        try:
            data = unpack(decode(Any, payload), Data).data
        except CodecError as error:
            self._refuse(INVALID_ARGUMENT, str(error))
            return
        if len(data) > self._promised:
            text = f"{len(data)} bytes came where there was room for {self._promised}"
            self._refuse(RESOURCE_EXHAUSTED, text)
            return
        self._promised -= len(data)
        if not self._sink.closed:
            self._held += data
        self._write()

    def closed(self) -> None:
        """The client has sent all."""
        self._hang_up()
        self._left = True
        self._write()

    def gone(self) -> None:
        """The client was lost: another one may go on."""
        super().gone()
        self._write()

    def _make_room(self) -> None:
        room = WINDOW_BYTES - len(self._held) - self._promised
        if self._stream is not None and (room >= UPDATE_BYTES or (room > 0 and not self._promised)):
            self._promised += room
            self._stream.send(encode(pack(WindowUpdate(room))))

    # --- copying -----------------------------------------------------------------------------------

    def start(self) -> None:
        """The process has its end: nothing more is needed."""

    def drop_keeper(self) -> None:
        """The input ends when the client has gone."""
        self.keeper.close()

    def _write(self, _events: int = 0) -> None:
        """Put into the pipe what it takes, and wait for it to take the rest."""
        try:
            while self._held:
                del self._held[: os.write(self._sink.fileno(), self._held)]
        except BlockingIOError:
            self._loop.watch(self._sink.fileno(), EPOLLOUT, self._write)
        except OSError:
            self._held.clear()  # nobody reads it any more
            self._close_sink()
        else:
            if not self._sink.closed:
                self._loop.unwatch(self._sink.fileno())
            if self._stream is None:
                self._close_sink()
                if self._left:
                    self.keeper.close()
        self._make_room()

    def _close_sink(self) -> None:
        if not self._sink.closed:
            self._loop.unwatch(self._sink.fileno())
            self._sink.close()

    def close(self) -> None:
        """Let go of it."""
        self._exchange.release(self._id, self)
        self._held.clear()
        self._close_sink()
        close_all((self.read_end, self.keeper))
        self._hang_up()


def open_input_stream(loop: Loop, uri: str, exchange: Exchange | None) -> Operation[StreamInput | None]:
    """Take the stream that stdin comes on; None if it does not come on one. StreamError, InvalidArgument …"""
    destination = parse("stdin", uri)
    if not destination.is_a_stream():
        return None
    assert exchange is not None
    stream = StreamInput(loop, exchange, destination.stream_id())
    try:
        yield from stream.open()
    except BaseException:
        stream.close()
        raise
    return stream
