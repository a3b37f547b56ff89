"""LOG: a process that writes what a container says to a file, plain or as a container log, so that a shim never does.

A write to a file may take as long as its disk or file server likes. This process waits for it and reads on only
then, so that what is slowed down is who writes into the pipe, and nothing is held here but one read and one line.
It outlives its shim: what a container had said when its shim was killed is written. It ends when its pipes do.

    shim                                     LOG
      │ ◄────────────────── end of report ────│ the file is open (else: Failed)
      │ ─ reopen ────────────────────────────►│ between two lines
      │ ◄──────────── reopened │ failed WHY ──│ from now on nothing is written to what the path named before
      │ ─ finish ────────────────────────────►│ what is in the pipes now, and no more
      │ ◄──────── finished, and end of file ──│

A file that cannot be written (no space) holds the container up for WRITE_PATIENCE_S; what it says then is lost until
the file takes something again, and the log says how much. A container must not hang for a full disk for ever.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import termios
import time

from runtime.errors import InvalidArgument
from runtime.linux.fds import OwnedFd, receive_with_fds, send_with_fds
from shim.crilog import Clock, LineTagger
from shim.destinations import CRI_LOG, log_terms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.destinations import Destination

STREAM_NAMES = {1: "stdout", 2: "stderr"}
CHUNK_BYTES = 64 * 1024
WRITE_PATIENCE_S = 10.0
_RETRY_MS = 100

# What is said on the control socket: a message each, one word and perhaps a text.
REOPEN, FINISH = b"reopen", b"finish"
REOPENED, FAILED, LOST, FINISHED = b"reopened", b"failed", b"lost", b"finished"
_MOST_TEXT = 2000


class Target:
    """The file, opened for appending. OSError, InvalidArgument for what is no regular file."""

    def __init__(self, destination: Destination) -> None:
        self.path = destination.path
        self._is_log = destination.scheme == CRI_LOG
        self._file = OwnedFd(-1)
        self.open()

    def open(self) -> None:
        """Make it if need be, and its directories. A failure leaves what was open before."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        if self._is_log:  # its directory may be within reach of pods, who might put a link there
            flags |= os.O_NOFOLLOW
        os.makedirs(os.path.dirname(self.path), 0o755, exist_ok=True)
        file = OwnedFd(os.open(self.path, flags, 0o640 if self._is_log else 0o644))
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):  # a fifo, say, that nobody reads
            file.close()
            raise InvalidArgument("not a regular file")
        self._file.close()
        self._file = file
        self._identity = (found.st_dev, found.st_ino)

    def is_elsewhere(self) -> bool:
        """True if the path names no file any more, or another one."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self._identity

    def write(self, data: memoryview) -> int:
        """write(2)."""
        return os.write(self._file.fileno(), data)

    def take_back(self, count: int) -> None:
        """Cut off the last `count` bytes. OSError."""
        fd = self._file.fileno()
        os.ftruncate(fd, os.fstat(fd).st_size - count)


class Writer:
    """Copies `sources`, descriptors by the number of their stream, to `target`."""

    def __init__(
        self, control: int, sources: dict[int, int], destination: Destination, target: Target
    ) -> None:
        self._control = control
        self._target = target
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._clock = Clock()
        self._open: dict[int, LineTagger | None] = {}
        terms = log_terms(destination) if destination.scheme == CRI_LOG else None
        self._watching = terms is not None and terms.watch
        for number, fd in sources.items():
            name = STREAM_NAMES[number]
            os.set_blocking(fd, False)  # a container may take out of its pipe what we were told is in there
            self._open[fd] = LineTagger(name, self._clock, terms.max_line_bytes) if terms else None
            self._poll.register(fd, select.POLLIN)
        self._finishing = False
        self._lost = 0  # since a write last succeeded
        self._is_log = terms is not None

    def run(self) -> None:
        """Until every source has ended, or we are told to finish."""
        while self._open and not self._finishing:
            for fd, _events in self._poll.poll():
                if fd == self._control:
                    self._obey()
                elif fd in self._open:
                    self._copy(fd, CHUNK_BYTES)
        for fd in list(self._open):
            self._copy_what_is_there(fd)
        self._say(FINISHED)

    def _copy_what_is_there(self, fd: int) -> None:
        owed = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")
        while owed > 0 and fd in self._open:
            owed -= self._copy(fd, min(owed, CHUNK_BYTES))
        if fd in self._open:
            self._end(fd)

    def _copy(self, fd: int, most: int) -> int:
        try:
            data = os.read(fd, most)
        except BlockingIOError:
            return most  # it is not there any more
        if not data:
            self._end(fd)
            return 0
        tagger = self._open[fd]
        self._write(data if tagger is None else tagger.feed(data, time.time_ns()))
        return len(data)

    def _end(self, fd: int) -> None:
        tagger = self._open.pop(fd)
        self._poll.unregister(fd)
        if tagger is not None:
            self._write(tagger.end(time.time_ns()))
        os.close(fd)  # whoever still writes hears of it before the shim does

    # --- the file ----------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        if self._watching and data and self._target.is_elsewhere():
            self._try_to_reopen()
        if self._lost and data:
            data = self._gap() + data
        left = memoryview(data)
        least, deadline = len(data) + 1, 0.0
        while left:
            try:
                left = left[self._target.write(left) :]
            except OSError as error:
                left = self._at_a_line(data, left)
                if len(left) < least:  # at first, and whenever it has taken something
                    least = len(left)
                    deadline = time.monotonic() + (0 if self._lost else WRITE_PATIENCE_S)
                if time.monotonic() >= deadline:
                    self._give_up(len(left), error)
                    return
                self._wait_a_little()
        self._lost = 0

    def _at_a_line(self, data: bytes, left: memoryview) -> memoryview:
        """Take back the part of a line that was written before the file was full: each file has whole ones."""
        written = len(data) - len(left)
        start = data.rfind(b"\n", 0, written) + 1
        if not self._is_log or start == written:
            return left
        try:
            self._target.take_back(written - start)
        except OSError:
            return left
        return memoryview(data)[start:]

    def _wait_a_little(self) -> None:
        """Before the next try; a reopen, which may help, is done at once."""
        control = select.poll()
        if self._control >= 0:
            control.register(self._control, select.POLLIN)
        if control.poll(_RETRY_MS):
            self._obey()

    def _give_up(self, count: int, error: OSError) -> None:
        if not self._lost:
            self._say(LOST, f"{self._target.path}: {os.strerror(error.errno or 0)}")
        self._lost += count

    def _gap(self) -> bytes:
        """What a reader is told where something is missing; nothing in a file whose form is not ours."""
        if not self._is_log:
            return b""
        return b"%b stderr F manor: about %d bytes of this log could not be written and are lost\n" % (
            self._clock.stamp(time.time_ns()),
            self._lost,
        )

    # --- what the shim wants -----------------------------------------------------------------------

    def _obey(self) -> None:
        word, _fds = receive_with_fds(self._control, _MOST_TEXT)
        if word == REOPEN:
            failure = self._try_to_reopen()
            self._say(FAILED if failure else REOPENED, failure)
        elif word == FINISH:
            self._finishing = True
        else:  # the shim has gone: nobody tells us what to do any more
            self._poll.unregister(self._control)
            self._control = -1

    def _try_to_reopen(self) -> str:
        """Why it could not be, "" if it was."""
        try:
            self._target.open()
        except OSError as error:
            return os.strerror(error.errno or 0)
        except InvalidArgument as error:
            return str(error)
        return ""

    def _say(self, word: bytes, text: str = "") -> None:
        if self._control < 0:
            return
        try:
            send_with_fds(self._control, b"%b %b" % (word, text.encode("utf-8", "replace")[:_MOST_TEXT]))
        except OSError:
            pass  # the shim has gone
