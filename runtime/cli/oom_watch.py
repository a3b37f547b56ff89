"""Waiting for the kernel to kill something of a container for want of memory, with descriptors to poll.

For who has no event loop: `poll` their own set of descriptors beside these. cgroup v1: an eventfd registered with
memory.oom_control (cgroup-v1/memory.rst, 10), which also fires when the cgroup is removed. cgroup v2:
memory.events and cgroup.events, which become exceptional (POLLPRI) with a change and until they are read again
(cgroup-v2.rst); a limit that was reached and kept to is a change as well, so kills are counted.
"""

from __future__ import annotations

import os
import select

from runtime.cgroups.files import parse_pairs
from runtime.errors import Unsupported
from runtime.linux.fds import OwnedFd, close_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.cgroup import Cgroup

OOM = "oom"
GONE = "gone"

_MOST = 4096


class OomWatch:
    """A watch on one cgroup. `fds` are to be polled, each for the events beside it; `taken` says what it was."""

    __slots__ = ("_cgroup", "_directory", "_owned", "_seen", "_version", "fds")

    def __init__(self, cgroup: Cgroup) -> None:
        """Begin to watch `cgroup`: what is killed from now on is noticed.

        Unsupported without a memory controller; OSError, ENOENT for a cgroup that is gone.
        """
        memory = cgroup.layout.find("memory")
        if memory is None:
            raise Unsupported("watch for OOM kills: no memory controller on this machine")
        self._cgroup = cgroup
        self._directory = cgroup.paths[memory.name]
        self._version = memory.version
        self._owned: list[OwnedFd] = []
        self.fds: tuple[tuple[int, int], ...] = ()
        self._seen = cgroup.oom_kill_count()
        try:
            if self._version == 1:
                self._watch_v1()
            else:
                self._watch_v2()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> OomWatch:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching; a second call does nothing."""
        close_all(self._owned)
        self._owned.clear()
        self.fds = ()

    def _watch_v1(self) -> None:
        notify = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._owned.append(notify)
        with (
            OwnedFd(os.open(f"{self._directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)) as control,
            OwnedFd(
                os.open(f"{self._directory}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
            ) as register,
        ):
            os.write(register.fileno(), f"{notify.fileno()} {control.fileno()}".encode())
        self.fds = ((notify.fileno(), select.POLLIN),)

    def _watch_v2(self) -> None:
        for name in ("memory.events", "cgroup.events"):
            file = OwnedFd(os.open(f"{self._directory}/{name}", os.O_RDONLY | os.O_CLOEXEC))
            self._owned.append(file)
            os.pread(file.fileno(), _MOST, 0)
        self.fds = tuple((file.fileno(), select.POLLPRI) for file in self._owned)

    def taken(self) -> str:
        """What has happened since it was asked last: OOM, GONE (nobody is left to be killed), or "" for nothing.

        On v1 the kernel tells it before the kill, and cannot say how many.
        """
        return self._taken_v1() if self._version == 1 else self._taken_v2()

    def _taken_v1(self) -> str:
        try:
            os.eventfd_read(self._owned[0].fileno())
        except BlockingIOError:
            return ""
        return OOM if os.path.exists(self._directory) else GONE

    def _taken_v2(self) -> str:
        try:
            memory, processes = (
                parse_pairs(os.pread(each.fileno(), _MOST, 0).decode()) for each in self._owned
            )
        except OSError:  # ENODEV: the cgroup was removed
            return GONE
        count = memory.get("oom_kill", 0)
        if count > self._seen:
            self._seen = count
            return OOM
        return "" if processes.get("populated", 1) else GONE
