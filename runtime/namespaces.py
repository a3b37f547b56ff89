"""Namespaces: which are new and which are joined by path (plan), and entering them (thin).

Who enters which one, and when, is the stages' business: the order matters there.
"""

from __future__ import annotations

import errno
import os

from runtime.errors import StageError
from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd, close_all
from runtime.linux.process import setns
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec.model import Namespace

# The OCI name, the flag of clone(2) and setns(2), and the name below /proc/PID/ns.
KINDS = {
    "user": (c.CLONE_NEWUSER, "user"),
    "mount": (c.CLONE_NEWNS, "mnt"),
    "pid": (c.CLONE_NEWPID, "pid"),
    "network": (c.CLONE_NEWNET, "net"),
    "ipc": (c.CLONE_NEWIPC, "ipc"),
    "uts": (c.CLONE_NEWUTS, "uts"),
    "cgroup": (c.CLONE_NEWCGROUP, "cgroup"),
    "time": (c.CLONE_NEWTIME, "time"),
}


class Join(Record):
    """A namespace to be entered: its OCI name, its flag and the file that stands for it."""

    name: str
    kind: int
    path: str


class NamespacePlan(Record):
    """`new`: CLONE_NEW* flags of those to be made; `joins`: those to be entered by path."""

    new: int
    joins: tuple[Join, ...]

    @property
    def pid_join(self) -> Join | None:
        """The PID namespace that is joined by path, if one is."""
        return self.join_of(c.CLONE_NEWPID)

    def join_of(self, kind: int) -> Join | None:
        """The join of that kind, if there is one."""
        for join in self.joins:
            if join.kind == kind:
                return join
        return None

    @property
    def kinds(self) -> int:
        """All namespaces that the container does not share with its runtime, as CLONE_NEW* flags."""
        kinds = self.new
        for join in self.joins:
            kinds |= join.kind
        return kinds


def plan_namespaces(namespaces: tuple[Namespace, ...]) -> NamespacePlan:
    """The plan for `linux.namespaces` (config-linux.md, "Namespaces")."""
    new, joins = 0, []
    for namespace in namespaces:
        kind = KINDS[namespace.type][0]
        if namespace.path:
            joins.append(Join(namespace.type, kind, namespace.path))
        else:
            new |= kind
    return NamespacePlan(new, tuple(joins))


def open_joins(plan: NamespacePlan) -> tuple[tuple[Join, OwnedFd], ...]:
    """Open every namespace that is joined by path; StageError naming the path, and none left open, on failure.

    A join of the user namespace that we are in already is left out: setns(2) refuses it.
    """
    opened: list[tuple[Join, OwnedFd]] = []
    for join in plan.joins:
        try:
            fd = OwnedFd(os.open(join.path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            close_all(fd for _join, fd in opened)
            text, number = os.strerror(error.errno or 0), error.errno or 0
            raise StageError("main", f"open {join.name} namespace", join.path, text, number) from error
        if join.kind == c.CLONE_NEWUSER and _is_ours(fd):
            fd.close()
        else:
            opened.append((join, fd))
    return tuple(opened)


def _is_ours(fd: OwnedFd) -> bool:
    theirs, ours = os.fstat(fd.fileno()), os.stat("/proc/self/ns/user")
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def enter(join: Join, fd: int) -> None:
    """setns(2) into an opened join; an fd of another kind of namespace is an OSError that names the path."""
    try:
        setns(fd, join.kind)
    except OSError as error:
        hint = " (not a namespace of that kind?)" if error.errno == errno.EINVAL else ""
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)}{hint}", join.path) from error
