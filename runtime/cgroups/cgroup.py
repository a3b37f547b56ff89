"""One container's cgroups: made, joined, limited, stopped, counted and removed as one thing.

A container has a directory of the same path in every hierarchy, the v2 one of a hybrid machine included.
Joining is prepared here (`Join`) and done by the one who joins: writing somebody's pid to `cgroup.procs`
takes a lock that all forks of the machine wait for (7 to 16 ms on a quiet node); a single thread that writes
0 to a v1 `tasks` file, or is cloned into its v2 cgroup, does not.
"""

from __future__ import annotations

import _signal
import errno
import os

from runtime.cgroups import directories, limits, signals, stats_v1, stats_v2
from runtime.cgroups.devices import plan_devices
from runtime.cgroups.files import open_directory, parse_pairs, read_file
from runtime.cgroups.freezer import Freezer
from runtime.cgroups.layout import UNIFIED, parse_cgroups_path, unified_path
from runtime.cgroups.resources import plan_writes
from runtime.errors import CgroupError, Unsupported, describe
from runtime.linux.fds import OwnedFd, close_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from runtime.cgroups.layout import Hierarchy, Layout
    from runtime.spec.model import Resources
    from runtime.waiting import Wait

    Stats = stats_v1.Metrics | stats_v2.Metrics

_GONE = (errno.ENOENT, errno.ENODEV)

# Joined last: memory, so that less of what the child touches before its execve is charged to the container;
# after it the freezer, where a frozen container stops whoever joins.
_LAST_JOINED = ("memory", "freezer")


class Join:
    """The way into a cgroup: `tasks` files of the v1 hierarchies, open for writing, and the v2 directory, if any."""

    __slots__ = ("v1_tasks", "v2_dir")

    def __init__(self, v1_tasks: tuple[OwnedFd, ...], v2_dir: OwnedFd | None) -> None:
        self.v1_tasks = v1_tasks
        self.v2_dir = v2_dir

    def __enter__(self) -> Join:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def fds(self) -> tuple[int, ...]:
        """The numbers a child must keep open until it has joined."""
        return tuple(fd.fileno() for fd in self.v1_tasks)

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


class Cgroup:
    """A container's cgroups at `path` in every hierarchy of `layout`. Holds no descriptor and no state of its own.

    `paths` is the directory in each hierarchy by the hierarchy's name.
    """

    __slots__ = ("layout", "path", "paths")

    def __init__(self, layout: Layout, path: str) -> None:
        self.layout = layout
        self.path = path
        self.paths = {each.name: f"{each.mountpoint}/{path}" for each in layout.hierarchies}

    def child(self, relative: str) -> Cgroup:
        """The cgroup at `relative` below this one, which need not exist; ConfigError for a bad path."""
        return Cgroup(self.layout, f"{self.path}/{parse_cgroups_path(relative)}")

    # ---- joining -------------------------------------------------------------------------------

    def open_v1_tasks(self) -> tuple[OwnedFd, ...]:
        """The `tasks` file of every v1 hierarchy, open for writing; OSError (ENOENT where the cgroup is gone)."""
        opened: list[OwnedFd] = []
        try:
            for hierarchy in sorted(self.layout.v1, key=_join_order):
                file = f"{self.paths[hierarchy.name]}/tasks"
                opened.append(OwnedFd(os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)))
        except OSError:
            close_all(opened)
            raise
        return tuple(opened)

    def open_v2_dir(self) -> OwnedFd | None:
        """The v2 directory for CLONE_INTO_CGROUP, or None without a v2 hierarchy; OSError (ENOENT where it is gone)."""
        hierarchy = self.layout.unified
        return None if hierarchy is None else open_directory(hierarchy, self.path)

    def open_join(self, landlord_pid: int = 0) -> Join:
        """All that is needed to be born in this cgroup; OSError.

        For a tenant with `landlord_pid`: where the v2 directory is gone, the landlord's stands in for it (a
        landlord that moved away and removed it). The same failing with EBUSY shows only in clone3.
        """
        tasks = self.open_v1_tasks()
        try:
            try:
                directory = self.open_v2_dir()
            except OSError as error:
                if not landlord_pid or error.errno not in _GONE:
                    raise
                directory = landlord_directory(self.layout, landlord_pid)
        except BaseException:
            close_all(tasks)
            raise
        return Join(tasks, directory)

    # ---- limits --------------------------------------------------------------------------------

    def apply(self, resources: Resources) -> None:
        """Change the limits of a cgroup in use to `resources`; what they don't mention stays. CgroupError."""
        try:
            limits.update(self.layout, self.path, resources)
        except OSError as error:
            raise CgroupError(f"update cgroup {self.path}: {describe(error)}") from error

    def cpuset_cpus(self) -> str | None:
        """The CPUs that tasks in here may use ("0-3,7"), parents' limits included; None without a cpuset controller."""
        hierarchy = self.layout.find("cpuset")
        if hierarchy is None:
            return None
        files = (
            ("cpuset.cpus.effective",) if hierarchy.version == 2 else ("cpuset.effective_cpus", "cpuset.cpus")
        )
        path = self.path
        while True:
            for file in files:
                try:
                    return read_file(f"{hierarchy.mountpoint}/{path}/{file}").strip()
                except FileNotFoundError:
                    continue
            if not path:
                return None
            path = path.rpartition("/")[0]  # v2: not handed down to us, so the parent's holds

    # ---- pausing -------------------------------------------------------------------------------

    def freezer(self) -> Freezer:
        """The freezer that stops this container. Unsupported where the machine has none."""
        hierarchy = self.layout.find("freezer") or self.layout.unified
        if hierarchy is None:
            raise Unsupported("pause: no freezer controller and no cgroup v2 on this machine")
        return Freezer(self.paths[hierarchy.name], hierarchy.version)

    def freeze(self) -> None:
        """Begin to stop all tasks; returns at once, `frozen` says when it is done."""
        self.freezer().freeze()

    def thaw(self) -> None:
        """Let all tasks run on."""
        self.freezer().thaw()

    def frozen(self) -> bool:
        """True when every task stands still."""
        return self.freezer().frozen()

    def wait_frozen(self, timeout_s: float) -> Generator[Wait, None, None]:
        """Freeze and wait for it (`runtime.waiting`); CgroupError after `timeout_s`, with all tasks running again."""
        return self.freezer().wait_frozen(timeout_s)

    # ---- processes -----------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """The container's processes, those in cgroups of its own making included."""
        return directories.processes(self.paths[self._main_hierarchy().name])

    def _main_hierarchy(self) -> Hierarchy:
        for controller in ("freezer", "pids", "devices"):
            if (found := self.layout.find(controller)) is not None:
                return found
        return self.layout.unified or self.layout.hierarchies[0]

    def holders(self) -> list[int]:
        """The pids that keep the cgroup from being removed, in any hierarchy."""
        return sorted(directories.all_processes(self.paths.values()))

    def signal_all(self, signum: int) -> None:
        """Send `signum` to every process in the container. SIGKILL also reaches a paused one.

        v2's cgroup.kill (Linux 5.14) takes them all at once; else they are listed again until no new ones
        come up, in v1 with the freezer on, so that they can't outrun us. CgroupError.
        """
        kill = signum == _signal.SIGKILL
        unified = self.layout.unified
        if kill and unified is not None:
            killed = signals.kill_v2(self.paths[unified.name])
            if killed and self.layout.mode == UNIFIED:
                return
        # What is to be removed next must be left by everybody, also by one who was moved out of some hierarchies.
        places = list(self.paths.values()) if kill else [self.paths[self._main_hierarchy().name]]
        v1_freezer = self.layout.find("freezer")
        if v1_freezer is None:
            signals.signal_members(places, signum)
            return
        freezer = Freezer(self.paths[v1_freezer.name], 1)
        was_paused = freezer.asked()
        try:
            if not was_paused:
                freezer.hold()
            signals.signal_members(places, signum)
        finally:
            if kill or not was_paused:
                freezer.thaw()

    # ---- counters ------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """What the container uses: `stats_v2.Metrics` on a unified machine, else `stats_v1.Metrics`. OSError."""
        hierarchy = self.layout.unified
        if hierarchy is not None and self.layout.mode == UNIFIED:
            return stats_v2.read(self.paths[hierarchy.name])
        return stats_v1.read(self.layout.places(self.path))

    def oom_kill_count(self) -> int:
        """How many processes of the container the OOM killer took; 0 where nobody counts."""
        hierarchy = self.layout.find("memory")
        if hierarchy is None:
            return 0
        file = "memory.oom_control" if hierarchy.version == 1 else "memory.events"
        try:
            return parse_pairs(read_file(f"{self.paths[hierarchy.name]}/{file}")).get("oom_kill", 0)
        except OSError as error:
            if error.errno in _GONE:
                return 0
            raise

    # ---- the end -------------------------------------------------------------------------------

    def try_delete(self) -> bool:
        """Remove the directories and all below them, once, without waiting. False while a process is in one.

        `holders` then says who. CgroupError for anything but that.
        """
        try:
            removed = [directories.try_remove(path) for path in self.paths.values()]  # a busy one spares none
        except OSError as error:
            raise CgroupError(f"remove cgroup {self.path}: {error.strerror}") from error
        return all(removed)


def _join_order(hierarchy: Hierarchy) -> int:
    return max(
        (rank for rank, name in enumerate(_LAST_JOINED, 1) if name in hierarchy.controllers), default=0
    )


def create_cgroup(layout: Layout, cgroups_path: str, resources: Resources, container_id: str = "") -> Cgroup:
    """Make a container's cgroup at `cgroups_path` (empty: named after `container_id`) and set its limits.

    A directory that is there already may be used if it holds no process and is not frozen. On failure, which is a
    CgroupError, ConfigError or Unsupported, nothing that was made is left.
    """
    path = parse_cgroups_path(cgroups_path, container_id)
    writes = plan_writes(resources, layout)  # a bad limit fails here, before there is anything to undo
    policy = plan_devices(resources.devices)
    cgroup = Cgroup(layout, path)
    made: list[str] = []
    try:
        new = [directories.make_directory(each, path, made) for each in layout.hierarchies]
        if not all(new):
            _refuse_used(cgroup)
            writes = plan_writes(resources, layout, limits.read_current(resources, layout.places(path)))
        if (cpuset := layout.find("cpuset")) is not None and cpuset.version == 1:
            directories.inherit_cpuset(cpuset.mountpoint, path, [write.file for write in writes])
        limits.configure(layout, path, writes)
        limits.set_devices(layout, path, policy, fresh=True)
    except BaseException as failure:
        directories.remove_made(made)
        if isinstance(failure, OSError):
            raise CgroupError(f"make cgroup {path}: {describe(failure)}") from failure
        raise
    return cgroup


def _refuse_used(cgroup: Cgroup) -> None:
    if holders := cgroup.holders():
        some = ", ".join(str(pid) for pid in holders[:5])
        raise CgroupError(f"cgroup {cgroup.path} is in use by {len(holders)} processes ({some} …)")
    if cgroup.freezer().asked():
        raise CgroupError(f"cgroup {cgroup.path} is frozen")


def open_cgroup(layout: Layout, cgroups_path: str, container_id: str = "") -> Cgroup:
    """The cgroup that `create_cgroup` made with the same arguments, in this process or another. Touches nothing."""
    return Cgroup(layout, parse_cgroups_path(cgroups_path, container_id))


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
