"""One container's cgroups: made, joined, limited, stopped, counted and removed as one thing.

A container has a directory of the same path in every hierarchy, the v2 one of a hybrid machine included.
Where systemd made it (`systemd`), a unit belongs to it, which is asked first for every change.
"""

from __future__ import annotations

import _signal
import errno

from runtime.cgroups import directories, limits, signals
from runtime.cgroups.devices import plan_devices
from runtime.cgroups.driver import FS, SYSTEMD
from runtime.cgroups.files import parse_pairs, read_file
from runtime.cgroups.freezer import Freezer
from runtime.cgroups.joining import GONE, LANDLORD_POLICY, Join, landlord_directory, open_join
from runtime.cgroups.layout import UNIFIED, parse_cgroups_path
from runtime.cgroups.resources import plan_writes
from runtime.errors import CgroupError, InvalidState, Unsupported, describe
from runtime.record import replace
from runtime.waiting import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from typing import Any

    from runtime.cgroups.devices import DevicePolicy
    from runtime.cgroups.layout import Hierarchy, Layout
    from runtime.cgroups.systemd import Placeholder, Systemd
    from runtime.cgroups.writes import Write
    from runtime.spec.model import Resources
    from runtime.waiting import Operation, Wait

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)

__all__ = ["Cgroup", "Join", "create_cgroup", "landlord_directory", "open_cgroup", "reopen"]


class Cgroup:
    """A container's cgroups at `path` in every hierarchy of `layout`. It is all names, but for a placeholder.

    `paths` is the directory in each hierarchy by the hierarchy's name. `unit` is the name of systemd's unit, "" for
    a cgroup of the file system driver; `systemd` the way to ask for its changes, None where nobody gave one. Given
    as a function it is called when it is needed first. `later` are the limits that `confining` is still to set.
    """

    __slots__ = ("_systemd", "later", "layout", "path", "paths", "placeholder", "unit")

    def __init__(
        self,
        layout: Layout,
        path: str,
        unit: str = "",
        systemd: Systemd | Callable[[], Systemd] | None = None,
        placeholder: Placeholder | None = None,
    ) -> None:
        self.layout = layout
        self.path = path
        self.paths = {each.name: f"{each.mountpoint}/{path}" for each in layout.hierarchies}
        self.unit = unit
        self._systemd = systemd
        self.placeholder = placeholder
        self.later: tuple[Write, ...] = ()

    def keep(self, hierarchies: Iterable[Hierarchy]) -> None:
        """Forget all hierarchies but these: the container has no cgroup of its own there."""
        kept = tuple(hierarchies)
        if kept != self.layout.hierarchies:
            self.layout = replace(self.layout, hierarchies=kept)
            self.paths = {each.name: self.paths[each.name] for each in kept}

    @property
    def systemd(self) -> Systemd | None:
        """The way to systemd, for a cgroup that is a unit."""
        if callable(self._systemd):
            self._systemd = self._systemd()
        return self._systemd

    @property
    def driver(self) -> str:
        """FS or SYSTEMD."""
        return SYSTEMD if self.unit else FS

    def settle(self) -> None:
        """The first process has joined: end the placeholder that a scope needed until now. May be called again."""
        if self.placeholder is not None:
            self.placeholder.end()
            self.placeholder = None

    def describe(self) -> dict[str, Any]:
        """What `reopen` needs to know of it in another process, as JSON has it."""
        return {"driver": self.driver, "path": self.path, "unit": self.unit, "paths": dict(self.paths)}

    def child(self, relative: str) -> Cgroup:
        """The cgroup at `relative` below this one, which need not exist; ConfigError for a bad path."""
        return Cgroup(self.layout, f"{self.path}/{parse_cgroups_path(relative)}")

    # ---- joining -------------------------------------------------------------------------------

    def open_join(
        self, landlord_pid: int = 0, sub: dict[str, str] | None = None, policy: str = LANDLORD_POLICY
    ) -> Join:
        """All that is needed to be born in this cgroup, or below it: `joining.open_join`."""
        return open_join(self.layout, self.path, landlord_pid, sub, policy)

    # ---- limits --------------------------------------------------------------------------------

    def apply(self, resources: Resources) -> None:
        """`changing`, waited for by blocking."""
        run(self.changing(resources))

    def changing(self, resources: Resources) -> Operation[None]:
        """Change the limits of a cgroup in use to `resources`; what they don't mention stays. CgroupError.

        It waits for systemd alone.
        """
        try:
            if self.unit and (systemd := self.systemd) is not None:
                yield from systemd.update(self, resources)
            else:
                limits.update(self.layout, self.path, resources)
        except OSError as error:
            raise CgroupError(f"update cgroup {self.path}: {describe(error)}") from error

    def confining(self) -> Operation[None]:
        """Limit how many processes there may be, now that the first one is born. CgroupError.

        A second time it does nothing. It waits for systemd alone.
        """
        writes, self.later = self.later, ()
        if not writes:
            return
        try:
            if self.unit and (systemd := self.systemd) is not None:
                yield from systemd.limit(self, writes)
            limits.do_writes(self.layout, self.path, writes)
        except OSError as error:
            raise CgroupError(f"limit cgroup {self.path}: {describe(error)}") from error

    def confine(self) -> None:
        """`confining`, waited for by blocking."""
        run(self.confining())

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
        if self.paths:
            self.freezer().thaw()

    def thaw_all(self) -> None:
        """The same for who has been killed, also in cgroups that the container itself has made and frozen."""
        if self.paths:
            self.freezer().thaw_all()

    def frozen(self) -> bool:
        """True when every task stands still."""
        return bool(self.paths) and self.freezer().frozen()

    def wait_frozen(self, timeout_s: float) -> Generator[Wait, None, None]:
        """Freeze and wait for it (`runtime.waiting`); CgroupError after `timeout_s`, with all tasks running again."""
        return self.freezer().wait_frozen(timeout_s)

    # ---- processes -----------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """The container's processes, those in cgroups of its own making included."""
        return [pid for path in self._main_path() for pid in directories.processes(path)]

    def _main_path(self) -> list[str]:
        """The directory that all of the container's processes are in; none where it has no cgroup of its own."""
        for controller in ("freezer", "pids", "devices"):
            if (found := self.layout.find(controller)) is not None:
                return [self.paths[found.name]]
        unified = self.layout.unified
        return list(self.paths.values())[:1] if unified is None else [self.paths[unified.name]]

    def holders(self, most: int = 1000) -> list[int]:
        """Pids that keep the cgroup from being removed, in any hierarchy: at most about `most` of them."""
        return sorted(directories.all_processes(self.paths.values(), most))[:most]

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
        places = list(self.paths.values()) if kill else self._main_path()
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
            if kill:
                freezer.thaw_all()
            elif not was_paused:
                freezer.thaw()

    # ---- counters ------------------------------------------------------------------------------

    def oom_kill_count(self) -> int:
        """How many processes of the container the OOM killer took; 0 where nobody counts."""
        hierarchy = self.layout.find("memory")
        if hierarchy is None:
            return 0
        file = "memory.oom_control" if hierarchy.version == 1 else "memory.events"
        try:
            return parse_pairs(read_file(f"{self.paths[hierarchy.name]}/{file}")).get("oom_kill", 0)
        except OSError as error:
            if error.errno in GONE:
                return 0
            raise

    # ---- the end -------------------------------------------------------------------------------

    def try_delete(self) -> bool:
        """`deleting`, waited for by blocking."""
        return run(self.deleting())

    def deleting(self) -> Operation[bool]:
        """Remove the directories and all below them, and the unit, once. False while a process is in one.

        `holders` then says who. CgroupError for anything but that. It waits for systemd alone.
        """
        self.settle()
        refusal: CgroupError | None = None
        try:
            if self.unit and (systemd := self.systemd) is not None:
                if self.holders(1):
                    return False
                # Before the directories: systemd would wait for a cgroup that is gone to become empty.
                refusal = yield from systemd.stopping(self.unit)
            removed = [directories.try_remove(path) for path in self.paths.values()]  # a busy one spares none
        except OSError as error:
            raise CgroupError(f"remove cgroup {self.path}: {error.strerror}") from error
        if refusal is not None and not all(removed):
            raise refusal
        return all(removed)


def create_cgroup(
    layout: Layout,
    cgroups_path: str,
    resources: Resources,
    container_id: str = "",
    *,
    systemd: Systemd | None = None,
    annotations: dict[str, str] | None = None,
    rootless: bool = False,
) -> Cgroup:
    """Make a container's cgroup at `cgroups_path` (empty: named after `container_id`) and set its limits.

    But for the one on processes, which is for `Cgroup.confine` when the first of them is born.

    With `systemd` the path is `slice:prefix:name` and the cgroup a unit of it, with those properties that
    `annotations` ask for; it blocks until systemd is done (`Systemd.create` is the same as an operation).
    Without, a directory that is there already may be used if it holds no process and is not frozen. With
    `rootless` and no path asked for, a hierarchy that we may not write to is left out, unless it has a limit to
    set; and devices are limited where we may. On failure, which is a CgroupError, ConfigError or Unsupported,
    nothing that was made is left.
    """
    if systemd is not None:
        return run(systemd.create(layout, cgroups_path, resources, container_id, annotations or {}))
    cgroup = Cgroup(layout, parse_cgroups_path(cgroups_path, container_id))
    writes = plan_writes(resources, layout)  # a bad limit fails here, before there is anything to undo
    policy = plan_devices(resources.devices)
    furnish(cgroup, resources, writes, policy, rootless=rootless, anywhere=rootless and not cgroups_path)
    return cgroup


def furnish(
    cgroup: Cgroup,
    resources: Resources,
    writes: tuple[Write, ...],
    policy: DevicePolicy,
    *,
    ours: bool = False,
    rootless: bool = False,
    anywhere: bool = False,
) -> None:
    """Make the directories of `cgroup` and set its limits, but for those on births (`Cgroup.later`).

    On failure nothing is left that was not there before.

    `ours`: what is there already was made for us a moment ago. CgroupError otherwise, if somebody uses it.
    `rootless`: we may be forbidden to limit devices. `anywhere`: and to make a directory, then without.
    """
    made: list[str] = []
    try:
        needed = {write.hierarchy: write.field for write in writes}
        new = _make_directories(cgroup, made, needed, _dispensable(cgroup.layout, rootless, anywhere))
        layout, path = cgroup.layout, cgroup.path
        if not ours and not all(new):
            _refuse_used(cgroup)
            writes = plan_writes(resources, layout, limits.read_current(resources, layout.places(path)))
        if (cpuset := layout.find("cpuset")) is not None and cpuset.version == 1:
            directories.inherit_cpuset(cpuset.mountpoint, path, [write.file for write in writes])
        now, cgroup.later = limits.split_births(writes)
        limits.configure(layout, path, now, cgroup.later)
        try:
            limits.set_devices(layout, path, policy, fresh=True)
        except (CgroupError, OSError):
            if not rootless:
                raise
    except BaseException as failure:
        directories.remove_made(made)
        if isinstance(failure, OSError):
            raise CgroupError(f"make cgroup {cgroup.path}: {describe(failure)}") from failure
        raise


def _dispensable(layout: Layout, rootless: bool, anywhere: bool) -> tuple[str, ...]:
    """Names of what we do without where we may not write: beside v1 controllers v2 limits nothing."""
    if anywhere:
        return tuple([each.name for each in layout.hierarchies])
    return (UNIFIED,) if rootless and layout.mode != UNIFIED else ()


def _make_directories(
    cgroup: Cgroup, made: list[str], needed: dict[str, str], dispensable: tuple[str, ...]
) -> list[bool]:
    """For each hierarchy whether the directory is new; `cgroup` forgets those that it can't and need not be in."""
    new: list[bool] = []
    kept = []
    for each in cgroup.layout.hierarchies:
        try:
            new.append(directories.make_directory(each, cgroup.path, made))
            kept.append(each)
        except CgroupError as error:
            cause = error.__cause__
            forbidden = isinstance(cause, OSError) and cause.errno in _FORBIDDEN
            if each.name not in dispensable or not forbidden:
                raise
            if each.name in needed:
                raise CgroupError(f"{needed[each.name]}: {error}") from error
    cgroup.keep(kept)
    return new


def _refuse_used(cgroup: Cgroup) -> None:
    if holders := cgroup.holders():
        some = ", ".join(str(pid) for pid in holders[:5])
        raise CgroupError(
            f"container's cgroup is not empty: {cgroup.path} is in use by {len(holders)} processes ({some} …)"
        )
    if cgroup.freezer().asked():
        raise CgroupError(f"container's cgroup unexpectedly frozen: {cgroup.path}")


def open_cgroup(layout: Layout, cgroups_path: str, container_id: str = "") -> Cgroup:
    """The cgroup that `create_cgroup` made with the same arguments, in this process or another. Touches nothing.

    For the file system driver only: `reopen` knows both.
    """
    return Cgroup(layout, parse_cgroups_path(cgroups_path, container_id))


def reopen(
    layout: Layout, described: dict[str, Any], systemd: Systemd | Callable[[], Systemd] | None = None
) -> Cgroup:
    """The cgroup that said `described` of itself. Touches nothing; InvalidState for what `describe` never said."""
    path, unit, paths = (described.get(key) for key in ("path", "unit", "paths"))
    if not isinstance(path, str) or not isinstance(unit, str) or not isinstance(paths, dict):
        raise InvalidState("the description of a cgroup is damaged")
    cgroup = Cgroup(layout, parse_cgroups_path(path), unit, systemd)
    cgroup.keep([each for each in layout.hierarchies if each.name in paths])
    for name, now in cgroup.paths.items():
        if paths[name] != now:
            raise InvalidState(f"cgroup {path}: hierarchy {name} was at {paths[name]}, but is at {now}")
    return cgroup
