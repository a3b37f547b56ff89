"""The only reaper of a shim: it collects every child that ends and tells who asked for it.

The shim is a sub-reaper, so orphans of its containers become its children too; nobody asks for those
and they go silently. A process may end before the one who started it has got round to asking: exits of
claimed pids are kept until they are asked for, and while an operation is under way (`hold`) the latest are,
because it may learn a pid only after that process has ended. The latest, because an exec may make children of ours
(CLONE_PARENT) as fast as it likes for as long as it can hold up an operation.

SIGCHLD is enough to be woken: a sibling made by CLONE_PARENT inherits the exit signal of the stage that
cloned it, and execve sets it anyway (kernel/fork.c, copy_process; fs/exec.c, de_thread).
"""

from __future__ import annotations

import _signal
import os
import time

from runtime.linux.constants import WALL
from runtime.linux.process import set_child_subreaper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.loop import Loop

# The most that are collected in one turn: a container may end with thousands of processes at once.
EXITS_PER_TURN = 64
# Of those that nobody has claimed (yet). What claims comes a few exits later, and a pid is used again after thousands.
MOST_UNCLAIMED = 1024


class ExitWatch:
    """Somebody who wants to know when `pid` has ended."""

    __slots__ = ("_ended", "_reaper", "pid")

    def __init__(self, reaper: Reaper, pid: int, ended: Callable[[int, int], None]) -> None:
        self._reaper = reaper
        self.pid = pid
        self._ended: Callable[[int, int], None] | None = ended

    def tell(self, status: int, when_ns: int) -> None:
        """The process has ended."""
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(status, when_ns)

    def cancel(self) -> None:
        """Not wanted any more; a second call does nothing."""
        if self._ended is not None:
            self._ended = None
            self._reaper.forget(self)


class Hold:
    """As long as one is open, the latest exits are kept, whoever's they are."""

    __slots__ = ("_reaper",)

    def __init__(self, reaper: Reaper) -> None:
        self._reaper: Reaper | None = reaper

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_failure: object) -> None:
        if self._reaper is not None:
            self._reaper.end_hold()
            self._reaper = None


class Reaper:
    """Make it after the fork, one for a loop: it takes SIGCHLD and everything waitpid(2) can give."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._watches: dict[int, list[ExitWatch]] = {}
        self._holds = 0
        self._claimed: set[int] = set()
        self._kept: dict[int, tuple[int, int]] = {}  # pid: (wait status, when), claimed and not asked for yet
        self._unclaimed: dict[int, tuple[int, int]] = {}  # the same, in the order in which they came
        set_child_subreaper()
        loop.reaper = self
        loop.on_signal(_signal.SIGCHLD, self.reap)

    def hold(self) -> Hold:
        """Keep exits until this is left; `with reaper.hold():` stands around what starts a process."""
        self._holds += 1
        return Hold(self)

    @property
    def holding(self) -> bool:
        """True while something is being started."""
        return self._holds > 0

    def end_hold(self) -> None:
        """One hold less; with the last one goes what nobody claimed."""
        self._holds -= 1
        if not self._holds:
            self._unclaimed.clear()

    def claim(self, pid: int) -> None:
        """The exit of `pid` will be asked for: keep it until then."""
        self._claimed.add(pid)
        kept = self._unclaimed.pop(pid, None)
        if kept is not None:
            self._kept[pid] = kept

    def watch(self, pid: int, ended: Callable[[int, int], None]) -> ExitWatch:
        """Call `ended(wait status, time in ns since 1970)` once `pid` has ended; soon, if it has already.

        ChildProcessError when it is no child of ours, or was reaped with nobody interested.
        """
        watch = ExitWatch(self, pid, ended)
        kept = self._kept.pop(pid, None) or self._unclaimed.pop(pid, None)
        if kept is not None:
            self._claimed.discard(pid)
            self._loop.call_soon(watch.tell, *kept)
            return watch
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT | WALL)
        self._watches.setdefault(pid, []).append(watch)
        return watch

    def forget(self, watch: ExitWatch) -> None:
        """Called by a watch that was called off."""
        watches = self._watches.get(watch.pid, [])
        if watch in watches:
            watches.remove(watch)
            if not watches:
                del self._watches[watch.pid]

    def reap(self) -> None:
        """Collect what has ended. __WALL: whatever its exit signal is."""
        for _ in range(EXITS_PER_TURN):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | WALL)
            except ChildProcessError:
                return
            if not pid:
                return
            self._tell(pid, status, time.time_ns())
        self._loop.call_soon(self.reap)

    def _tell(self, pid: int, status: int, when_ns: int) -> None:
        watches = self._watches.pop(pid, ())
        if watches:
            # Told once and forgotten: the pid may be another process's by the next turn.
            self._claimed.discard(pid)
        elif pid in self._claimed:
            self._kept[pid] = (status, when_ns)
        elif self._holds:
            self._unclaimed.pop(pid, None)
            self._unclaimed[pid] = (status, when_ns)
            if len(self._unclaimed) > MOST_UNCLAIMED:
                del self._unclaimed[next(iter(self._unclaimed))]
        for watch in watches:
            watch.tell(status, when_ns)


def exit_code(status: int) -> int:
    """The wait status as one number, as shells and containerd have it: 128 + the signal of a killed one."""
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
