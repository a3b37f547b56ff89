"""The event loop of a shim: one thread, one epoll, calls in turns.

Owns readiness of file descriptors, timers and wake-ups by signals. It knows nothing of processes but
that somebody, the reaper, can tell when one has ended; generators are driven by `tasks`, on top of it.
Work is done in turns of bounded size, so that a noisy descriptor or a crowd of ready calls delays the
others by one turn and no more.
"""

from __future__ import annotations

import _signal
import os
import select
import time
from _heapq import heapify, heappop, heappush
from _socket import SOCK_STREAM

from runtime.linux.fds import socketpair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    class Watch(Protocol):
        """Something that was asked for and can be called off."""

        def cancel(self) -> None:
            """It is not wanted any more; a second call does nothing."""

    class ExitSource(Protocol):
        """Who knows when a child has ended."""

        def claim(self, pid: int) -> None:
            """Keep the exit of `pid` until it is asked for."""

        def watch(self, pid: int, ended: Callable[[int, int], None]) -> Watch:
            """Call `ended(status, time in ns)` once, when the child `pid` has ended."""


EPOLLIN = select.EPOLLIN
EPOLLOUT = select.EPOLLOUT
EPOLLPRI = select.EPOLLPRI

# The most that one turn does of each kind. More is not faster: epoll hands the rest out next time.
EVENTS_PER_TURN = 64
STEPS_PER_TURN = 64


# epoll_wait(2) waits for 24 days at most, and Python for no time that is longer; a timer may be centuries off.
MOST_PATIENCE_S = 24 * 3600.0


class Timer:
    """A call at a time to come; `cancel` calls it off."""

    __slots__ = ("_loop", "callback", "sequence", "when")

    def __init__(self, loop: Loop, when: float, sequence: int, callback: Callable[[], None]) -> None:
        self._loop = loop
        self.when = when
        self.sequence = sequence
        self.callback: Callable[[], None] | None = callback

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self.sequence) < (other.when, other.sequence)

    def cancel(self) -> None:
        """It will not be called; a second call does nothing."""
        if self.callback is not None:
            self.callback = None
            self._loop.count_cancelled_timer()


class Loop:
    """Make it after the fork: an epoll that parent and child share would wake both."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._unwatched: set[int] = set()  # during this turn: events already fetched for them are stale
        self._ready: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._timers: list[Timer] = []
        self._timer_sequence = 0
        self._cancelled_timers = 0
        self._stopped = False
        self._signal_handlers: dict[int, Callable[[], None]] = {}
        self._wakeup_read = -1
        self.reaper: ExitSource | None = None
        self.on_failure: Callable[[Exception], None] = _raise

    # --- descriptors -------------------------------------------------------------------------------

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(ready events)` whenever `fd` is ready, until `unwatch`; call again to change either.

        An error or a hang-up is reported whether asked for or not. PermissionError for what epoll
        cannot watch because it is always ready: regular files, directories.
        """
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`; to be called before it is closed. Nothing happens if it was not watched."""
        if self._watched.pop(fd, None) is not None:
            self._unwatched.add(fd)
            self._epoll.unregister(fd)

    def is_watched(self, fd: int) -> bool:
        """True if somebody waits for `fd`."""
        return fd in self._watched

    # --- calls to come -----------------------------------------------------------------------------

    def call_soon(self, callback: Callable[..., None], *arguments: Any) -> None:
        """Call it in the next turn."""
        self._ready.append((callback, arguments))

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call it when `delay_s` seconds have passed on the monotonic clock."""
        self._timer_sequence += 1
        timer = Timer(self, time.monotonic() + delay_s, self._timer_sequence, callback)
        heappush(self._timers, timer)
        return timer

    def count_cancelled_timer(self) -> None:
        """A timer was called off, as most are, long before it is due: they go as a majority."""
        self._cancelled_timers += 1
        if self._cancelled_timers > 64 and self._cancelled_timers * 2 > len(self._timers):
            self._timers = [timer for timer in self._timers if timer.callback is not None]
            heapify(self._timers)
            self._cancelled_timers = 0

    # --- signals -----------------------------------------------------------------------------------

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call `callback` in a turn after signal `number` has come; several may be seen as one."""
        if self._wakeup_read < 0:
            # No pipe: whoever counts a shim's pipes is after those of processes that are gone.
            self._wakeup_read, write_end = (end.release() for end in socketpair(SOCK_STREAM))
            os.set_blocking(self._wakeup_read, False)
            os.set_blocking(write_end, False)
            # A full one loses a byte, not the wake-up: it is readable already.
            _signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
            self.watch(self._wakeup_read, EPOLLIN, self._signals_came)
        self._signal_handlers[number] = callback
        _signal.signal(number, _ignore_signal)

    def _signals_came(self, _events: int) -> None:
        try:
            numbers = os.read(self._wakeup_read, 256)
        except BlockingIOError:
            return
        for number in sorted(set(numbers)):
            handler = self._signal_handlers.get(number)
            if handler is not None:
                self._call(handler)

    # --- turns -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Take turns until `stop`."""
        self._stopped = False
        while not self._stopped:
            self.turn()

    def stop(self) -> None:
        """End `run` after this turn."""
        self._stopped = True

    def turn(self) -> None:
        """Wait until something is to be done, and do a bounded share of it."""
        self._unwatched.clear()
        for fd, events in self._epoll.poll(self._patience(), EVENTS_PER_TURN):
            callback = self._watched.get(fd)
            # A number that was unwatched in this turn may belong to another file by now.
            if callback is not None and fd not in self._unwatched:
                self._call(callback, events)
        self._call_due_timers()
        ready, self._ready = self._ready[:STEPS_PER_TURN], self._ready[STEPS_PER_TURN:]
        for call, arguments in ready:
            self._call(call, *arguments)

    def _patience(self) -> float | None:
        if self._ready:
            return 0
        while self._timers and self._timers[0].callback is None:
            heappop(self._timers)
            self._cancelled_timers -= 1
        if not self._timers:
            return None
        return min(max(0.0, self._timers[0].when - time.monotonic()), MOST_PATIENCE_S)

    def _call_due_timers(self) -> None:
        now = time.monotonic()
        for _ in range(STEPS_PER_TURN):
            if not self._timers or self._timers[0].when > now:
                return
            timer = heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._cancelled_timers -= 1
            else:
                self._call(callback)

    def _call(self, callback: Callable[..., None], *arguments: Any) -> None:
        """The one place where an exception of a callback is caught: it ends that callback only."""
        try:
            callback(*arguments)
        except Exception as error:
            self.on_failure(error)

    def close(self) -> None:
        """Give back the epoll and the wake-up pipe, and the signals to their defaults."""
        if self._wakeup_read >= 0:
            write_end = _signal.set_wakeup_fd(-1)
            for number in self._signal_handlers:
                _signal.signal(number, _signal.SIG_DFL)
            os.close(write_end)
            os.close(self._wakeup_read)
            self._wakeup_read = -1
        self._epoll.close()


def _ignore_signal(_number: int, _frame: object) -> None:
    """A Python handler must exist, or nothing is written to the wake-up pipe."""


def _raise(error: Exception) -> None:
    raise error
