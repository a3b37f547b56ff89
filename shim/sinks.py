"""The shim's side of a log: pipes that somebody else reads, a writer of ours or a client's program.

The process writes into these pipes without the shim in between, and a terminal's output is copied into them. So a log
takes none of the loop's time, is slowed down by its disk alone, and is finished by whoever writes it when the shim is
killed. What is written how is `writer`'s; programs are `logger`'s.
"""

from __future__ import annotations

import _socket
import fcntl
import os

from runtime.errors import ManorError, StageError, describe
from runtime.linux.fds import OwnedFd, close_all, pipe, receive_with_fds, send_with_fds, socketpair
from runtime.stages.channel import ChannelClosed, channel_pair
from runtime.stages.clone import clone_stage
from runtime.waiting import Readable
from shim.destinations import BINARY, BINARY_V2
from shim.errors import failed_precondition
from shim.log import ERROR, WARNING
from shim.logger import Logger
from shim.loop import EPOLLIN
from shim.stream_io import StreamOutput
from shim.tasks import Outcome, within
from shim.writer import FAILED, FINISH, FINISHED, LOST, REOPEN, REOPENED, STREAM_NAMES, Target, Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step
    from runtime.waiting import Operation
    from shim.destinations import Destination
    from shim.exchange import Exchange
    from shim.log import Log
    from shim.logger import Owner
    from shim.loop import Loop
    from shim.tasks import Steps

    class Sink(Protocol):
        """Where logs go, for one process."""

        drained: Outcome  # set when all that came has been taken care of

        def write_end(self, number: int) -> OwnedFd:
            """What stream `number` is to be written into; the caller's from now on. Once for each."""

        def reopen(self) -> Steps[None]:
            """Go on in the file that the path names from now on. FailedPrecondition, SinkError."""

        def finish(self) -> None:
            """The process has ended, and what it started has had its time: take what is there and end."""

        def pending(self) -> bool:
            """True while it is not done."""

        def close(self) -> None:
            """Let go of it: what it has, it takes care of by itself."""


LOG = "LOG"
# On a busy node the writer has its turn less often than its container: then a pipe of the usual size is full too soon.
PIPE_BYTES = 256 * 1024
# How long a file may take to be opened, at first and again.
OPEN_TIMEOUT_S = 10.0
# A writer that is killed is followed by another, so often; a container is not to die for want of its log.
MOST_WRITERS = 8


class SinkError(ManorError):
    """A log could not be opened; names stream, path and cause."""


class FileSink:
    """A file that a writer of ours fills from pipes, of which this side keeps the read ends for a writer to come."""

    def __init__(self, loop: Loop, log: Log, destination: Destination, numbers: tuple[int, ...]) -> None:
        self._loop = loop
        self._log = log
        self._destination = destination
        self._what = f"{STREAM_NAMES[numbers[0]]} {destination.path}"
        self.drained = Outcome()
        self._sources: dict[int, OwnedFd] = {}
        self._write_ends: dict[int, OwnedFd] = {}
        self._control = OwnedFd(-1)
        self._reopened: Outcome | None = (
            None  # what a reopen that is under way came to: a text, "" for success
        )
        self._writers = 0
        self._finishing = False
        self._numbers = numbers

    def open(self) -> Operation[None]:
        """Make the pipes, clone the writer and wait until it has opened its file. SinkError."""
        try:
            for number in self._numbers:
                self._sources[number], self._write_ends[number] = pipe()
                _widen(self._sources[number])
        except OSError as error:
            raise SinkError(f"open {self._what}: {describe(error)}") from error
        report = self._clone_writer()
        what = self._what
        try:
            yield Readable(report.fileno(), OPEN_TIMEOUT_S)
            report.receive()
        except ChannelClosed:
            self._loop.watch(self._control.fileno(), EPOLLIN, self._on_word)
        except StageError as error:
            raise SinkError(f"open {what}: {error.message}") from None
        except TimeoutError:
            raise SinkError(f"open {what}: not done within {OPEN_TIMEOUT_S:g} s") from None
        finally:
            report.close()

    def _clone_writer(self) -> Channel:
        """A writer for the pipes as they are; the channel tells what kept it from opening its file, or just ends."""
        self._writers += 1
        try:
            near, far = channel_pair("main", LOG)
        except OSError as error:
            raise SinkError(f"open {self._what}: {describe(error)}") from error
        try:
            self._control, control = socketpair()
        except OSError as error:
            near.close()
            far.close()
            raise SinkError(f"open {self._what}: {describe(error)}") from error
        sources = {number: fd.fileno() for number, fd in self._sources.items()}

        def write(step: Step) -> None:
            step.begin("open", self._destination.path)
            target = Target(self._destination)
            far.continue_with(control)
            Writer(control.fileno(), sources, self._destination, target).run()

        with control:
            try:
                _pid, pidfd = clone_stage(LOG, write, far, (control.fileno(), *sources.values()))
            except OSError as error:
                near.close()
                raise SinkError(f"open {self._what}: {describe(error)}") from error
            finally:
                far.close()
        os.close(pidfd)  # it ends by itself, and the reaper takes it then
        return near

    def write_end(self, number: int) -> OwnedFd:
        """What stream `number` is to be written into; the caller's from now on."""
        return self._write_ends.pop(number)

    # --- what the writer says ----------------------------------------------------------------------

    def _on_word(self, _events: int) -> None:
        try:
            message, _fds = receive_with_fds(self._control.fileno(), 4096, flags=_socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        word, _, text = message.partition(b" ")
        if word in (REOPENED, FAILED):
            if self._reopened is not None:
                self._reopened.set(text.decode("utf-8", "replace"))
        elif word == LOST:
            self._log.write(ERROR, f"output is lost: write {text.decode('utf-8', 'replace')}")
        elif word == FINISHED:
            self._end()
        else:
            self._writer_is_gone()

    def _writer_is_gone(self) -> None:
        """It was killed: another one reads on. Up to a read and a line of the log are lost with it."""
        self._loop.unwatch(self._control.fileno())
        self._control.close()
        if self._reopened is not None:
            self._reopened.set("the writer has gone")
        if self._writers >= MOST_WRITERS:
            self._log.write(ERROR, f"write {self._what}: {self._writers} writers were killed: given up")
            self._end()
            return
        self._log.write(WARNING, f"write {self._what}: the writer was killed: output may be missing")
        try:
            self._clone_writer().close()
        except SinkError as error:
            self._log.write(ERROR, str(error))
            self._end()
            return
        self._loop.watch(self._control.fileno(), EPOLLIN, self._on_word)
        if self._finishing:
            self._tell(FINISH)

    def _tell(self, word: bytes) -> None:
        try:
            send_with_fds(self._control.fileno(), word)
        except OSError:
            pass  # it has gone, and the loop will say so

    # --- what the process's life wants -------------------------------------------------------------

    def reopen(self) -> Steps[None]:
        """Go on in the file that the path names from now on, and return when nothing more is written elsewhere."""
        what = self._what
        while self._reopened is not None:  # for somebody else, who may have come before the file was moved
            if not (yield from within(self._loop, self._reopened, OPEN_TIMEOUT_S)):
                raise SinkError(
                    f"reopen {what}: the file before is still being written after {OPEN_TIMEOUT_S:g} s"
                )
        if self._control.closed:
            raise failed_precondition(f"reopen {what}: the log is closed")
        outcome = self._reopened = Outcome()
        outcome.subscribe(self._forget_reopen)
        self._tell(REOPEN)
        if not (yield from within(self._loop, outcome, OPEN_TIMEOUT_S)):
            raise SinkError(f"reopen {what}: not done within {OPEN_TIMEOUT_S:g} s")
        if outcome.value:
            raise SinkError(f"reopen {what}: {outcome.value}")

    def _forget_reopen(self, _value: object) -> None:
        self._reopened = None

    def finish(self) -> None:
        """Have the writer take what is in the pipes now, and end."""
        if not self._control.closed and not self._finishing:
            self._finishing = True
            self._tell(FINISH)

    def pending(self) -> bool:
        """True while the writer is at work."""
        return not self.drained.done

    def close(self) -> None:
        """Let the writer finish by itself, however long its disk takes."""
        self.finish()
        self._end()

    def _end(self) -> None:
        if not self._control.closed:
            self._loop.unwatch(self._control.fileno())
            self._control.close()
        close_all((*self._sources.values(), *self._write_ends.values()))
        if self._reopened is not None:
            self._reopened.set("the log is closed")
        if not self.drained.done:
            self.drained.set()


def _widen(end: OwnedFd) -> None:
    try:
        fcntl.fcntl(end.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass  # a user who has many pipes gets small ones (pipe(7), pipe-user-pages-soft)


def open_sink(
    loop: Loop,
    owner: Owner,
    destination: Destination,
    numbers: tuple[int, ...],
    log: Log,
    exchange: Exchange | None = None,
) -> Operation[Sink]:
    """Make pipes for the streams `numbers` (1, 2) and somebody who reads them. SinkError, with nothing left."""
    if destination.is_a_stream():
        assert exchange is not None
        stream = StreamOutput(loop, exchange, STREAM_NAMES[numbers[0]], destination.stream_id())
        try:
            yield from stream.open()
        except BaseException:
            stream.close()
            raise
        return stream
    if destination.scheme in (BINARY, BINARY_V2):
        logger = Logger(loop, destination, numbers)
        try:
            yield from logger.open(owner)
        except BaseException:
            logger.close()
            raise
        return logger
    sink = FileSink(loop, log, destination, numbers)
    try:
        yield from sink.open()
    except BaseException:
        sink.close()
        raise
    return sink
