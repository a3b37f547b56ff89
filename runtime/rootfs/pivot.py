"""Makes the container's root the root of the mount namespace and lets go of the host's.

Normally by pivot_root(2). Where that cannot be (a root on the initial ramfs, runc's --no-pivot) the root is
moved over `/` instead, after the host's proc and sysfs have been taken out of reach. In the host's own mount
namespace it is no more than a chroot(2).
"""

from __future__ import annotations

import errno
import os

from runtime.errors import MountError, describe
from runtime.linux import constants as c
from runtime.linux import mount as m
from runtime.linux.fds import OwnedFd
from runtime.linux.process import unshare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from io import TextIOWrapper

    from runtime.linux.beneath import Root
    from runtime.rootfs.apply import MountedRoot

AT_FDCWD = -100


def pivot_into(mounted: MountedRoot) -> None:
    """Enter the root: from here on every path is the container's. The working directory is `/`."""
    try:
        if mounted.plan.on_host:
            _chroot(mounted.root)
        elif mounted.plan.no_pivot:
            _move_over_root(mounted)
        else:
            _pivot(mounted.root)
        if mounted.plan.root_propagation:
            # Only now: before, a shared root would have sent our mounts to the host.
            kind, recursive = (
                mounted.plan.root_propagation & ~m.MS_REC,
                bool(mounted.plan.root_propagation & m.MS_REC),
            )
            m.mount_setattr(mounted.root.fileno(), propagation=kind, recursive=recursive)
    except OSError as error:
        raise MountError(f"make {mounted.plan.root} the root: {describe(error)}") from error


def make_cwd(mounted: MountedRoot) -> None:
    """Make the process's working directory (process.cwd) where it is missing, as runc does.

    MountError with the cause alone: the step that is going on names the directory.
    """
    try:
        mounted.root.make_directories(mounted.plan.cwd).close()
    except OSError as error:
        raise MountError(error.strerror) from error


def _pivot(root: Root) -> None:
    with OwnedFd(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as old:
        os.fchdir(root.fileno())
        m.pivot_root(".", ".")  # the old root now lies over the new one, at "."
        # Slave, not private: a private mount could keep a device busy that the host wants to let go.
        m.mount_setattr(old.fileno(), propagation=m.MS_SLAVE, recursive=True)
        os.fchdir(old.fileno())
        m.umount2(".", m.MNT_DETACH)
    os.chdir("/")


def pivot_copy() -> None:
    """Make the working directory, which is a mount, all that is in a mount namespace of our own. OSError."""
    unshare(c.CLONE_NEWNS)  # takes the working directory along; a descriptor would stay behind
    m.mount_setattr(AT_FDCWD, path="/", propagation=m.MS_PRIVATE, recursive=True)
    m.pivot_root(".", ".")
    m.umount2(".", m.MNT_DETACH)
    os.chdir("/")


def _move_over_root(mounted: MountedRoot) -> None:
    for place in _full_proc_mounts(mounted.place):
        _take_away(place)
    with OwnedFd(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as old:
        m.move_mount(mounted.root.fileno(), old.fileno())
    _chroot(mounted.root)


def _chroot(root: Root) -> None:
    os.fchdir(root.fileno())
    os.chroot(".")
    os.chdir("/")


def _full_proc_mounts(root: str) -> list[str]:
    """Where whole procfs and sysfs are mounted outside of `root`.

    chroot(2) hides them from paths only: while they are there, the kernel lets a container without a PID
    namespace of its own mount an unmasked procfs (mount_too_revealing in fs/namespace.c).
    """
    found = []
    with mountinfo() as file:
        for line in file:
            before, _dash, after = line.partition(" - ")
            fields = before.split(" ")
            whole = fields[3] == "/" and after.split(" ")[0] in ("proc", "sysfs")
            if whole and not f"{unescape(fields[4])}/".startswith(f"{root}/"):
                found.append(unescape(fields[4]))
    return found


def mountinfo() -> TextIOWrapper:
    """/proc/self/mountinfo, open. Only a line feed ends a line: a carriage return in a path is not escaped."""
    return open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n")


def unescape(text: str) -> str:
    """A path as it is, from the form that /proc/self/mountinfo has it in."""
    for octal, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(octal, plain)
    return text


def _take_away(place: str) -> None:
    try:
        m.mount_setattr(AT_FDCWD, path=place, propagation=m.MS_SLAVE, recursive=True)
    except FileNotFoundError:
        return  # gone with a mount above it
    try:
        m.umount2(place, m.MNT_DETACH)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise
        m.mount("tmpfs", place, "tmpfs", 0)  # locked by a user namespace: cover it
