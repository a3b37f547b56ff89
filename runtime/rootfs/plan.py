"""The plan of a container's file system: a pure function from Spec, bundle and cgroup layout to a value.

What can be refused is refused here, with the JSON path of what is wrong: options that mean nothing, mounts
over /proc, unsupported kinds. `apply`, `pivot` and `protect` carry the plan out and decide nothing; they
check again what only the file system itself can tell, such as where a path leads to.
"""

from __future__ import annotations

import os

from runtime.errors import ConfigError
from runtime.linux import mount as m
from runtime.linux.beneath import clean
from runtime.record import Record, replace
from runtime.rootfs.device_plan import plan_devices
from runtime.rootfs.id_map import plan_id_map
from runtime.rootfs.options import (
    PROPAGATION,
    AttributeChange,
    bind_change,
    filesystem_options,
    gentle_bind_change,
    new_mount_attributes,
    parse_options,
    unwanted_atime,
)
from runtime.spec.checks import named, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.layout import CgroupView
    from runtime.rootfs.device_plan import DeviceNode
    from runtime.rootfs.id_map import IdMap
    from runtime.rootfs.options import MountOptions
    from runtime.spec.model import Linux, Mount, Spec

# What lxcfs and its like may put over files of /proc; everything else below it is refused.
_PROC_FILES = "cpuinfo diskstats meminfo stat swaps uptime loadavg slabinfo"
PROC_FILES = frozenset(
    (
        *(f"/proc/{name}" for name in _PROC_FILES.split()),
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/crypto/fips_enabled",
    )
)

DEFAULT_UMASK = 0o022
_UNLABELED = ("proc", "sysfs", "mqueue")  # they take no SELinux context as a mount option


class FilesystemStep(Record):
    """Mount a new file system of `type`. `late_read_only` waits until everything is in its place."""

    path: str
    destination: str
    type: str
    source: str | None
    options: tuple[tuple[str, str | None], ...] = ()
    attributes: int = 0
    propagation: tuple[tuple[int, bool], ...] = ()
    copy_up: bool = False
    late_read_only: bool = False
    instead: BindStep | None = None


class BindStep(Record):
    """Mount what is at `source` again. `change` None keeps its attributes.

    Where a user namespace has locked some of those, `gentle` is tried, and no access time of `unwanted_atime` (ST_*)
    may be left.

    With `below_own_cgroup`, a hierarchy's name, `source` is that hierarchy's mount point and what is mounted
    is our own cgroup in it. A mount with an `id_map` is made by the host's side, which alone may. `inside` is where
    in the container's root the source lies, if it does: there an image's symlinks lead to places inside.
    """

    path: str
    destination: str
    source: str
    recursive: bool = False
    change: AttributeChange | None = None
    gentle: AttributeChange = AttributeChange()
    unwanted_atime: int = 0
    recursive_change: AttributeChange = AttributeChange()
    propagation: tuple[tuple[int, bool], ...] = ()
    below_own_cgroup: str | None = None
    id_map: IdMap | None = None
    inside: str | None = None


class SymlinkStep(Record):
    """Make a symlink; one that is there stays."""

    path: str
    destination: str
    target: str


if TYPE_CHECKING:
    Step = FilesystemStep | BindStep | SymlinkStep


class RootfsPlan(Record):
    """Everything about a container's file system. Propagations are MS_* with MS_REC as mount(2) has them.

    `propagation` is for all that the host has given us a copy of, `first_propagation` for the root while mounts are
    made below it, `root_propagation` (0 for none) for the root in the end. `on_host`: there is no mount namespace
    but the host's, so what is not below the root is left as it is.
    """

    root: str
    steps: tuple[Step, ...] = ()
    on_host: bool = False
    propagation: int = m.MS_SLAVE | m.MS_REC
    first_propagation: int = m.MS_PRIVATE
    root_propagation: int = 0
    bind_root: bool = False
    no_pivot: bool = False
    devices: tuple[DeviceNode, ...] = ()
    bind_devices: bool = False
    populate_dev: bool = True
    console: bool = False
    read_only: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str | None = None
    cwd: str = "/"
    umask: int = DEFAULT_UMASK


class _Surroundings(Record):
    """What a mount's plan depends on besides the mount."""

    bundle: str
    root: str
    view: CgroupView
    own_cgroups: bool
    linux: Linux

    @property
    def label(self) -> str | None:
        """The SELinux label of new file systems."""
        return self.linux.mount_label


def plan_rootfs(spec: Spec, bundle: str, view: CgroupView, no_pivot: bool = False) -> RootfsPlan:
    """The plan for `spec`, whose relative paths start at the absolute path `bundle`.

    ConfigError names the JSON path of what cannot be.
    """
    linux = spec.linux
    namespaces = {namespace.type: namespace.path for namespace in linux.namespaces}
    propagation = _propagation(linux.rootfs_propagation, no_pivot)
    private = linux.rootfs_propagation is None or not propagation & m.MS_SLAVE
    steps: list[Step] = []
    root = _below(bundle, spec.root.path)
    around = _Surroundings(bundle, root, view, "cgroup" in namespaces, linux)
    for index, mount in enumerate(spec.mounts):
        steps += _plan_mount(f"mounts[{index}]", mount, around)
    return RootfsPlan(
        root=root,
        steps=tuple(steps),
        propagation=propagation,
        on_host="mount" not in namespaces,
        first_propagation=m.MS_PRIVATE if private else m.MS_SLAVE,
        root_propagation=propagation if propagation & (m.MS_SHARED | m.MS_UNBINDABLE) else 0,
        # A mount that a user namespace has inherited cannot be moved, and beside a shared parent none can.
        bind_root="user" in namespaces
        or not (propagation & (m.MS_SLAVE | m.MS_PRIVATE) and propagation & m.MS_REC),
        no_pivot=no_pivot,
        devices=plan_devices(linux.devices),
        bind_devices="user" in namespaces,
        populate_dev=not any(
            isinstance(step, BindStep) and clean(step.destination) == "/dev" for step in steps
        ),
        console=spec.process.terminal,
        read_only=spec.root.readonly,
        masked_paths=_distinct(linux.masked_paths),
        readonly_paths=_distinct(linux.readonly_paths),
        mount_label=linux.mount_label,
        cwd=spec.process.cwd,
        umask=DEFAULT_UMASK if spec.process.user.umask is None else spec.process.user.umask,
    )


def root_on_host(spec: Spec, bundle: str) -> str:
    """The root of a container that has no mount namespace of its own, so that its mounts outlive it; "" for others."""
    if any(namespace.type == "mount" for namespace in spec.linux.namespaces):
        return ""
    return _below(bundle, spec.root.path)


def _propagation(asked: str | None, no_pivot: bool) -> int:
    propagation, recursive = PROPAGATION[asked or "rslave"]
    if no_pivot and propagation == m.MS_PRIVATE:
        raise ConfigError("linux.rootfsPropagation", f"{asked} is not safe without pivot_root")
    return propagation | (m.MS_REC if recursive else 0)


def _inside(destination: str, root: str) -> str:
    """`destination` as it reads in the container; as in runc it may also be given as the host sees it."""
    place = clean(destination)
    if place == root or place.startswith(f"{root}/"):
        return clean(place[len(root) :])
    return destination


def _below(bundle: str, path: str) -> str:
    return os.path.normpath(path if path.startswith("/") else f"{bundle}/{path}")


def _distinct(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(clean(path) for path in paths))


# ---- mounts ------------------------------------------------------------------------------------


def _plan_mount(path: str, mount: Mount, around: _Surroundings) -> list[Step]:
    options = parse_options(mount.options)
    id_map = plan_id_map(path, mount, options, around.linux)
    mount = replace(mount, destination=_inside(mount.destination, around.root))
    place = clean(mount.destination)
    if place == "/":
        raise ConfigError(f"{path}.destination", "the root itself cannot be mounted over")
    if options.flags & m.MS_REMOUNT:
        raise ConfigError(f"{path}.options", "remount has no meaning for a new mount")
    if options.bind or mount.type == "bind":
        if place != "/proc":  # a procfs may be bound there: whether it is one, `apply` sees
            check_proc(f"{path}.destination", place, "bind")
        return [replace(_plan_bind(path, mount, around, options), id_map=id_map)]
    if mount.type is None:
        raise ConfigError(f"{path}.type", "is missing, and the options do not say bind")
    check_proc(f"{path}.destination", place, mount.type)
    if mount.type == "cgroup":
        return _plan_cgroup(path, mount, options, around)
    return [_plan_filesystem(path, mount, options, around.label)]


def check_proc(path: str, place: str, kind: str) -> None:
    """ConfigError for `path` if a mount of `kind` on the absolute `place` could hide or fake part of /proc."""
    if place == "/proc":
        if kind != "proc":
            raise ConfigError(path, f"{named(kind)} cannot be mounted on /proc, only a procfs can")
    elif place.startswith("/proc/") and place not in PROC_FILES:
        raise ConfigError(path, f"{named(place)} is inside /proc")


def _plan_bind(path: str, mount: Mount, around: _Surroundings, options: MountOptions) -> BindStep:
    if options.data:
        raise ConfigError(f"{path}.options", f"{shown(options.data[0])} has no meaning for a bind mount")
    if mount.source is None:
        raise ConfigError(f"{path}.source", "is missing")
    source = _below(around.bundle, mount.source)
    inside = source[len(around.root) :] if source.startswith(f"{around.root}/") else None
    return replace(_bind(path, mount.destination, source, options), inside=inside)


def _bind(
    path: str, destination: str, source: str, options: MountOptions, cgroup: str | None = None
) -> BindStep:
    return BindStep(
        path=path,
        destination=destination,
        source=source,
        recursive=bool(options.flags & m.MS_REC) or cgroup is not None,
        change=bind_change(options),
        gentle=gentle_bind_change(options),
        unwanted_atime=unwanted_atime(options),
        recursive_change=options.recursive,
        propagation=options.propagation,
        below_own_cgroup=cgroup,
    )


def _plan_filesystem(path: str, mount: Mount, options: MountOptions, label: str | None) -> FilesystemStep:
    assert mount.type is not None
    attributes = new_mount_attributes(options)
    settings = filesystem_options(options)
    if label is not None and mount.type not in _UNLABELED:
        settings += (("context", label),)
    if options.copy_up and mount.type != "tmpfs":
        raise ConfigError(f"{path}.options", f"tmpcopyup has no meaning for {named(mount.type)}")
    late = bool(attributes & m.MOUNT_ATTR_RDONLY) and (
        mount.type == "tmpfs" or clean(mount.destination) == "/dev"
    )
    if late:  # other mounts' places and device nodes are still to be made in it
        attributes &= ~m.MOUNT_ATTR_RDONLY
        settings = tuple([each for each in settings if each != ("ro", None)])
    return FilesystemStep(
        path=path,
        destination=mount.destination,
        type=mount.type,
        source=mount.source,
        options=settings,
        attributes=attributes,
        propagation=options.propagation,
        copy_up=options.copy_up,
        late_read_only=late,
    )


# ---- cgroups -----------------------------------------------------------------------------------


def _plan_cgroup(path: str, mount: Mount, options: MountOptions, around: _Surroundings) -> list[Step]:
    """A `cgroup` mount: the v2 tree on a unified machine, else a tmpfs with one directory for each v1 hierarchy.

    With a cgroup namespace of its own the container mounts the hierarchies, and their root is its own cgroup.
    Without one it has them by bind mounts, as runc does: in v1 its own cgroup alone, in v2 the whole tree, in which
    it has to find itself by /proc/self/cgroup.
    """
    if around.view.mode == "unified":
        name, mountpoint, _version = next(each for each in around.view.mounts if each[2] == 2)
        if not around.own_cgroups:
            # Bound, for mounting it anew would set its options (nsdelegate …) for the whole node: it is but one.
            return [replace(_bind(path, mount.destination, mountpoint, options), recursive=True)]
        bind = _bind(path, mount.destination, mountpoint, options, name)
        step = FilesystemStep(
            path=path,
            destination=mount.destination,
            type="cgroup2",
            source=mount.source,
            options=filesystem_options(options),
            attributes=new_mount_attributes(options),
            propagation=options.propagation,
            instead=bind,  # EPERM and EBUSY: in a user namespace that does not own the cgroup namespace
        )
        return [step]
    return _plan_v1_cgroups(path, mount, options, around)


def _plan_v1_cgroups(path: str, mount: Mount, options: MountOptions, around: _Surroundings) -> list[Step]:
    base = m.MOUNT_ATTR_NOEXEC | m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV
    read_only = options.flags & m.MS_RDONLY
    holder = FilesystemStep(
        path=path,
        destination=mount.destination,
        type="tmpfs",
        source="tmpfs",
        options=(("mode", "755"),) if around.label is None else (("mode", "755"), ("context", around.label)),
        attributes=base,
        propagation=options.propagation,
        late_read_only=bool(read_only),
    )
    steps: list[Step] = [holder]
    for name, mountpoint, version in around.view.mounts:
        if version != 1:
            continue
        directory = os.path.basename(mountpoint)
        destination = f"{mount.destination.rstrip('/')}/{directory}"
        if around.own_cgroups:
            steps.append(_v1_hierarchy(path, destination, name, base, bool(read_only)))
        else:
            steps.append(_bind(path, destination, mountpoint, options, name))
        if "," in directory:
            steps += [
                SymlinkStep(path, f"{mount.destination.rstrip('/')}/{controller}", directory)
                for controller in directory.split(",")
            ]
    return steps


def _v1_hierarchy(path: str, destination: str, name: str, attributes: int, read_only: bool) -> FilesystemStep:
    settings: list[tuple[str, str | None]] = [("ro", None)] if read_only else []
    for word in name.split(","):
        key, equals, value = word.partition("=")
        settings.append((key, value if equals else None))
    return FilesystemStep(
        path=path,
        destination=destination,
        type="cgroup",
        source=name.removeprefix("name=") if name.startswith("name=") else "cgroup",
        options=tuple(settings),
        attributes=attributes | (m.MOUNT_ATTR_RDONLY if read_only else 0),
    )
