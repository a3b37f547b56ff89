"""Makes a container's mounts: in its new mount namespace, while the host's root is still `/`.

One function per kind of step, each two or three system calls long: find the target as a descriptor inside
the root, make the mount detached, check the target once more, move the mount onto it. What to do was
decided by `plan`; the order of the steps is the plan's.
"""

from __future__ import annotations

import errno
import os
import stat

from runtime.errors import MountError, describe
from runtime.linux import constants as c
from runtime.linux import mount as m
from runtime.linux.beneath import RESOLVE_NO_MAGICLINKS, Root, clean, openat2
from runtime.linux.fds import OwnedFd, close_all
from runtime.rootfs.copy_up import copy_tree
from runtime.rootfs.devices import make_console_place, make_devices
from runtime.rootfs.filesystem import make_filesystem
from runtime.rootfs.plan import BindStep, FilesystemStep, check_proc
from runtime.spec.checks import named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.rootfs.plan import RootfsPlan, Step, SymlinkStep

    # Has the host's side open the source of the step with that number (`id_map.Sources.open`).
    AskHost = Callable[[int], OwnedFd]
    # Has a procfs made by a process of the PID namespace that it is to show, which sees no more than the root.
    MakeInside = Callable[[Root, Callable[[], OwnedFd]], OwnedFd]

AT_FDCWD = -100
_SYSFS_MAGIC = 0x62656572
_PROC_ROOT_INODE = 1  # linux/proc_ns.h


class MountedRoot:
    """A container's root with its mounts made. Owns the descriptors that the steps after this need."""

    __slots__ = ("ask_host", "late_read_only", "make_inside", "null", "own_cgroups", "place", "plan", "root")

    def __init__(
        self,
        plan: RootfsPlan,
        root: Root,
        ask_host: AskHost | None = None,
        make_inside: MakeInside | None = None,
    ) -> None:
        self.plan = plan
        self.root = root
        self.ask_host, self.make_inside = ask_host, make_inside
        self.place = _place(root.fileno())  # where the host sees it: the check that a target lies in it
        self.late_read_only: list[OwnedFd] = []
        self.null: OwnedFd | None = None
        self.own_cgroups: dict[str, str] | None = None

    def filenos(self) -> tuple[int, ...]:
        """The descriptors that whoever goes on with it needs."""
        late = tuple([mount.fileno() for mount in self.late_read_only])
        return (
            (self.root.fileno(), *late)
            if self.null is None
            else (self.root.fileno(), self.null.fileno(), *late)
        )

    def close(self) -> None:
        """Close what is still open."""
        self.root.close()
        close_all(self.late_read_only)
        if self.null is not None:
            self.null.close()


def apply_mounts(
    plan: RootfsPlan, ask_host: AskHost | None = None, make_inside: MakeInside | None = None
) -> MountedRoot:
    """Make the mounts, devices and symlinks of `plan`. The umask is 0 from here on until `protect`.

    The caller is in a mount namespace made for this container and in the namespaces whose file systems are
    to be mounted. `ask_host` opens what only the host may: id-mapped mounts, and sources that the root of a
    user namespace cannot reach; `make_inside` has a procfs made where we are not in the PID namespace that it
    shows. MountError names the mount that failed and why.
    """
    os.umask(0)
    if not plan.on_host:
        _set_propagation(plan)
    mounted = MountedRoot(plan, _open_root(plan), ask_host, make_inside)
    try:
        for number, step in enumerate(plan.steps):
            _apply(mounted, step, number)
        if plan.populate_dev:
            make_devices(mounted.root, plan)
        if plan.console:
            make_console_place(mounted.root)
        if plan.masked_paths:
            mounted.null = _host_null()
    except BaseException:
        if plan.on_host:  # nobody else takes our mounts away; a namespace would end with us
            m.umount2(f"/proc/self/fd/{mounted.root.fileno()}", m.MNT_DETACH)
        raise
    return mounted


# ---- the root ----------------------------------------------------------------------------------


def _set_propagation(plan: RootfsPlan) -> None:
    kind, recursive = plan.propagation & ~m.MS_REC, bool(plan.propagation & m.MS_REC)
    try:
        m.mount_setattr(AT_FDCWD, path="/", propagation=kind, recursive=recursive)
    except OSError as error:
        raise MountError(f"set the propagation of /: {describe(error)}") from error


def _open_root(plan: RootfsPlan) -> Root:
    try:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        with openat2(AT_FDCWD, plan.root, flags, RESOLVE_NO_MAGICLINKS) as directory:
            return _make_mount(plan, directory)
    except NotADirectoryError as error:
        raise MountError("not a directory, or a symlink") from error
    except OSError as error:
        raise MountError(error.strerror) from error  # the step that is going on names it


def _make_mount(plan: RootfsPlan, directory: OwnedFd) -> Root:
    """The root as a mount of its own, which pivot_root(2) asks for: as it is, or bound onto itself."""
    if not plan.bind_root and not plan.on_host:
        try:
            m.mount_setattr(directory.fileno(), propagation=plan.first_propagation)
            return Root(OwnedFd(directory.release()))
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: not the root of a mount
                raise
    elif not plan.on_host:
        _set_parent_propagation(plan.root, plan.first_propagation)
    with m.clone_tree(directory.fileno(), recursive=True) as tree:
        m.mount_setattr(tree.fileno(), propagation=plan.first_propagation)
        m.move_mount(tree.fileno(), directory.fileno())
        if plan.on_host:  # below a shared mount it has become one
            m.mount_setattr(tree.fileno(), propagation=m.MS_PRIVATE)
        return Root(OwnedFd(tree.release()))


def _set_parent_propagation(path: str, kind: int) -> None:
    """The mount that holds `path`: pivot_root refuses a shared one, and binds would propagate from it."""
    while True:
        try:
            m.mount_setattr(AT_FDCWD, path=path, propagation=kind)
        except OSError as error:
            if error.errno != errno.EINVAL or path == "/":
                raise
            path = os.path.dirname(path)
        else:
            return


def _place(fd: int) -> str:
    # The host's procfs: nothing of the container's is reachable as /proc before the pivot.
    return os.readlink(f"/proc/self/fd/{fd}")


# ---- one step ----------------------------------------------------------------------------------


def _apply(mounted: MountedRoot, step: Step, number: int) -> None:
    try:
        if isinstance(step, BindStep):
            with _open_source(mounted, step, number) as tree:
                _bind(mounted, step, tree)
        elif isinstance(step, FilesystemStep):
            _mount_filesystem(mounted, step)
        else:
            _symlink(mounted.root, step)
    except OSError as error:
        raise MountError(f"{step.path}: {_subject(step)}: {describe(error)}") from error


def _subject(step: Step) -> str:
    if isinstance(step, BindStep):
        return f"bind {named(step.source)} on {named(step.destination)}"
    if isinstance(step, FilesystemStep):
        return f"mount {named(step.type)} on {named(step.destination)}"
    return f"make symlink {named(step.destination)}"


def _mount_filesystem(mounted: MountedRoot, step: FilesystemStep) -> None:
    target, options = _find_directory(mounted.root, step)
    with target:
        _check_target(mounted, target, step, step.type)
        try:
            if step.type == "proc" and mounted.make_inside is not None:
                mount = mounted.make_inside(mounted.root, lambda: make_filesystem(step, options, target))
            else:
                mount = make_filesystem(step, options, target)
        except OSError as error:
            if step.instead is None or error.errno not in (errno.EPERM, errno.EBUSY):
                raise
            with _open_source(mounted, step.instead, -1) as tree:
                _bind(mounted, step.instead, tree)
            return
        with mount:
            if step.copy_up:
                copy_tree(target.fileno(), mount.fileno())
            m.move_mount(mount.fileno(), target.fileno())
            _set_kinds(mount.fileno(), step)
            if step.late_read_only:
                mounted.late_read_only.append(OwnedFd(mount.release()))
    _check_in_place(mounted.root, step)


def _find_directory(root: Root, step: FilesystemStep) -> tuple[OwnedFd, tuple[tuple[str, str | None], ...]]:
    """The directory to mount on, made if missing, and the options; a tmpfs takes over the directory's mode."""
    if _must_be_plain(step.destination):
        return _plain_directory(root, step.destination), step.options
    if step.type != "tmpfs" or any(key == "mode" for key, _value in step.options):
        return root.make_directories(step.destination), step.options
    try:
        target = root.open(step.destination, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return root.make_directories(step.destination), step.options
    mode = stat.S_IMODE(os.fstat(target.fileno()).st_mode)
    return target, (("mode", f"{mode:o}"), *step.options)


def _open_source(mounted: MountedRoot, step: BindStep, number: int) -> OwnedFd:
    """What is to be mounted, detached: opened by us where we may, else by the host's side as step `number`."""
    source = step.source
    if step.below_own_cgroup is not None:
        source += _own_cgroup(mounted, step.below_own_cgroup)
    ask_host = None if number < 0 or step.below_own_cgroup is not None else mounted.ask_host
    if step.id_map is not None:
        if ask_host is None:
            raise MountError(f"{step.path}: only the host's side can map the ids of {named(source)}")
        return ask_host(number)
    try:
        if step.inside is not None:
            with mounted.root.open(step.inside) as place:
                return m.clone_tree(place.fileno(), recursive=step.recursive)
        return m.clone_tree(AT_FDCWD, source, recursive=step.recursive)
    except FileNotFoundError as error:
        raise MountError(f"{step.path}: source {named(source)} does not exist") from error
    except OSError as error:
        if error.errno != errno.EACCES or ask_host is None or step.inside is not None:
            raise
        return ask_host(number)  # root of a user namespace, before a directory that is not open to it


def _bind(mounted: MountedRoot, step: BindStep, tree: OwnedFd) -> None:
    with _bind_target(mounted.root, step, tree) as target:
        on_proc = _must_be_plain(step.destination) and _is_proc_root(tree, step)
        _check_target(mounted, target, step, "proc" if on_proc else "bind")
        _dress(tree.fileno(), step)
        m.move_mount(tree.fileno(), target.fileno())
        _set_kinds(tree.fileno(), step)


def _is_proc_root(tree: OwnedFd, step: BindStep) -> bool:
    """Whether the source is a procfs as it stands; part of one would be a /proc with files of our choice."""
    if m.filesystem_magic(tree.fileno()) != c.PROC_SUPER_MAGIC:
        return False
    if os.fstat(tree.fileno()).st_ino != _PROC_ROOT_INODE:
        raise MountError(f"{step.path}: {named(step.source)} is part of a procfs, and not the root of one")
    return True


def _bind_target(root: Root, step: BindStep, tree: OwnedFd) -> OwnedFd:
    if _must_be_plain(step.destination):
        return _plain_directory(root, step.destination)
    if _is_directory(tree):
        return root.make_directories(step.destination)
    target = root.make_file(step.destination)
    if _is_directory(target):  # move_mount(2) would say no more than EINVAL
        target.close()
        raise MountError(
            f"{step.path}: {named(step.source)} is not a directory, {named(step.destination)} is one"
        )
    return target


def _is_directory(fd: OwnedFd) -> bool:
    return stat.S_ISDIR(os.fstat(fd.fileno()).st_mode)


def _set_kinds(fd: int, step: FilesystemStep | BindStep) -> None:
    """The propagation; only now that it is in its place, for it would be shared by moving it into a shared mount."""
    for kind, recursive in step.propagation:
        m.mount_setattr(fd, propagation=kind, recursive=recursive)


def _dress(fd: int, step: BindStep) -> None:
    if step.change is not None:
        try:
            m.mount_setattr(fd, step.change.set, step.change.clear)
        except PermissionError:
            if os.fstatvfs(fd).f_flag & step.unwanted_atime:
                raise
            m.mount_setattr(fd, step.gentle.set, step.gentle.clear)
    deep = step.recursive_change
    if deep.set or deep.clear:
        m.mount_setattr(fd, deep.set, deep.clear, recursive=True)


def _own_cgroup(mounted: MountedRoot, hierarchy: str) -> str:
    """Our cgroup in a hierarchy, as /proc/self/cgroup has it (cgroups(7)); we have joined it by now."""
    if mounted.own_cgroups is None:
        mounted.own_cgroups = {}
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for line in file:
                _number, controllers, path = line.rstrip("\n").split(":", 2)
                mounted.own_cgroups[controllers or "unified"] = path
    own = mounted.own_cgroups.get(hierarchy)
    if own is None or ".." in own.split("/"):
        raise MountError(f"our own cgroup in the hierarchy {hierarchy} is not visible")
    return own


def _symlink(root: Root, step: SymlinkStep) -> None:
    with root.make_directories(os.path.dirname(step.destination)) as parent:
        try:
            os.symlink(step.target, os.path.basename(step.destination), dir_fd=parent.fileno())
        except FileExistsError:
            pass


# ---- targets -----------------------------------------------------------------------------------


def _must_be_plain(destination: str) -> bool:
    return clean(destination) in ("/proc", "/sys")


def _plain_directory(root: Root, destination: str) -> OwnedFd:
    """/proc or /sys itself. As a symlink it would bring a procfs to another place, and leave a fake one here."""
    try:
        try:
            return root.open_plain(destination, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            root.make_directories(destination).close()
            return root.open_plain(destination, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise MountError(
                f"{destination} must be mounted on ordinary directory, and a symlink or a file is there"
            ) from error
        raise


def _check_target(mounted: MountedRoot, target: OwnedFd, step: FilesystemStep | BindStep, kind: str) -> None:
    """Where the target really is, all symlinks resolved: inside the root, not the root, not hiding /proc."""
    place = _place(target.fileno())
    inside = place.removeprefix(mounted.place)
    if inside == place or not inside.startswith("/"):
        raise MountError(
            f"{step.path}: {named(step.destination)} leads to {named(place)}, not to a place for a mount"
        )
    check_proc(f"{step.path}.destination", inside, kind)


def _check_in_place(root: Root, step: FilesystemStep) -> None:
    """Look again: what was mounted on /proc and /sys must be what everybody will find there."""
    expected = {"/proc": c.PROC_SUPER_MAGIC, "/sys": _SYSFS_MAGIC}.get(clean(step.destination))
    if expected is None or step.type not in ("proc", "sysfs"):
        return
    with root.open_plain(step.destination) as found:
        if m.filesystem_magic(found.fileno()) != expected:
            raise MountError(f"{step.path}: something else than {step.type} is on {step.destination}")


def _host_null() -> OwnedFd:
    """A detached mount of the host's /dev/null, the only file that masks are made of."""
    with openat2(AT_FDCWD, "/dev/null", os.O_PATH | os.O_NOFOLLOW, RESOLVE_NO_MAGICLINKS) as null:
        status = os.fstat(null.fileno())
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
            raise MountError("the host's /dev/null is not the null device, and nothing can be masked with it")
        return m.clone_tree(null.fileno())
