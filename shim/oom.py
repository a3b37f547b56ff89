"""Noticing that the kernel has killed something of a container for want of memory.

cgroup v1: an eventfd registered with memory.oom_control (cgroup-v1/memory.rst, 10). It also fires when the
cgroup is removed. cgroup v2: a watch on memory.events, which epoll reports as exceptional (POLLPRI) after
a change and until it is read again (cgroup-v2.rst, "memory.events").
"""

from __future__ import annotations

import os

from runtime.linux.fds import OwnedFd, close_all
from shim.loop import EPOLLIN, EPOLLPRI

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cgroups import Cgroup, Layout
    from shim.loop import Loop

_MAX_EVENTS_FILE = 4096


class OomWatch:
    """Calls `killed` after each kill in `cgroup`, until it is closed; never without a memory controller."""

    def __init__(self, loop: Loop, layout: Layout, cgroup: Cgroup, killed: Callable[[], None]) -> None:
        self._loop = loop
        self._cgroup = cgroup
        self._killed = killed
        self._fds: list[OwnedFd] = []
        self._seen = 0
        memory = layout.find("memory")
        directory = cgroup.paths.get(memory.name) if memory is not None else None
        if memory is None or directory is None:
            return
        try:
            self._seen = cgroup.oom_kill_count()
            if memory.version == 1:
                self._watch_v1(directory)
            else:
                self._watch_v2(directory)
        except OSError:
            self.close()  # the container has ended already and its cgroup with it

    def _watch_v1(self, directory: str) -> None:
        notify = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._fds.append(notify)
        with (
            OwnedFd(os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)) as control,
            OwnedFd(os.open(f"{directory}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)) as register,
        ):
            os.write(register.fileno(), f"{notify.fileno()} {control.fileno()}".encode())
        self._loop.watch(notify.fileno(), EPOLLIN, lambda _events: self._on_v1(notify.fileno(), directory))

    def _on_v1(self, number: int, directory: str) -> None:
        """It comes before the kill, so there is nothing to count yet; and when the cgroup is removed."""
        os.eventfd_read(number)
        if os.path.exists(directory):
            self._killed()
        else:
            self.close()

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
        count = self._cgroup.oom_kill_count()
        if count > self._seen:  # it also comes for a limit that was reached and kept to
            self._seen = count
            self._killed()

    def close(self) -> None:
        """Stop watching; a second call does nothing."""
        for fd in self._fds:
            self._loop.unwatch(fd.fileno())
        close_all(self._fds)
        self._fds.clear()
