"""Bytes on their way from a process's pipe to the client's fifo, or back.

The copying is splice(2): pages move from pipe to fifo inside the kernel, and nothing is buffered here. The process is
slowed down by its reader, and by nothing else.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import termios

from shim.loop import EPOLLIN, EPOLLOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.linux.fds import OwnedFd
    from shim.loop import Loop

# What one event may move before others have their turn: a full pipe of the usual size.
CHUNK_BYTES = 64 * 1024


def _nothing() -> None:
    pass


class Flow:
    """Bytes from the pipe or fifo `source` to `sink`, until `source` ends or `sink` takes no more.

    Owns both, and the `keeper` that the client's side may need; `ended` is called once, when all are closed.
    """

    __slots__ = ("_ended", "_keeper", "_left", "_loop", "_move", "_owed", "_sink", "_source", "closed")

    def __init__(
        self,
        loop: Loop,
        source: OwnedFd,
        sink: OwnedFd,
        keeper: OwnedFd | None,
        ended: Callable[[], None] = _nothing,
    ) -> None:
        self._loop = loop
        self._source = source
        self._sink = sink
        self._keeper = keeper
        self._ended = ended
        self._left = b""  # of what was read for a device
        self._owed: int | None = None  # how much is still to be moved, once that has been settled
        self._move = self._splice if stat.S_ISFIFO(os.fstat(sink.fileno()).st_mode) else self._copy
        self.closed = False

    def start(self) -> None:
        """Begin to copy as soon as there is something."""
        self._loop.watch(self._source.fileno(), EPOLLIN, self._on_source)

    def drop_keeper(self) -> None:
        """Close the keeper: the source now ends when the client closes its side."""
        if self._keeper is not None:
            self._keeper.close()

    def finish(self) -> None:
        """Move what is in the source now, and end."""
        if not self.closed and self._owed is None:
            there = fcntl.ioctl(self._source.fileno(), termios.FIONREAD, bytes(4))
            self._owed = int.from_bytes(there, "little") + len(self._left)
            self._pay(0)

    def _pay(self, moved: int) -> None:
        if self._owed is not None:
            self._owed -= moved
            if self._owed <= 0:
                self.close()
            else:
                self._loop.call_soon(self._on_room, 0)

    def _on_source(self, _events: int) -> None:
        try:
            moved = self._move()
        except BlockingIOError:
            self._wait()
            return
        except OSError:
            moved = 0  # nobody takes it any more (EPIPE): the writer will hear of it
        if moved:
            self._pay(moved)
        else:
            self.close()

    def _splice(self) -> int:
        source, sink = self._source.fileno(), self._sink.fileno()
        return os.splice(source, sink, CHUNK_BYTES, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)

    def _copy(self) -> int:
        """For a device, which need not know splice."""
        if not self._left:
            os.set_blocking(self._source.fileno(), False)
            self._left = os.read(self._source.fileno(), CHUNK_BYTES)
        written = os.write(self._sink.fileno(), self._left) if self._left else 0
        self._left = self._left[written:]
        return written

    def _wait(self) -> None:
        """EAGAIN has two reasons: nothing to read, which epoll waits for anyway, or no room to write."""
        if self.pending():
            self._loop.unwatch(self._source.fileno())
            self._loop.watch(self._sink.fileno(), EPOLLOUT, self._on_room)
        elif self._owed is not None:
            self.close()

    def pending(self) -> bool:
        """True while there is something to move."""
        if self.closed or self._left:
            return not self.closed
        poll = select.poll()
        poll.register(self._source.fileno(), select.POLLIN)
        return any(events & select.POLLIN for _fd, events in poll.poll(0))

    def _on_room(self, _events: int) -> None:
        if not self.closed:
            self._loop.unwatch(self._sink.fileno())
            self.start()
            if self._owed is not None:  # who is left behind may have taken out of the pipe what was counted
                self._on_source(0)

    def close(self) -> None:
        """Stop, close everything and say so; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        for fd in (self._source, self._sink):
            self._loop.unwatch(fd.fileno())
            fd.close()
        self.drop_keeper()
        ended, self._ended = self._ended, _nothing
        del self._move  # of what holds us nothing is held by us any longer
        ended()
