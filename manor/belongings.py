"""What of a container is there still, and its own by more than a name on record: mounts, cgroup, unit, resctrl group.

A record may be older than what has that name by now: the bundle's directory and the groups are known by their inode
numbers, a unit by its cgroup. What two pods lay claim to, and what somebody else uses, is said and left.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import psutil

from manor.ledger import Mount, Pod
from runtime import rdt, state
from runtime.cgroups.cgroup import Cgroup, open_cgroup
from runtime.cgroups.driver import SYSTEMD, booted_with_systemd, driver_of
from runtime.cgroups.layout import Hierarchy, Layout, below_root
from runtime.cgroups.systemd import Systemd
from runtime.cgroups.unit_name import parse_unit
from runtime.errors import ManorError
from runtime.linux.statx import identity
from runtime.rootfs.on_host import is_bound_to_itself
from runtime.state import State
from runtime.waiting import run
from shim.container import rootfs_of

_STANDING = ("active", "activating", "deactivating", "failed", "reloading")


@dataclass(frozen=True)
class Mounts:
    """Those of a container on the host: `tops` are to be detached, in this order, and `below` go with them."""

    tops: tuple[Mount, ...]
    below: tuple[Mount, ...]


@dataclass(frozen=True)
class Group:
    """A resctrl group, and who is in it."""

    path: str
    tasks: tuple[int, ...]


def claims(pod: Pod) -> set[str]:
    """The paths that a pod's records call theirs; not those in a bundle that is another's by now."""
    found = set(pod.files.mounts)
    for known in pod.containers.values():
        if known is not None:
            found |= {each for each in (*_roots(pod, known), _group_path(known)) if each}
    return found


class Claims:
    """What all pods lay claim to, read once and only if somebody asks: there may be thousands of them."""

    def __init__(self, pods: Iterable[Pod]) -> None:
        self._pods = pods
        self._by: dict[str, set[str]] = {}
        self._count: Counter[str] = Counter()

    def foreign_to(self, pod: Pod) -> Container[str]:
        """What the others lay claim to."""
        if not self._by:
            self._by = {each.directory: claims(each) for each in self._pods}
            self._count.update(path for own in self._by.values() for path in own)
        return _Foreign(self._count, self._by[pod.directory])


class _Foreign:
    def __init__(self, count: Counter[str], own: set[str]) -> None:
        self._count = count
        self._own = own

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self._count[path] > (path in self._own)


def _roots(pod: Pod, known: State) -> list[str]:
    """Where its root file system is mounted, and where that of one without a mount namespace is bound to itself."""
    root = (known.terms or {}).get("root_on_host")
    found = [rootfs_of(known.bundle)] if known.bundle else []
    if isinstance(root, str) and root and root not in found:
        found.append(root)
    if known.bundle and not state.is_its_bundle(pod.directory, known.id, known.bundle):
        found = [each for each in found if not each.startswith(f"{known.bundle}/")]
    return found


def has_bundle(pod: Pod, known: State, foreign: Container[str]) -> bool:
    """Whether the bundle that a state names is the container's still."""
    rootfs = rootfs_of(known.bundle)
    return bool(known.bundle) and rootfs in _roots(pod, known) and rootfs not in foreign


# ---- mounts ------------------------------------------------------------------------------------


def mounts_of(pod: Pod, known: State, mounts: Sequence[Mount], foreign: Container[str]) -> Mounts:
    """What is mounted for a container on the host. `foreign` is what other pods lay claim to."""
    roots = [each for each in _roots(pod, known) if each not in foreign]
    tops: list[Mount] = []
    below: list[Mount] = []
    if (root := (known.terms or {}).get("root_on_host")) in roots and (top := _bound_to_itself(root, mounts)):
        tops.append(top)
        below = _below(top, mounts)
    if known.bundle and (rootfs := rootfs_of(known.bundle)) in roots:
        tops += [each for each in reversed(mounts) if each.point == rootfs and each not in tops]
    return Mounts(tuple(tops), tuple(each for each in below if each not in tops))


def _bound_to_itself(root: str, mounts: Iterable[Mount]) -> Mount | None:
    """The uppermost mount on `root`, if the runtime has put it there."""
    here = [each for each in mounts if each.point == root]
    ours = is_bound_to_itself(root, [(each.device, each.inside) for each in here])
    return here[-1] if ours else None


def _below(top: Mount, mounts: Iterable[Mount]) -> list[Mount]:
    found, numbers = [], {top.id}
    rest = list(mounts)
    while more := [each for each in rest if each.parent in numbers and each.id not in numbers]:
        found += more
        numbers |= {each.id for each in more}
    return found


def users_of(point: str) -> list[int]:
    """The processes whose root directory is what is mounted at `point`, in whatever mount namespace."""
    try:
        here = identity(point, follow_symlinks=False)
    except OSError:
        return []
    return [pid for pid in psutil.pids() if _has_root(pid, here)]


def _has_root(pid: int, here: tuple[int, int, int]) -> bool:
    try:
        return identity(f"/proc/{pid}/root") == here
    except OSError:
        return False  # it has ended


# ---- cgroups and units -------------------------------------------------------------------------


def cgroup_of(layout: Layout, pod: Pod, known: State) -> Cgroup | None:
    """A container's cgroup where it is the very one that was made for it, with its unit; None if there is neither."""
    try:
        cgroup = _named(layout, known)
    except ManorError:
        return None  # nonsense
    noted = state.cgroup_inodes(pod.directory, known.id)
    unit = cgroup.unit if cgroup.unit and _is_its_unit(cgroup, noted) else ""
    there = [each for each in cgroup.layout.hierarchies if os.path.isdir(cgroup.paths[each.name])]
    if noted:
        there = _made_for_it(cgroup, there, noted)
    elif not _is_new(cgroup, there, known):
        there = []  # nobody can say that it is ours
    if not there and not unit:
        return None
    found = Cgroup(cgroup.layout, cgroup.path, unit, Systemd if unit else None)
    found.keep(there)
    return found


def _named(layout: Layout, known: State) -> Cgroup:
    """What stands on record. ConfigError."""
    if known.pid:
        made = open_cgroup(layout, known.cgroups_path, known.id)
        made.unit = known.unit
        names = [name for name, _path in known.cgroup_directories]
        made.keep([each for each in layout.hierarchies if not names or each.name in names])
        return made
    option = True if (known.terms or {}).get("systemd") else None
    if driver_of(known.cgroups_path, option) == SYSTEMD:
        unit = parse_unit(known.cgroups_path, known.id)
        return Cgroup(layout, unit.path, unit.name)
    return open_cgroup(layout, known.cgroups_path, known.id)


def _made_for_it(cgroup: Cgroup, there: list[Hierarchy], noted: tuple[int, ...]) -> list[Hierarchy]:
    """Of the directories that there are those that were noted; an earlier version has noted the first one's alone."""
    all_of_it = cgroup.layout.hierarchies
    expected = dict(zip((each.name for each in all_of_it), noted, strict=False))
    mine = [each for each in there if expected.get(each.name) == _inode(cgroup.paths[each.name])]
    if len(noted) == 1 < len(all_of_it):
        first = all_of_it[0]
        return there if first in mine or first not in there else []
    return mine


def _is_new(cgroup: Cgroup, there: list[Hierarchy], known: State) -> bool:
    """Of a cgroup that was not noted: whether it is as empty as one that was just made, or init is still in it."""
    if known.pid and state.is_alive(known.pid, known.start_time):
        return True
    nested = any(os.stat(cgroup.paths[each.name]).st_nlink > 2 for each in there)
    return not nested and not cgroup.holders(1)


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _is_its_unit(cgroup: Cgroup, noted: tuple[int, ...]) -> bool:
    """Whether systemd has that unit, it is one that we have started, and its cgroup is the container's."""
    if not booted_with_systemd():
        return False
    manager = Systemd()
    kind = "Slice" if cgroup.unit.endswith(".slice") else "Scope"
    try:
        told = run(manager.properties(cgroup.unit, ("ActiveState", "Transient", "Description"), "Unit"))
        if told["ActiveState"] not in _STANDING or told["Transient"] is not True:
            return False
        group = str(run(manager.properties(cgroup.unit, ("ControlGroup",), kind))["ControlGroup"])
    except ManorError:
        return False  # nobody answers
    if not group:
        return str(told["Description"]).startswith("container ")
    hierarchies = cgroup.layout.hierarchies
    where = cgroup.layout.unified or hierarchies[0]
    place = f"{where.mountpoint}/{below_root(group, where.root)}"
    if not noted:
        empty = not Cgroup(cgroup.layout, cgroup.path).holders(1)
        return (
            place == cgroup.paths.get(where.name)
            and empty
            and str(told["Description"]).startswith("container ")
        )
    return (
        where in hierarchies
        and len(noted) > (index := hierarchies.index(where))
        and _inode(place) == noted[index]
    )


# ---- resctrl -----------------------------------------------------------------------------------


def _group_path(known: State) -> str:
    said = (known.terms or {}).get("rdt")
    if not isinstance(said, (list, tuple)) or len(said) != 2 or type(said[0]) is not str:
        return ""
    return rdt.place(said[0], said[1] is True)


def group_of(pod: Pod, known: State, foreign: Container[str]) -> Group | None:
    """A container's resctrl group, if it is there, and the very one that was made for it."""
    path = _group_path(known)
    try:
        if (
            not path
            or path in foreign
            or not rdt.is_place(path, rdt.find_resctrl())
            or not os.path.isdir(path)
        ):
            return None
        tasks = tuple(rdt.tasks(path))
    except ManorError:
        return None  # there is no resctrl
    noted = state.rdt_inode(pod.directory, known.id)
    if noted != _inode(path) and (noted or tasks):
        return None  # made anew, or nobody can say that it is ours
    return Group(path, tasks)
