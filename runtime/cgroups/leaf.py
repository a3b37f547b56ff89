"""A leaf: the v2 cgroup of one exec, below its container's, so that its whole tree can be named, counted and killed.

In the v2 hierarchy alone, which is all of a unified machine and stands beside the controllers of a hybrid one: there
a leaf has none of them, and its processes are the container's in v1. No controller is ever enabled for a leaf by us.
A cgroup with processes can have children as long as it hands no controllers down to them ("no internal processes",
cgroup-v2.rst); so a leaf changes nothing for the container: its limits, counters, freezer and kill hold for what is
below it as well.

A container that may write to its cgroups can take a leaf away, make others beside it, and move processes. So a leaf is
held by a descriptor: one that was removed stays that one, whoever has its name now, and its kill reaches nobody.
"""

from __future__ import annotations

import _signal
import errno
import os

from runtime.cgroups.directories import try_remove
from runtime.cgroups.files import parse_pairs, read_file, write_file
from runtime.cgroups.layout import unified_path
from runtime.cgroups.signals import signal_members
from runtime.errors import CgroupError
from runtime.linux.fds import OwnedFd
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.layout import Hierarchy

PREFIX = "exec-"
_MODE = 0o755
_ATTEMPTS = 3
_MOST_REMOVALS = 100  # about 10 ms
_GONE = (errno.ENOENT, errno.ENODEV)

# What the clone into a leaf may fail with that has to do with the leaf: it was removed, given controllers to hand
# down, or made invalid by a container that has made threads of its cgroups ("domain invalid").
REFUSALS = (*_GONE, errno.EBUSY, errno.EOPNOTSUPP)


class CpuTime(Record):
    """What the processes of a leaf have used, those that have ended included; microseconds."""

    usage_us: int
    user_us: int
    system_us: int


class Leaf:
    """Of one exec. `name` is below the container's cgroup `parent`, a path in `hierarchy`; `directory` is O_PATH.

    Whoever has it closes it; that removes nothing.
    """

    __slots__ = ("_hierarchy", "_path", "directory", "name")

    def __init__(self, hierarchy: Hierarchy, parent: str, name: str, directory: OwnedFd) -> None:
        self.name = name
        self.directory = directory
        self._hierarchy = hierarchy
        self._path = f"{parent}/{name}"

    def holds(self, pid: int) -> bool:
        """Whether process `pid` is in it or below; False for one that is gone."""
        try:
            path = unified_path(read_file(f"/proc/{pid}/cgroup"), self._hierarchy.root)
        except OSError:
            return False
        return path is not None and f"{path}/".startswith(f"{self._path}/")

    def kill(self) -> bool:
        """SIGKILL for all in it and below, those included that are being forked. CgroupError.

        False where it is gone: whoever is at its path is in another one of that name. Before Linux 5.14 there is no
        cgroup.kill: they are listed, again and again.
        """
        try:
            write_file("cgroup.kill", "1", self.directory.fileno())
        except OSError as error:
            if error.errno not in _GONE and error.errno != errno.EOPNOTSUPP:
                raise CgroupError(f"kill cgroup {self._path}: {error.strerror}") from error
            if not self._exists():
                return False
            # Or it was made a cgroup of threads, which have no cgroup.kill.
            signal_members((self._place(),), _signal.SIGKILL)
        return True

    def _exists(self) -> bool:
        try:
            os.stat("cgroup.procs", dir_fd=self.directory.fileno())
        except OSError:
            return False
        return True

    def populated(self, events: OwnedFd | None = None) -> bool:
        """Whether a process is in it or below; False where it is gone. OSError. `events` is what `open_events` gave."""
        try:
            if events is None:
                text = read_file("cgroup.events", self.directory.fileno())
            else:
                text = os.pread(events.fileno(), 4096, 0).decode()
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise
        return parse_pairs(text).get("populated") == 1

    def open_events(self) -> OwnedFd:
        """cgroup.events, which polls as exceptional (POLLPRI) when `populated` changes. OSError, ENOENT, ENODEV."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        return OwnedFd(os.open("cgroup.events", flags, dir_fd=self.directory.fileno()))

    def cpu_time(self) -> CpuTime | None:
        """What it has used up to now, known without any controller; None where it is gone. OSError."""
        try:
            counted = parse_pairs(read_file("cpu.stat", self.directory.fileno()))
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        return CpuTime(*[counted.get(f"{name}_usec", 0) for name in ("usage", "user", "system")])

    def remove(self) -> bool:
        """Remove it with the cgroups that were made in it, once; OSError.

        False while a process is in one, and when there are more than can be removed in one go. A stranger of the same
        name goes as well if it is empty: who may make one may not complain.
        """
        if try_remove(self._place(), _MOST_REMOVALS):
            return True
        return not self.directory.closed and not self._exists()

    def _place(self) -> str:
        return f"{self._hierarchy.mountpoint}/{self._path}"

    def discard(self) -> None:
        """Remove what was made for nothing, and close it. What can't be removed goes with the container."""
        try:
            self.remove()
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        """Close it; a second call does nothing."""
        self.directory.close()


def make_leaf(hierarchy: Hierarchy, parent: str, directory: OwnedFd) -> Leaf | None:
    """A new leaf in the v2 cgroup `parent`, which is open as `directory`; None where it can have none.

    That is one that hands controllers down: then it has a structure of its own, which an exec keeps to by joining its
    landlord. And one that is gone, is full (cgroup.max.descendants), or lies in a hierarchy that we may not write to.
    """
    try:
        if read_file("cgroup.subtree_control", directory.fileno()).strip():
            return None
        for _attempt in range(_ATTEMPTS):
            name = f"{PREFIX}{os.urandom(4).hex()}"
            try:
                os.mkdir(name, _MODE, dir_fd=directory.fileno())
            except FileExistsError:  # a container may make cgroups beside it
                continue
            return Leaf(hierarchy, parent, name, _open_or_remove(name, directory))
    except OSError:
        pass  # without one it is as it was before there were any; what else is wrong the join will say
    return None


def _open_or_remove(name: str, parent: OwnedFd) -> OwnedFd:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return OwnedFd(os.open(name, flags, dir_fd=parent.fileno()))
    except OSError as error:
        if error.errno not in _GONE:
            os.rmdir(name, dir_fd=parent.fileno())
        raise
