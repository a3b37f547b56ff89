"""Standard streams of a process without a terminal: its pipes, and the client's fifos.

A process could be given the client's fifos directly, and nothing would have to be copied. It gets pipes
all the same, as it does from containerd's own shim, because

* a grandchild that outlives an exec would keep the fifo open and its reader waiting for ever; a pipe of
  ours is closed a while after the exec's exit, and the reader sees the end;
* a fifo is a file of the host: with it a container holds a descriptor on the host's /run, which
  open_by_handle_at(2) takes as a way in, and which SELinux and AppArmor judge by the file's label or path;
* the client's end stays open across a restart of containerd, whoever writes meanwhile.

What is copied from one to the other is `flow`'s; logs, which go to files and programs, are written by processes
of their own (`sinks`), terminals are `console`'s.
"""

from __future__ import annotations

import errno
import os
import stat

from runtime.errors import ManorError
from runtime.linux.fds import OwnedFd, close_all, pipe
from runtime.record import Record
from runtime.waiting import Sleep
from shim.destinations import FIFO, FILE, Destination, parse
from shim.errors import failed_precondition
from shim.flow import Flow
from shim.log import Log
from shim.logger import Owner
from shim.sinks import open_sink
from shim.stream_io import StreamInput, StreamOutput, open_input_stream
from shim.tasks import Outcome
from shim.writer import STREAM_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from runtime.waiting import Operation
    from shim.exchange import Exchange
    from shim.loop import Loop, Timer
    from shim.sinks import Sink
    from shim.tasks import Steps

    class ProcessIo(Protocol):
        """The streams of one process, whatever they are made of."""

        drained: Outcome  # set when everything the process wrote has been passed on

        def child_fds(self) -> tuple[int, int, int]:
            """What the process gets as 0, 1 and 2; -1 for /dev/null."""

        def attach(self, console: OwnedFd | None) -> None:
            """The process has been made: begin to copy."""

        def close_stdin(self) -> None:
            """The client will send no more: the process sees the end of its input once it has read it all."""

        def resize(self, width: int, height: int) -> None:
            """Set the terminal's size in characters; nothing happens without one."""

        def process_ended(self) -> None:
            """The process has ended; what it started may go on to write."""

        def pending(self) -> bool:
            """True while there is output that the client has not taken yet."""

        def is_awaited(self) -> bool:
            """True while a client is there that has not taken all, and that must be waited for: see `task_service`."""

        def reopen(self) -> Steps[None]:
            """Go on in new files where there are logs. FailedPrecondition without any, SinkError."""

        def close(self) -> None:
            """Stop copying and close everything."""


# How long a reader may take to open its end of an output fifo. containerd opens it before it asks for
# the process, so this is for a client that is slow, not for one that comes later.
READER_TIMEOUT_S = 10.0
# How long what a process has started may go on to write after its exit. Then what is in the pipes is passed on, as
# long as the reader takes, and its end is told: somebody in the background keeps no client waiting for ever.
DRAIN_AFTER_EXIT_S = 2.0


NOBODY = Owner("", "")
SILENT = Log("", "")


class StdioError(ManorError):
    """A stream could not be opened; names stream, path and cause."""


class Streams(Record):
    """Where the client wants the streams: paths or URIs as containerd sends them, "" for none."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Output(Record):
    """The client's side of stdout or stderr. `keeper` is the read end that outlives the client's."""

    fd: OwnedFd
    keeper: OwnedFd | None


class Input(Record):
    """The client's side of stdin. `keeper` is a write end: without it a client that goes ends the input."""

    fd: OwnedFd
    keeper: OwnedFd


# --- opening ---------------------------------------------------------------------------------------


def open_input(uri: str) -> Input:
    """Open stdin's fifo, without waiting for a writer. StdioError (also for what is no fifo), InvalidArgument …"""
    destination = parse("stdin", uri)
    path = destination.path
    if destination.is_a_log():
        raise StdioError(f"open stdin {uri}: not a fifo")
    try:
        fd = OwnedFd(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
        try:
            if not stat.S_ISFIFO(os.fstat(fd.fileno()).st_mode):
                raise StdioError(f"open stdin {path}: not a fifo")
            keeper = OwnedFd(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except BaseException:
            fd.close()
            raise
    except OSError as error:
        raise _cannot_open("stdin", path, error) from error
    return Input(fd, keeper)


def open_output(name: str, path: str) -> Operation[Output]:
    """Open the fifo, or device, that `name` (stdout, stderr) goes to. StdioError.

    A fifo is opened for writing only when somebody reads it: a client that opens it late would miss what
    was written and closed before, and then wait for a writer that never comes.
    """
    fd = yield from _open_for_writing(name, path)
    try:
        if not stat.S_ISFIFO(os.fstat(fd.fileno()).st_mode):
            return Output(fd, None)
        return Output(fd, OwnedFd(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)))
    except OSError as error:
        fd.close()
        raise _cannot_open(name, path, error) from error


def _open_for_writing(name: str, path: str) -> Operation[OwnedFd]:
    waited_s, delay_s = 0.0, 0.001
    while True:
        try:
            return OwnedFd(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            if error.errno != errno.ENXIO:  # a fifo without a reader
                raise _cannot_open(name, path, error) from error
        if waited_s >= READER_TIMEOUT_S:
            raise StdioError(f"open {name} {path}: no reader came within {READER_TIMEOUT_S:g} s")
        yield Sleep(delay_s)
        waited_s, delay_s = waited_s + delay_s, min(delay_s * 2, 0.05)


def destination_of(name: str, uri: str) -> Destination:
    """Where output goes; a path may be that of a file. InvalidArgument, Unsupported."""
    destination = parse(name, uri)
    try:
        if destination.scheme == FIFO and stat.S_ISREG(os.stat(destination.path).st_mode):
            return Destination(FILE, destination.path)
    except (OSError, ValueError):
        pass  # opening it will say why
    return destination


def plan_outputs(streams: Streams) -> list[tuple[Destination, tuple[int, ...]]]:
    """Where stdout (1) and stderr (2) go. A log that stdout goes to takes stderr too, unless that goes elsewhere."""
    out = destination_of("stdout", streams.stdout) if streams.stdout else None
    err = destination_of("stderr", streams.stderr) if streams.stderr else None
    if out is not None and out.is_a_log() and err in (None, out):
        return [(out, (1, 2))]
    return [(to, (number,)) for number, to in ((1, out), (2, err)) if to is not None]


def _cannot_open(name: str, path: str, error: OSError) -> StdioError:
    return StdioError(f"open {name} {path}: {os.strerror(error.errno or 0)}")


# --- the streams of a process -------------------------------------------------------------------------


class PipeIo:
    """The streams of a process without a terminal. Made by `open_pipes`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.drained = Outcome()
        self._input: Flow | StreamInput | None = None
        self._flows: list[Flow] = []
        self._sinks: list[Sink] = []
        self._for_child: list[OwnedFd | None] = [None, None, None]
        self._drain: Timer | None = None

    def add_input(self, client: Input) -> None:
        """Make the pipe for stdin."""
        read_end, write_end = _pipe_beside(client.fd, client.keeper)
        self._for_child[0] = read_end
        self._input = Flow(self._loop, client.fd, write_end, client.keeper)

    def add_input_stream(self, stream: StreamInput) -> None:
        """Let stdin be a stream, whose pipe the process gets."""
        self._for_child[0] = stream.read_end
        self._input = stream

    def add_output(self, number: int, client: Output) -> None:
        """Make the pipe for stdout (1) or stderr (2)."""
        read_end, write_end = _pipe_beside(client.fd, client.keeper)
        self._for_child[number] = write_end
        self._flows.append(Flow(self._loop, read_end, client.fd, client.keeper, self._output_ended))

    def add_sink(self, numbers: tuple[int, ...], sink: Sink) -> None:
        """Let a log take some of the outputs."""
        for number in numbers:
            self._for_child[number] = sink.write_end(number)
        self._sinks.append(sink)

    def child_fds(self) -> tuple[int, int, int]:
        """What the process gets as 0, 1 and 2; -1 for /dev/null."""
        stdin, stdout, stderr = (-1 if fd is None else fd.fileno() for fd in self._for_child)
        return stdin, stdout, stderr

    def attach(self, console: OwnedFd | None) -> None:
        """The process has its ends: close ours of them, and begin to copy."""
        assert console is None
        self._close_child_ends()
        for flow in (self._input, *self._flows):
            if flow is not None:
                flow.start()
        for sink in self._sinks:
            sink.drained.subscribe(self._output_ended)
        self._output_ended()

    def close_stdin(self) -> None:
        """Let the input end when the client closes its side."""
        if self._input is not None:
            self._input.drop_keeper()

    def resize(self, width: int, height: int) -> None:
        """There is no terminal: nothing happens."""

    def process_ended(self) -> None:
        """Outputs end when their last writer is gone, which need not be the process; or in a while."""
        if not self.drained.done and self._drain is None:
            self._drain = self._loop.call_later(DRAIN_AFTER_EXIT_S, self._finish)

    def _finish(self) -> None:
        for part in self._outputs():
            part.finish()

    def _outputs(self) -> list[Flow | Sink]:
        return [*self._flows, *self._sinks]

    def pending(self) -> bool:
        """True while there is output that the client has not taken yet."""
        return any(part.pending() for part in self._outputs())

    def is_awaited(self) -> bool:
        """True while a client is there that has not taken all of a stream."""
        return any(isinstance(sink, StreamOutput) and sink.is_awaited() for sink in self._sinks)

    def reopen(self) -> Steps[None]:
        """Have the logs go on in new files. FailedPrecondition if there are none, SinkError."""
        if not self._sinks:
            raise failed_precondition("reopen: there is no log")
        for sink in self._sinks:
            yield from sink.reopen()

    def close(self) -> None:
        """Stop copying and close everything."""
        if self._drain is not None:
            self._drain.cancel()
        self._close_child_ends()
        if self._input is not None:
            self._input.close()
        for part in self._outputs():
            part.close()

    def _close_child_ends(self) -> None:
        close_all(fd for fd in self._for_child if fd is not None)
        self._for_child = [None, None, None]

    def _output_ended(self, _value: object = None) -> None:
        done = all(flow.closed for flow in self._flows) and all(sink.drained.done for sink in self._sinks)
        if done and not self.drained.done:
            self.drained.set()
            if self._drain is not None:
                self._drain.cancel()


def open_pipes(
    loop: Loop, streams: Streams, owner: Owner = NOBODY, log: Log = SILENT, exchange: Exchange | None = None
) -> Operation[PipeIo]:
    """Open what `streams` names and make pipes for it. StdioError and others, with nothing left open."""
    pipes = PipeIo(loop)
    try:
        if streams.stdin:
            stream = yield from open_input_stream(loop, streams.stdin, exchange)
            if stream is not None:
                pipes.add_input_stream(stream)
            else:
                pipes.add_input(open_input(streams.stdin))
        for destination, numbers in plan_outputs(streams):
            if destination.is_a_log() or destination.is_a_stream():
                sink = yield from open_sink(loop, owner, destination, numbers, log, exchange)
                pipes.add_sink(numbers, sink)
            else:
                for number in numbers:
                    name = STREAM_NAMES[number]
                    pipes.add_output(number, (yield from open_output(name, destination.path)))
    except BaseException:
        pipes.close()
        raise
    return pipes


def _pipe_beside(*others: OwnedFd | None) -> tuple[OwnedFd, OwnedFd]:
    """A pipe. OSError, with `others` closed: nobody else has them yet."""
    try:
        return pipe()
    except OSError:
        close_all(fd for fd in others if fd is not None)
        raise
