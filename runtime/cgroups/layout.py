"""Where cgroups are mounted on this machine, and what a container's cgroup path means there.

Read once, before the warden forks, and inherited: nothing here is looked up again per container. It
knows paths and names only; it makes no directory and writes no file.
"""

from __future__ import annotations

import os

from runtime.errors import CgroupError, ConfigError, Unsupported
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    Places = dict[str, tuple[str, int]]  # controller: (directory, version)

LEGACY = "legacy"
HYBRID = "hybrid"
UNIFIED = "unified"

# What /proc/self/mountinfo may list as a v1 mount's controllers; other super options say how, not what.
_V1_CONTROLLERS = frozenset(
    ("cpuset", "cpu", "cpuacct", "blkio", "memory", "devices", "freezer", "pids", "hugetlb", "rdma", "misc")
) | {"net_cls", "net_prio", "perf_event", "debug"}
_USUAL_PLACE = "/sys/fs/cgroup"
_LONGEST_NAME = 255  # NAME_MAX, cgroupfs keeps to it
_LONGEST_PATH = 3500  # leaves room below PATH_MAX for the mount point and a file's name


class Hierarchy(Record):
    """One tree of cgroups: a v1 mount with its controllers, or the v2 mount with those its root offers.

    `name` is the key of `Cgroup.paths`: the controllers as mounted ("cpu,cpuacct", "name=systemd"), or
    "unified". `root` is the part of the tree that the mount shows, "/" unless we are in a container ourselves.
    """

    name: str
    controllers: tuple[str, ...]
    mountpoint: str
    version: int
    root: str = "/"


class CgroupView(Record):
    """What a container's `cgroup` mount must know of the layout: (name, mount point, version) of each hierarchy."""

    mode: str
    mounts: tuple[tuple[str, str, int], ...]


class Layout(Record):
    """All hierarchies of this machine. `mode` is "legacy" (v1 only), "hybrid" (v1 controllers, and a v2
    tree beside them) or "unified" (every controller in v2).
    """

    mode: str
    hierarchies: tuple[Hierarchy, ...]

    def find(self, controller: str) -> Hierarchy | None:
        """The hierarchy that has `controller`, or None."""
        for hierarchy in self.hierarchies:
            if controller in hierarchy.controllers:
                return hierarchy
        return None

    @property
    def unified(self) -> Hierarchy | None:
        """The v2 hierarchy, or None on a legacy machine."""
        for hierarchy in self.hierarchies:
            if hierarchy.version == 2:
                return hierarchy
        return None

    @property
    def v1(self) -> tuple[Hierarchy, ...]:
        """The v1 hierarchies, named ones included."""
        return tuple([hierarchy for hierarchy in self.hierarchies if hierarchy.version == 1])

    def places(self, path: str) -> Places:
        """The directory of the cgroup `path`, and the version, for each controller of this machine."""
        return {
            controller: (f"{each.mountpoint}/{path}", each.version)
            for each in self.hierarchies
            for controller in each.controllers
        }

    def view(self) -> CgroupView:
        """This layout as rootfs planning needs it."""
        mounts = tuple([(each.name, each.mountpoint, each.version) for each in self.hierarchies])
        return CgroupView(mode=self.mode, mounts=mounts)


def detect_layout(mountinfo: str = "/proc/self/mountinfo") -> Layout:
    """Read the mounts of this process (proc_pid_mountinfo(5)) and the controllers of the v2 root.

    Raises CgroupError where no cgroup hierarchy is mounted, OSError where mountinfo can't be read.
    """
    with open(mountinfo, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        hierarchies = parse_mountinfo(file.read())
    completed = tuple([_with_v2_controllers(each) if each.version == 2 else each for each in hierarchies])
    return make_layout(completed)


def make_layout(hierarchies: tuple[Hierarchy, ...]) -> Layout:
    """A layout of `hierarchies`, its mode told from them. CgroupError if there are none."""
    if not hierarchies:
        raise CgroupError("no cgroup hierarchy is mounted")
    has_v2 = any(each.version == 2 for each in hierarchies)
    v1_controllers = [
        name for each in hierarchies if each.version == 1 for name in each.controllers if "=" not in name
    ]
    if not has_v2:
        return Layout(mode=LEGACY, hierarchies=hierarchies)
    return Layout(mode=HYBRID if v1_controllers else UNIFIED, hierarchies=hierarchies)


def _with_v2_controllers(hierarchy: Hierarchy) -> Hierarchy:
    with open(f"{hierarchy.mountpoint}/cgroup.controllers", encoding="ascii") as file:
        controllers = tuple(file.read().split())
    return Hierarchy(
        name=hierarchy.name,
        controllers=controllers,
        mountpoint=hierarchy.mountpoint,
        version=2,
        root=hierarchy.root,
    )


def parse_mountinfo(text: str) -> tuple[Hierarchy, ...]:
    """The cgroup mounts in `text`, one for each hierarchy, in the order they were mounted.

    A hierarchy that is mounted twice (in a container's root, say) counts where it shows its whole tree,
    then where it lies below /sys/fs/cgroup.
    """
    found: dict[str, Hierarchy] = {}
    for line in text.split("\n"):  # what else splitlines() takes for an end may be in a name
        hierarchy = _parse_mount(line)
        if hierarchy is None:
            continue
        other = found.get(hierarchy.name)
        if other is None or _preference(hierarchy) > _preference(other):
            found[hierarchy.name] = hierarchy
    return tuple(found.values())


def _preference(hierarchy: Hierarchy) -> tuple[bool, bool]:
    place = hierarchy.mountpoint
    return (hierarchy.root == "/", place == _USUAL_PLACE or place.startswith(f"{_USUAL_PLACE}/"))


def _parse_mount(line: str) -> Hierarchy | None:
    before, _dash, after = line.partition(" - ")
    fields, tail = before.split(" "), after.split(" ")
    if len(fields) < 6 or len(tail) < 3 or tail[0] not in ("cgroup", "cgroup2"):
        return None
    root, mountpoint = _unescape(fields[3]), _unescape(fields[4])
    if tail[0] == "cgroup2":
        return Hierarchy(name="unified", controllers=(), mountpoint=mountpoint, version=2, root=root)
    options = tail[2].split(",")
    controllers = tuple([name for name in options if name in _V1_CONTROLLERS or name.startswith("name=")])
    if not controllers:
        return None
    name = ",".join(controllers)
    return Hierarchy(name=name, controllers=controllers, mountpoint=mountpoint, version=1, root=root)


def _unescape(text: str) -> str:
    """Blank, tab, newline and backslash stand as three octal digits in mountinfo."""
    for octal, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(octal, plain)
    return text


def parse_cgroups_path(cgroups_path: str, container_id: str = "") -> str:
    """`linux.cgroupsPath` as a clean path relative to every hierarchy's mount point.

    Absolute and relative paths mean the same, below the mount point, wherever our own process sits; an
    empty one means the container's id (runtime-spec, config-linux.md, "Cgroups Path"). ConfigError for a
    path with `..`, NUL or an impossible name; Unsupported for systemd's `slice:prefix:name`.
    """
    where = "linux.cgroupsPath"
    if "\0" in cgroups_path or "\n" in cgroups_path:
        raise ConfigError(where, f"{cgroups_path[:300]!r} contains a control character")
    if cgroups_path.count(":") == 2 and "/" not in cgroups_path:
        raise Unsupported(
            f"{where}: {cgroups_path[:300]!r} asks for the systemd cgroup driver, and this is the one of the file "
            "system: kubelet, containerd and runtime must all use the same"
        )
    parts = [part for part in cgroups_path.split("/") if part not in ("", ".")] or [container_id]
    for part in parts:
        if part in ("", ".."):
            problem = "contains '..'" if part else "names no cgroup"
            raise ConfigError(where, f"{cgroups_path[:300]!r} {problem}")
        if len(os.fsencode(part)) > _LONGEST_NAME:
            raise ConfigError(where, f"a name of more than {_LONGEST_NAME} bytes")
    path = "/".join(parts)
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ConfigError(where, f"a path of more than {_LONGEST_PATH} bytes")
    return path


def unified_path(proc_cgroup: str, root: str) -> str | None:
    """The v2 entry ("0::/path") of a /proc/PID/cgroup text, relative to a mount that shows `root`.

    None if there is no such entry, or if it lies outside of what the mount shows.
    """
    for line in proc_cgroup.split("\n"):  # a container names its cgroups, with all but that
        if line.startswith("0::/"):
            path = line[3:]
            break
    else:
        return None
    return below_root(path, root)


def below_root(path: str, root: str) -> str | None:
    """The absolute cgroup `path` relative to a mount that shows `root`; None if it lies outside of that."""
    if root != "/":
        if path != root and not path.startswith(f"{root}/"):
            return None
        path = path[len(root) :]
    relative = path.strip("/")
    return None if ".." in relative.split("/") else relative
