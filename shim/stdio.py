"""Standard streams of a process without a terminal: its pipes, the client's fifos, and splice between.

A process could be given the client's fifos directly, and nothing would have to be copied. It gets pipes
all the same, as it does from containerd's own shim, because

* a grandchild that outlives an exec would keep the fifo open and its reader waiting for ever; a pipe of
  ours is closed at the exec's Delete, and the reader sees the end;
* a fifo is a file of the host: with it a container holds a descriptor on the host's /run, which
  open_by_handle_at(2) takes as a way in, and which SELinux and AppArmor judge by the file's label or path;
* the client's end stays open across a restart of containerd, whoever writes meanwhile.

The copying is splice(2): pages move from pipe to fifo inside the kernel, and nothing is buffered here.
The process is slowed down by its reader, and by nothing else. Terminals are `console`'s.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat

from runtime.errors import ManorError, Unsupported
from runtime.linux.fds import OwnedFd, close_all, pipe
from runtime.record import Record
from runtime.waiting import Sleep
from shim.loop import EPOLLIN, EPOLLOUT
from shim.tasks import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from runtime.waiting import Operation
    from shim.loop import Loop

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

        def close(self) -> None:
            """Stop copying and close everything."""


# How long a reader may take to open its end of an output fifo. containerd opens it before it asks for
# the process, so this is for a client that is slow, not for one that comes later.
READER_TIMEOUT_S = 10.0
# What one event may move before others have their turn: a full pipe of the usual size.
CHUNK_BYTES = 64 * 1024


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
    """Open stdin's fifo, without waiting for a writer. StdioError (also for what is no fifo), Unsupported."""
    path = _local_path("stdin", uri)
    try:
        fd = OwnedFd(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
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


def open_output(name: str, uri: str) -> Operation[Output]:
    """Open the fifo or file that `name` (stdout, stderr) goes to. StdioError, Unsupported.

    A fifo is opened for writing only when somebody reads it: a client that opens it late would miss what
    was written and closed before, and then wait for a writer that never comes.
    """
    if uri.startswith("file://"):
        return Output(_create_file(name, uri[len("file://") :]), None)
    path = _local_path(name, uri)
    fd = yield from _open_for_writing(name, path)
    try:
        mode = os.fstat(fd.fileno()).st_mode
        if stat.S_ISREG(mode):
            fcntl.fcntl(fd.fileno(), fcntl.F_SETFL, os.O_APPEND)
        if not stat.S_ISFIFO(mode):
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


def _create_file(name: str, path: str) -> OwnedFd:
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        fd = OwnedFd(os.open(path, flags, 0o644))
    except OSError as error:
        raise _cannot_open(name, path, error) from error
    if not stat.S_ISREG(os.fstat(fd.fileno()).st_mode):  # a fifo, say, that nobody reads
        fd.close()
        raise StdioError(f"open {name} {path}: not a regular file")
    os.set_blocking(fd.fileno(), True)
    return fd


def _local_path(name: str, uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    if scheme == "fifo":
        return rest
    raise Unsupported(f"open {name} {uri}: streams of kind {scheme} are not supported")


def _cannot_open(name: str, path: str, error: OSError) -> StdioError:
    return StdioError(f"open {name} {path}: {os.strerror(error.errno or 0)}")


# --- copying ---------------------------------------------------------------------------------------


class Flow:
    """Bytes from the pipe or fifo `source` to `sink`, until `source` ends or `sink` takes no more.

    Owns both, and the `keeper` that the client's side may need; `ended` is called once, when all are closed.
    """

    __slots__ = ("_ended", "_keeper", "_loop", "_move", "_sink", "_source", "closed")

    def __init__(
        self, loop: Loop, source: OwnedFd, sink: OwnedFd, keeper: OwnedFd | None, ended: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._keeper = keeper
        self._ended = ended
        self._move = self._splice if stat.S_ISFIFO(os.fstat(sink.fileno()).st_mode) else self._copy
        self.closed = False

    def start(self) -> None:
        """Begin to copy as soon as there is something."""
        self._loop.watch(self._source.fileno(), EPOLLIN, self._on_source)

    def drop_keeper(self) -> None:
        """Close the keeper: the source now ends when the client closes its side."""
        if self._keeper is not None:
            self._keeper.close()

    def _on_source(self, _events: int) -> None:
        try:
            moved = self._move()
        except BlockingIOError:
            self._wait()
            return
        except OSError:
            moved = 0  # nobody takes it any more (EPIPE), or the disk is full: the writer will hear of it
        if not moved:
            self.close()

    def _splice(self) -> int:
        source, sink = self._source.fileno(), self._sink.fileno()
        return os.splice(source, sink, CHUNK_BYTES, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)

    def _copy(self) -> int:
        """For a file or device: splice refuses append mode, and a disk takes its time anyway."""
        os.set_blocking(self._source.fileno(), False)
        data = os.read(self._source.fileno(), CHUNK_BYTES)
        left = memoryview(data)
        while left:
            left = left[os.write(self._sink.fileno(), left) :]
        return len(data)

    def _wait(self) -> None:
        """EAGAIN has two reasons: nothing to read, which epoll waits for anyway, or no room to write."""
        if self.pending():
            self._loop.unwatch(self._source.fileno())
            self._loop.watch(self._sink.fileno(), EPOLLOUT, self._on_room)

    def pending(self) -> bool:
        """True while there is something to move."""
        if self.closed:
            return False
        poll = select.poll()
        poll.register(self._source.fileno(), select.POLLIN)
        return any(events & select.POLLIN for _fd, events in poll.poll(0))

    def _on_room(self, _events: int) -> None:
        self._loop.unwatch(self._sink.fileno())
        self.start()

    def close(self) -> None:
        """Stop, close everything and say so; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        for fd in (self._source, self._sink):
            self._loop.unwatch(fd.fileno())
            fd.close()
        self.drop_keeper()
        self._ended()


class PipeIo:
    """The streams of a process without a terminal. Made by `open_pipes`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.drained = Outcome()
        self._input: Flow | None = None
        self._outputs: list[Flow] = []
        self._for_child: list[OwnedFd | None] = [None, None, None]

    def add_input(self, client: Input) -> None:
        """Make the pipe for stdin."""
        read_end, write_end = pipe()
        self._for_child[0] = read_end
        self._input = Flow(self._loop, client.fd, write_end, client.keeper, _nothing)

    def add_output(self, number: int, client: Output) -> None:
        """Make the pipe for stdout (1) or stderr (2)."""
        read_end, write_end = pipe()
        self._for_child[number] = write_end
        self._outputs.append(Flow(self._loop, read_end, client.fd, client.keeper, self._output_ended))

    def child_fds(self) -> tuple[int, int, int]:
        """What the process gets as 0, 1 and 2; -1 for /dev/null."""
        stdin, stdout, stderr = (-1 if fd is None else fd.fileno() for fd in self._for_child)
        return stdin, stdout, stderr

    def attach(self, console: OwnedFd | None) -> None:
        """The process has its ends: close ours of them, and begin to copy."""
        assert console is None
        self._close_child_ends()
        for flow in (self._input, *self._outputs):
            if flow is not None:
                flow.start()
        self._output_ended()

    def close_stdin(self) -> None:
        """Let the input end when the client closes its side."""
        if self._input is not None:
            self._input.drop_keeper()

    def resize(self, width: int, height: int) -> None:
        """There is no terminal: nothing happens."""

    def process_ended(self) -> None:
        """Outputs end when their last writer is gone, which need not be the process: nothing happens yet."""

    def pending(self) -> bool:
        """True while there is output that the client has not taken yet."""
        return any(flow.pending() for flow in self._outputs)

    def close(self) -> None:
        """Stop copying and close everything."""
        self._close_child_ends()
        for flow in (self._input, *self._outputs):
            if flow is not None:
                flow.close()

    def _close_child_ends(self) -> None:
        close_all(fd for fd in self._for_child if fd is not None)
        self._for_child = [None, None, None]

    def _output_ended(self) -> None:
        if not self.drained.done and all(flow.closed for flow in self._outputs):
            self.drained.set()


def open_pipes(loop: Loop, streams: Streams) -> Operation[PipeIo]:
    """Open what `streams` names and make pipes for it. StdioError or Unsupported, with nothing left open."""
    pipes = PipeIo(loop)
    try:
        if streams.stdin:
            pipes.add_input(open_input(streams.stdin))
        for number, name, uri in ((1, "stdout", streams.stdout), (2, "stderr", streams.stderr)):
            if uri:
                pipes.add_output(number, (yield from open_output(name, uri)))
    except BaseException:
        pipes.close()
        raise
    return pipes


def _nothing() -> None:
    pass
