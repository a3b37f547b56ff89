"""Bytes from one descriptor to another, many at once, for a process that waits in the foreground.

A relay reads only when what it has read before is written, so it slows its source down to the pace of its sink.
What goes into a pipe goes in parts that poll(2) promises room for: a sink that nobody reads stops its own relay
and no other.
"""

from __future__ import annotations

import os
import select
import stat

from runtime.linux.fds import OwnedFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_READ_BYTES = 65536
_PIPE_BYTES = 4096  # PIPE_BUF: for so many there is room where poll(2) says POLLOUT


class Relay:
    """Copies `source` to `sink` until the end of either. What is an OwnedFd is closed then, a number is borrowed.

    An owned descriptor is set not to block; a borrowed one is shared with others, whose mode it is too.
    """

    __slots__ = ("_part", "_sink", "_source", "_waiting", "ended")

    def __init__(self, source: OwnedFd | int, sink: OwnedFd | int) -> None:
        self._source, self._sink = source, sink
        self._waiting = memoryview(b"")
        self.ended = False
        for end in (source, sink):
            if isinstance(end, OwnedFd):
                os.set_blocking(end.fileno(), False)
        self._part = _part(_number(sink))

    def interest(self) -> tuple[int, int]:
        """The descriptor to wait for, and the event."""
        if self._waiting:
            return _number(self._sink), select.POLLOUT
        return _number(self._source), select.POLLIN

    def step(self) -> bool:
        """Go on with what `interest` named; False where nothing was to be done after all."""
        try:
            if not self._waiting:
                self._waiting = memoryview(os.read(_number(self._source), _READ_BYTES))
                if not self._waiting:
                    self.close()
                    return False
            else:
                self._waiting = self._waiting[os.write(_number(self._sink), self._waiting[: self._part]) :]
        except BlockingIOError:
            return False
        except OSError:  # EPIPE: nobody reads; EIO: nobody has the terminal open; EBADF: it never was open
            self.close()
            return False
        return True

    def close(self) -> None:
        """Copy no more; what is owned is closed, so that the other side sees the end."""
        self.ended = True
        for end in (self._source, self._sink):
            if isinstance(end, OwnedFd):
                end.close()


def _number(end: OwnedFd | int) -> int:
    return end if isinstance(end, int) else end.fileno()


def _part(sink: int) -> int:
    """How much may be written to `sink` at once."""
    try:
        mode = os.fstat(sink).st_mode
    except OSError:
        return _READ_BYTES  # closed: the first write will tell
    return _READ_BYTES if stat.S_ISREG(mode) or stat.S_ISBLK(mode) else _PIPE_BYTES


def step_all(
    relays: Iterable[Relay], others: tuple[int, ...] = (), timeout_ms: int | None = None
) -> set[int]:
    """Wait until a relay can go on or one of `others` is readable, and go on; the descriptors that were ready."""
    poll = select.poll()
    events: dict[int, int] = {}
    waiting = [(relay, relay.interest()) for relay in relays if not relay.ended]
    for _relay, (fd, event) in waiting:
        events[fd] = events.get(fd, 0) | event
    for fd, event in events.items():
        poll.register(fd, event)
    for fd in others:
        poll.register(fd, select.POLLIN)
    ready = dict(poll.poll(timeout_ms))
    for relay, (fd, event) in waiting:
        if ready.get(fd, 0) & (event | select.POLLHUP | select.POLLERR | select.POLLNVAL):
            relay.step()
    return set(ready)
