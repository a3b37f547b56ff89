"""Noticing that the kernel has killed something of a container for want of memory, and whose limit was hit.

cgroup v1: an eventfd registered with memory.oom_control (cgroup-v1/memory.rst, 10). It comes before the kill,
also for a kill in another container when it is a parent's limit that was hit, and when the cgroup is removed;
so the counter of kills decides, and is looked at again a little later. cgroup v2: a watch on memory.events,
which epoll reports as exceptional (POLLPRI) after a change and until it is read again (cgroup-v2.rst,
"memory.events").

Whose limit: in v2 the cgroup that hit its limit counts it as `oom` in memory.events.local. In v1 nobody does;
memory.failcnt counts every time that a limit was met, also when memory could be had in the end, so that the
nearest cgroup where it has grown is a good guess and no more.
"""

from __future__ import annotations

import os

from runtime.cgroups.files import parse_pairs, read_file
from runtime.linux.fds import OwnedFd, close_all
from shim.journal import Oom
from shim.loop import EPOLLIN, EPOLLPRI

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cgroups.cgroup import Cgroup
    from runtime.cgroups.layout import Layout
    from shim.loop import Loop, Timer

CONTAINER = "container"  # its own limit, or that of a cgroup it has made
POD = "pod"  # its parent's, which is the pod's
ABOVE = "above"  # that of a cgroup above the pod's, or the machine has no more

_MAX_EVENTS_FILE = 4096
# When to look for the kill that v1 has announced. A victim that is stuck in the kernel may take longer: whoever
# asks at its exit will see it.
_LOOKS_S = (0.005, 0.02, 0.1, 0.5, 2.0)
# The files of v1 that count meetings with a limit: of memory, and of memory and swap, which is charged first.
_V1_COUNTERS = ("memory.failcnt", "memory.memsw.failcnt")


class OomWatch:
    """Calls `killed` after each kill in `cgroup`, until it is closed; never without a memory controller.

    `kills` is how many there have been, `last` the latest, None before the first.
    """

    def __init__(self, loop: Loop, layout: Layout, cgroup: Cgroup, killed: Callable[[], None]) -> None:
        self._loop = loop
        self._killed = killed
        self._fds: list[OwnedFd] = []
        self._look_again: Timer | None = None
        self._version = 0
        self._places: list[str] = []  # the container's directory, its parent's, and so on below the root
        self._met: list[int] = []  # how often each has hit its limit
        self.kills = 0
        self._unclaimed = False
        self.last: Oom | None = None
        memory = layout.find("memory")
        directory = cgroup.paths.get(memory.name) if memory is not None else None
        if memory is None or directory is None:
            return
        self._version = memory.version
        self._places = _upwards(directory, memory.mountpoint)
        try:
            self.kills = self._count() or 0
            self._met = [self._limit_met(place) for place in self._places]
            if memory.version == 1:
                self._watch_v1(directory)
            else:
                self._watch_v2(directory)
        except OSError:
            self.close()  # the container has ended already and its cgroup with it

    # --- being told -------------------------------------------------------------------------------------

    def _watch_v1(self, directory: str) -> None:
        notify = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._fds.append(notify)
        with (
            OwnedFd(os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)) as control,
            OwnedFd(os.open(f"{directory}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)) as register,
        ):
            os.write(register.fileno(), f"{notify.fileno()} {control.fileno()}".encode())
        self._loop.watch(notify.fileno(), EPOLLIN, lambda _events: self._on_v1(notify.fileno()))

    def _on_v1(self, number: int) -> None:
        os.eventfd_read(number)
        try:
            counted = self._count() is not None
        except OSError:  # it was the removal of the cgroup
            self.close()
            return
        if not counted:  # before Linux 4.13: the announcement is all there is
            self._note()
        elif not self.look():
            self._look_later(0)

    def _look_later(self, turn: int) -> None:
        if self._look_again is not None:
            self._look_again.cancel()
        self._look_again = self._loop.call_later(_LOOKS_S[turn], lambda: self._look_on(turn))

    def _look_on(self, turn: int) -> None:
        self._look_again = None
        if not self.look() and turn + 1 < len(_LOOKS_S):
            self._look_later(turn + 1)

    def _watch_v2(self, directory: str) -> None:
        events = OwnedFd(os.open(f"{directory}/memory.events", os.O_RDONLY | os.O_CLOEXEC))
        self._fds.append(events)
        os.pread(events.fileno(), _MAX_EVENTS_FILE, 0)
        self._loop.watch(events.fileno(), EPOLLPRI, lambda _events: self._on_v2(events.fileno()))

    def _on_v2(self, number: int) -> None:
        try:
            os.pread(number, _MAX_EVENTS_FILE, 0)
        except OSError:  # ENODEV: the cgroup is gone
            self.close()
            return
        self.look()  # it also comes for a limit that was reached and kept to

    # --- looking ----------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Look at the counter of kills and tell of new ones; True if there were any.

        To be called when a process has been killed, before its exit is told: the news of both come by
        different ways, and either may be first.
        """
        if not self._fds:
            return False
        try:
            count = self._count()
        except OSError:
            return False
        if count is None or count <= self.kills:
            return False
        self.kills = count
        self._note()
        return True

    def claim(self) -> Oom | None:
        """The latest kill, if there was one since the last call: for the exit of a process that was killed."""
        self.look()
        unclaimed, self._unclaimed = self._unclaimed, False
        return self.last if unclaimed else None

    def _note(self) -> None:
        self.last, self._unclaimed = self._whose_limit(), True
        self._killed()

    def _count(self) -> int | None:
        """How many the kernel has killed in the container, by any limit; None where it does not say."""
        file = "memory.oom_control" if self._version == 1 else "memory.events"
        return parse_pairs(read_file(f"{self._places[0]}/{file}")).get("oom_kill")

    def _whose_limit(self) -> Oom:
        """Compare with the last time, from the container upwards."""
        found = -1
        for number, place in enumerate(self._places):
            try:
                met = self._limit_met(place)
            except OSError:  # a cgroup above is gone, and with it what was in it, soon
                continue
            if met > self._met[number] and found < 0:
                found = number
            self._met[number] = met
        if found < 0:
            return Oom(ABOVE)
        return Oom((CONTAINER, POD)[found] if found < 2 else ABOVE, self._places[found])

    def _limit_met(self, place: str) -> int:
        if self._version == 1:
            return sum(_number(f"{place}/{file}") for file in _V1_COUNTERS)
        # Of the container with all that is below, since that is its own making; of the others themselves only.
        local = place != self._places[0]
        try:
            text = read_file(f"{place}/memory.events.local" if local else f"{place}/memory.events")
        except FileNotFoundError:  # before Linux 5.2
            text = read_file(f"{place}/memory.events")
        return parse_pairs(text).get("oom", 0)

    def close(self) -> None:
        """Stop watching; a second call does nothing."""
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        for fd in self._fds:
            self._loop.unwatch(fd.fileno())
        close_all(self._fds)
        self._fds.clear()


def _upwards(directory: str, top: str) -> list[str]:
    """`directory` and those above it, down to below `top`."""
    places = []
    while len(directory) > len(top) and directory.startswith(top):
        places.append(directory)
        directory = os.path.dirname(directory)
    return places


def _number(path: str) -> int:
    """The number in a file; 0 where there is none (no accounting of swap)."""
    try:
        return int(read_file(path))
    except FileNotFoundError:
        return 0
