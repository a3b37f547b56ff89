"""The way into a cgroup: what is opened before a clone, so that the child is born in it or moves by itself.

Joining is prepared here and done by the one who joins: writing somebody's pid to `cgroup.procs` takes a lock that
all forks of the machine wait for (7 to 16 ms on a quiet node); a single thread that writes 0 to a v1 `tasks`
file, or is cloned into its v2 cgroup, does not. Which cgroup a tenant may end up in is decided here as well.
"""

from __future__ import annotations

import errno
import os

from runtime.cgroups.files import open_directory, read_file
from runtime.cgroups.layout import UNIFIED, parse_cgroups_path, unified_path
from runtime.errors import CgroupError, ConfigError, InvalidArgument
from runtime.linux.fds import OwnedFd, close_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.cgroups.layout import Hierarchy, Layout

# What becomes of a tenant whose landlord has left its cgroup, or has put controllers into it.
LANDLORD_POLICY = "landlord"  # it joins the cgroup that the landlord is in now
STRICT_POLICY = "strict"  # it fails

# Where a tenant ended up.
OWN, SUB, LANDLORD, LEAF = "own", "sub", "landlord", "leaf"

ALL_HIERARCHIES = ""
GONE = (errno.ENOENT, errno.ENODEV)

# Joined last: memory, so that less of what the child touches before its execve is charged to the container;
# after it the freezer, where a frozen container stops whoever joins.
_LAST_JOINED = ("memory", "freezer")


class Join:
    """`tasks` files of the v1 hierarchies, open for writing, and the v2 directory, if any.

    `place` says whose they are: OWN, SUB, LANDLORD or LEAF. `may_fall_back`: a clone that fails with EBUSY, ENOENT or
    ENODEV may be tried again in the landlord's v2 cgroup.
    """

    __slots__ = ("may_fall_back", "place", "v1_tasks", "v2_dir")

    def __init__(
        self,
        v1_tasks: tuple[OwnedFd, ...],
        v2_dir: OwnedFd | None,
        place: str = OWN,
        may_fall_back: bool = False,
    ) -> None:
        self.v1_tasks = v1_tasks
        self.v2_dir = v2_dir
        self.place = place
        self.may_fall_back = may_fall_back

    def __enter__(self) -> Join:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def fds(self) -> tuple[int, ...]:
        """The numbers a child must keep open until it has joined."""
        return tuple([fd.fileno() for fd in self.v1_tasks])

    def into_leaf(self, directory: OwnedFd) -> Join:
        """The same with `directory` for its v2 cgroup. Both share the rest, and only this one closes it."""
        return Join(self.v1_tasks, directory, LEAF)

    def enter_v1(self) -> None:
        """Move the calling thread into the v1 cgroups; the process must have no other thread. OSError.

        ENOSPC means a cpuset without CPUs or memory nodes, ENODEV a cgroup that was removed meanwhile.
        """
        for fd in self.v1_tasks:
            os.write(fd.fileno(), b"0")

    def close(self) -> None:
        """Close all of it; a second call does nothing."""
        close_all(self.v1_tasks)
        if self.v2_dir is not None:
            self.v2_dir.close()


def open_join(
    layout: Layout,
    path: str,
    landlord_pid: int = 0,
    sub: dict[str, str] | None = None,
    policy: str = LANDLORD_POLICY,
) -> Join:
    """All that is needed to be born in the cgroup `path`; OSError.

    `sub` (of `parse_sub_cgroups`) names cgroups below it to join instead: CgroupError for one that is not there.
    Without, a tenant with `landlord_pid` whose v2 directory is gone gets the landlord's in its place (one that
    moved away and removed it), unless the `policy` is strict. The same failing with EBUSY shows only in clone3.
    """
    if sub:
        return _open_sub(layout, path, sub)
    falls_back = bool(landlord_pid) and policy == LANDLORD_POLICY
    tasks = open_v1_tasks(layout.v1, {each.name: f"{each.mountpoint}/{path}" for each in layout.v1})
    unified, place = layout.unified, OWN
    try:
        try:
            directory = None if unified is None else open_directory(unified, path)
        except OSError as error:
            if not falls_back or error.errno not in GONE:
                raise
            directory, place = landlord_directory(layout, landlord_pid), LANDLORD
    except BaseException:
        close_all(tasks)
        raise
    return Join(tasks, directory, place, falls_back)


def open_v1_tasks(hierarchies: Iterable[Hierarchy], paths: dict[str, str]) -> tuple[OwnedFd, ...]:
    """The `tasks` file in `paths` of each v1 hierarchy, open for writing; OSError (ENOENT where one is gone)."""
    opened: list[OwnedFd] = []
    try:
        for hierarchy in sorted(hierarchies, key=_join_order):
            file = f"{paths[hierarchy.name]}/tasks"
            opened.append(OwnedFd(os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)))
    except OSError:
        close_all(opened)
        raise
    return tuple(opened)


def _join_order(hierarchy: Hierarchy) -> int:
    return max(
        (rank for rank, name in enumerate(_LAST_JOINED, 1) if name in hierarchy.controllers), default=0
    )


# ---- cgroups below the container's --------------------------------------------------------------


def parse_sub_cgroups(options: Iterable[str]) -> dict[str, str]:
    """`--cgroup` options as {controller: path}: "cpu,memory:/a", or a path alone ("" is every hierarchy).

    InvalidArgument for an empty or repeated controller, for several paths without one, and for a path that does
    not stay below the container's cgroup.
    """
    given = list(options)
    paths: dict[str, str] = {}
    for option in given:
        controllers, colon, path = option.partition(":")
        if not colon:
            if len(given) > 1:
                raise InvalidArgument(f"invalid --cgroup argument: {option} (missing <controller>: prefix)")
            return {ALL_HIERARCHIES: _clean(option)}
        for controller in controllers.split(","):
            if not controller:
                raise InvalidArgument(f"invalid --cgroup argument: {option} (empty <controller> prefix)")
            if controller in paths:
                raise InvalidArgument(
                    f"invalid --cgroup argument(s): controller {controller} specified multiple times"
                )
            paths[controller] = _clean(path)
    return paths


def _clean(path: str) -> str:
    """A path below the container's cgroup, "" for that itself."""
    if not path.strip("/."):
        if ".." in path.split("/"):
            raise InvalidArgument(f"bad sub cgroup path: {path}")
        return ""
    try:
        return parse_cgroups_path(path)
    except ConfigError as error:
        raise InvalidArgument(f"bad sub cgroup path: {path}") from error


def _open_sub(layout: Layout, path: str, sub: dict[str, str]) -> Join:
    below = _below(layout, sub)
    paths = {name: f"{path}/{each}" if each else path for name, each in below.items()}
    unified, place = layout.unified, SUB if any(below.values()) else OWN
    directories = {each.name: f"{each.mountpoint}/{paths[each.name]}" for each in layout.hierarchies}
    at = "" if unified is None else directories[unified.name]
    try:
        tasks = open_v1_tasks(layout.v1, directories)
        try:
            if unified is None:
                return Join(tasks, None, place)
            return Join(tasks, _open_sub_v2(layout, unified, path, paths[unified.name]), place)
        except BaseException:
            close_all(tasks)
            raise
    except OSError as error:
        where = at if error.filename is None or not error.filename.startswith("/") else error.filename
        raise CgroupError(f"adding pid to cgroup {where}: {os.strerror(error.errno or 0)}") from error


def _open_sub_v2(layout: Layout, unified: Hierarchy, path: str, wanted: str) -> OwnedFd:
    try:
        return open_directory(unified, wanted)
    except OSError as error:
        if error.errno not in GONE or layout.mode == UNIFIED:
            raise
    # Beside v1 controllers v2 limits nothing, and a container that makes cgroups of its own doesn't see it.
    return open_directory(unified, path)


def _below(layout: Layout, sub: dict[str, str]) -> dict[str, str]:
    """What to join below the container's cgroup, by the name of the hierarchy."""
    if ALL_HIERARCHIES in sub:
        return dict.fromkeys((each.name for each in layout.hierarchies), sub[ALL_HIERARCHIES])
    if layout.mode == UNIFIED:
        raise InvalidArgument(f"sub cgroup for controller {min(sub)}: cgroup v2 takes one path for all")
    below = dict.fromkeys((each.name for each in layout.hierarchies), "")
    for controller, path in sub.items():
        hierarchy = layout.find(controller) or layout.find(f"name={controller}")
        if hierarchy is None:
            raise InvalidArgument(f"unknown controller {controller} in the sub cgroup")
        if below[hierarchy.name] not in ("", path):
            raise InvalidArgument(f"two sub cgroups for the controllers {hierarchy.name}, which go together")
        below[hierarchy.name] = path
    return below


def landlord_directory(layout: Layout, pid: int, proc_fd: int | None = None) -> OwnedFd:
    """The v2 cgroup that the landlord `pid` is in now, for a tenant that can't join the container's own.

    It is the unified entry of /proc/PID/cgroup below the v2 mount point; `proc_fd` is a trusted procfs (the
    default is the one mounted here). CgroupError where there is none; OSError, ENOENT also for a landlord
    that is gone or whose cgroup was removed.
    """
    hierarchy = layout.unified
    if hierarchy is None:
        raise CgroupError(f"cgroup of process {pid}: this machine has no cgroup v2")
    text = read_file(f"{pid}/cgroup" if proc_fd is not None else f"/proc/{pid}/cgroup", proc_fd)
    path = unified_path(text, hierarchy.root)
    if path is None:
        raise CgroupError(f"cgroup of process {pid}: no unified entry below {hierarchy.mountpoint}")
    return open_directory(hierarchy, path)
