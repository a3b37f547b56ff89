"""A process with a terminal: the pty's master on one side, the client's fifos on the other.

Both directions are copied through this process, a few kilobytes at a time: what was read is passed on
before more is read, so a slow reader slows the terminal down, and a program that does not read its
terminal slows the client down. The terminal was made by the runtime, from the container's own devpts. Where its
output goes to a log, a pipe to that log (`sinks`) stands in the place of the client's fifo.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import termios
from _struct import Struct

from shim.errors import failed_precondition
from shim.loop import EPOLLIN, EPOLLOUT
from shim.sinks import open_sink
from shim.stdio import (
    NOBODY,
    SILENT,
    Input,
    Output,
    destination_of,
    open_input,
    open_output,
)
from shim.stream_io import StreamInput, StreamOutput, open_input_stream
from shim.tasks import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.linux.fds import OwnedFd
    from runtime.waiting import Operation
    from shim.exchange import Exchange
    from shim.log import Log
    from shim.logger import Owner
    from shim.loop import Loop
    from shim.sinks import Sink
    from shim.stdio import Streams
    from shim.tasks import Steps

# What is read at once, and the most that is held for a side that does not take it. A terminal gives 4 KiB.
CHUNK_BYTES = 16 * 1024
# After the last writer's exit the kernel may still have output on its way; it ends with EIO. This is for a
# terminal that does not end, because something in the background has it open.
DRAIN_AFTER_EXIT_S = 2.0
# What a terminal that is not read may hold for its reader; the rest is somebody's who came later.
MOST_HELD_BYTES = 64 * 1024
# A client that is gone for good (its fifo closed, CloseIO called) hangs up; its last line may be answered.
HANG_UP_AFTER_S = 1.0

_WINDOW_SIZE = Struct("HHHH")  # struct winsize: rows, columns, and two that nobody uses


class _Pump:
    """One direction: bytes that were read from `source` and that `sink` has not taken yet."""

    __slots__ = ("_pending", "ended", "moved", "sink", "source")

    def __init__(self, source: int, sink: int) -> None:
        self.source = source
        self.sink = sink
        self.ended = False
        self.moved = 0
        self._pending = b""

    @property
    def blocked(self) -> bool:
        """True while the sink has to take something before more is read."""
        return bool(self._pending)

    def fill(self) -> None:
        """Read once and pass on. Sets `ended` at the end of the source."""
        try:
            data = os.read(self.source, CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: the last one who had the terminal open is gone
                raise
            data = b""
        if not data:
            self.ended = True
        self._pending = data
        self.moved += len(data)
        self.flush()

    def flush(self) -> None:
        """Pass on what is pending, as far as the sink takes it; a sink that is gone takes everything."""
        try:
            written = os.write(self.sink, self._pending) if self._pending else 0
        except BlockingIOError:
            return
        except OSError:
            written = len(self._pending)
        self._pending = self._pending[written:]


class ConsoleIo:
    """The streams of a process with a terminal. Made by `open_console`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.drained = Outcome()
        self.client_in: Input | None = None
        self.client_out: Output | None = None
        self._master: OwnedFd | None = None
        self._size: tuple[int, int] | None = None
        self._sink: Sink | None = None
        self._stdin: StreamInput | None = None
        self._last_moment: int | None = None  # of the output: how much will have moved when it is cut off
        self._input: _Pump | None = None
        self._output: _Pump | None = None
        self._watched: dict[int, int] = {}

    def child_fds(self) -> tuple[int, int, int]:
        """Nothing: the runtime gives the process its terminal."""
        return -1, -1, -1

    def attach(self, console: OwnedFd | None) -> None:
        """Take the master of the process's terminal, and begin to copy."""
        assert console is not None
        self._master = console
        master = console.fileno()
        os.set_blocking(master, False)
        if self._size is not None:
            self.resize(*self._size)
        if self.client_in is not None:
            self._input = _Pump(self.client_in.fd.fileno(), master)
        if self.client_out is not None:
            self._output = _Pump(master, self.client_out.fd.fileno())
        self._rearm()

    def close_stdin(self) -> None:
        """The client will come no more: once it closes its side as well, the terminal hangs up."""
        if self.client_in is not None:
            self.client_in.keeper.close()

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size, now or as soon as there is one."""
        self._size = (width, height)
        if self._master is not None:
            size = _WINDOW_SIZE.pack(min(height, 0xFFFF), min(width, 0xFFFF), 0, 0)
            fcntl.ioctl(self._master.fileno(), termios.TIOCSWINSZ, size)

    def process_ended(self) -> None:
        """Give the terminal time for what is on its way, then end it."""
        self._loop.call_later(DRAIN_AFTER_EXIT_S, self._finish)

    def pending(self) -> bool:
        """True while there is output that the client has not taken yet."""
        if self._output is not None:
            return self._output.blocked
        return self._sink is not None and self._sink.pending()

    def log_to(self, sink: Sink) -> None:
        """Let a log take the output."""
        self._sink = sink
        write_end = sink.write_end(1)
        os.set_blocking(write_end.fileno(), False)
        self.client_out = Output(write_end, None)

    def type_from(self, stream: StreamInput) -> None:
        """Let stdin be a stream."""
        self._stdin = stream
        os.set_blocking(stream.read_end.fileno(), False)
        self.client_in = Input(stream.read_end, stream.keeper)

    def is_awaited(self) -> bool:
        """True while a client is there that has not taken all of a stream."""
        return isinstance(self._sink, StreamOutput) and self._sink.is_awaited()

    def reopen(self) -> Steps[None]:
        """Have the log go on in a new file. FailedPrecondition if there is none, SinkError."""
        if self._sink is None:
            raise failed_precondition("reopen: there is no log")
        yield from self._sink.reopen()

    def close(self) -> None:
        """Stop copying and close everything."""
        self._hang_up()
        self._end_output()
        if self._sink is not None:
            self._sink.close()
        if self._stdin is not None:
            self._stdin.close()

    def _finish(self) -> None:
        """Pass on what the terminal holds, as its reader takes it, and hang up."""
        if self._output is None:
            self._hang_up()
            if self._sink is not None:
                self._sink.finish()
        elif self._last_moment is None:
            self._last_moment = self._output.moved + MOST_HELD_BYTES
            self._settle()

    # --- copying -----------------------------------------------------------------------------------

    def _rearm(self) -> None:
        """Watch for what each direction can do next: read when nothing is pending, else write."""
        wanted: dict[int, int] = {}
        for pump in (self._input, self._output):
            if pump is not None and (pump.blocked or not pump.ended):
                fd, events = (pump.sink, EPOLLOUT) if pump.blocked else (pump.source, EPOLLIN)
                wanted[fd] = wanted.get(fd, 0) | events
        for fd in self._watched.keys() - wanted.keys():
            self._loop.unwatch(fd)
        for fd, events in wanted.items():
            if self._watched.get(fd) != events:
                self._loop.watch(fd, events, self._ready(fd))
        self._watched = wanted

    def _ready(self, fd: int) -> Callable[[int], None]:
        def ready(_events: int) -> None:
            for pump in (self._input, self._output):
                if pump is not None:
                    self._advance(pump, fd)
            self._settle()

        return ready

    def _advance(self, pump: _Pump, fd: int) -> None:
        if pump.blocked:
            if fd == pump.sink:
                pump.flush()
        elif fd == pump.source and not pump.ended:
            pump.fill()

    def _settle(self) -> None:
        """Act on ends: the output's closes the client's fifo, the input's hangs the terminal up."""
        output = self._output
        if output is not None and not output.blocked:
            if output.ended:
                self._end_output()
            elif self._last_moment is not None and self._is_at_its_last(output):
                self._hang_up()
        if self._input is not None and self._input.ended and not self._input.blocked:
            self._end_input()
            self._loop.call_later(HANG_UP_AFTER_S, self._finish)
        self._rearm()

    def _is_at_its_last(self, output: _Pump) -> bool:
        """True when the terminal is quiet, or has been read for long enough."""
        assert self._last_moment is not None
        poll = select.poll()
        poll.register(output.source, select.POLLIN)
        return output.moved >= self._last_moment or not poll.poll(0)

    def _end_input(self) -> None:
        self._input = None
        self._rearm()
        if self.client_in is not None:
            self.client_in.fd.close()
            self.client_in.keeper.close()
            self.client_in = None

    def _end_output(self) -> None:
        self._output = None
        self._rearm()
        if self.client_out is not None:
            self.client_out.fd.close()
            if self.client_out.keeper is not None:
                self.client_out.keeper.close()
            self.client_out = None
        if self._sink is not None:
            self._sink.drained.subscribe(self._output_taken)
        else:
            self._output_taken()

    def _output_taken(self, _value: object = None) -> None:
        if not self.drained.done:
            self.drained.set()

    def _hang_up(self) -> None:
        """Close the master: whoever still has the terminal open gets SIGHUP and an end of file."""
        self._end_input()
        if self._output is not None:
            self._output.fill()
            self._end_output()
        if self._master is not None:
            master, self._master = self._master, None
            master.close()


def open_console(
    loop: Loop, streams: Streams, owner: Owner = NOBODY, log: Log = SILENT, exchange: Exchange | None = None
) -> Operation[ConsoleIo]:
    """Open what `streams` names; stderr is no part of a terminal. StdioError and others."""
    console = ConsoleIo(loop)
    try:
        if streams.stdin:
            stream = yield from open_input_stream(loop, streams.stdin, exchange)
            if stream is not None:
                console.type_from(stream)
            else:
                console.client_in = open_input(streams.stdin)
        # Somebody has to read the terminal, or the process would stop when its buffer is full.
        destination = destination_of("stdout", streams.stdout or "/dev/null")
        if destination.is_a_log() or destination.is_a_stream():
            console.log_to((yield from open_sink(loop, owner, destination, (1,), log, exchange)))
        else:
            console.client_out = yield from open_output("stdout", destination.path)
    except BaseException:
        console.close()
        raise
    return console
