"""A cpuset for the moment before a tenant joins its own: for `execCPUAffinity.initial` on CPUs we may not use.

Where those CPUs belong to a set that our own does not overlap (a container with exclusive CPUs), no process of
ours can be bound to them, and one that joins the container unbound may run on any CPU of it first. So the child
enters a cpuset of just those CPUs below the container's, binds itself, and moves on
(github.com/opencontainers/runc/issues/5036).
"""

from __future__ import annotations

import errno
import os
import time

from runtime.cgroups.directories import inherit_cpuset
from runtime.cgroups.files import open_directory, read_file, write_file
from runtime.errors import CgroupError
from runtime.linux.fds import OwnedFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.cgroup import Cgroup
    from runtime.cgroups.layout import Hierarchy

_PREFIX = "manor-exec-"


class TransientCpuset:
    """A cpuset below a container's, for one process on its way in. `path` is its directory, for messages.

    `enter` is for the child, in place of its first join; `remove` for whoever made it, when the child has gone on.
    """

    __slots__ = ("_handed_down", "_members", "path", "version")

    def __init__(self, path: str, version: int, members: OwnedFd, handed_down: bool) -> None:
        self.path = path
        self.version = version
        self._members = members
        self._handed_down = handed_down

    def fds(self) -> tuple[int, ...]:
        """What a child must keep open until it has entered."""
        return (self._members.fileno(),)

    def enter(self) -> None:
        """Move the calling process, which has one thread, into it; then bind it (sched_setaffinity). OSError.

        From here it must join the container's own cgroup again: in v2 that is cgroup.procs, as it is born already.
        """
        os.write(self._members.fileno(), b"0")

    def remove(self) -> bool:
        """Remove it once; False while a process is in it. CgroupError."""
        self._members.close()
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            pass  # the container took it away with all it had
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
                return False
            raise CgroupError(f"remove cpuset {self.path}: {error.strerror}") from error
        if self._handed_down:
            _take_back(self.path.rpartition("/")[0])
        return True


def make_transient_cpuset(cgroup: Cgroup, cpus: str) -> TransientCpuset:
    """A cpuset of `cpus` ("2,4-5") below `cgroup`. CgroupError, with nothing left, where there can be none.

    v1: a child like any other. v2: cpuset is a threaded controller, so a cgroup with processes in it can hand it
    down to a threaded child, as long as it hands down nothing else and no child of its own has processes
    (cgroup-v2.rst, "Threads"); in a container that does so it is refused (EBUSY, EOPNOTSUPP).
    """
    hierarchy = cgroup.layout.find("cpuset")
    if hierarchy is None:
        raise CgroupError("cpuset for exec: no cgroup controller cpuset on this machine")
    parent = cgroup.paths[hierarchy.name]
    name = f"{_PREFIX}{os.getpid()}-{time.monotonic_ns()}"
    path = f"{parent}/{name}"
    handed_down = False
    try:
        if hierarchy.version == 2:
            handed_down = _hand_down(parent)
        os.mkdir(path, 0o700)
        members = _furnish(hierarchy, f"{cgroup.path}/{name}", path, cpus)
    except OSError as error:
        try:
            os.rmdir(path)
        except OSError:
            pass  # it was not made
        if handed_down:
            _take_back(parent)
        raise CgroupError(f"cpuset {cpus} below {parent}: {error.strerror}") from error
    return TransientCpuset(path, hierarchy.version, members, handed_down)


def _furnish(hierarchy: Hierarchy, relative: str, path: str, cpus: str) -> OwnedFd:
    if hierarchy.version == 2:
        write_file(f"{path}/cgroup.type", "threaded")
    write_file(f"{path}/cpuset.cpus", cpus)
    if hierarchy.version == 1:
        inherit_cpuset(hierarchy.mountpoint, relative, ("cpuset.cpus",))
    with open_directory(hierarchy, relative) as directory:
        file = "tasks" if hierarchy.version == 1 else "cgroup.procs"
        return OwnedFd(os.open(file, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory.fileno()))


def _hand_down(parent: str) -> bool:
    """Have v2 children of `parent` take cpusets; False if they do already."""
    file = f"{parent}/cgroup.subtree_control"
    if "cpuset" in read_file(file).split():
        return False
    write_file(file, "+cpuset")
    return True


def _take_back(parent: str) -> None:
    """Undo `_hand_down`, unless another exec still has its cpuset there: the last one does it then."""
    try:
        with os.scandir(parent) as entries:
            if any(entry.name.startswith(_PREFIX) for entry in entries):
                return
        write_file(f"{parent}/cgroup.subtree_control", "-cpuset")
    except OSError:
        return  # the container is gone, or uses it by now
