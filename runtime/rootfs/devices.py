"""What a container finds in /dev: nodes, symlinks, and a place for the console.

Made before the pivot, in a directory that is held open; a name that the image occupies already stays as it
is, for nothing of ours ever opens it. Where device nodes cannot be made (a user namespace) the host's are
bound instead.
"""

from __future__ import annotations

import os
import stat

from runtime.errors import MountError, describe
from runtime.linux import mount as m
from runtime.linux.beneath import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    Root,
    clean,
    openat2,
)
from runtime.spec.checks import named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.linux.fds import OwnedFd
    from runtime.rootfs.device_plan import DeviceNode
    from runtime.rootfs.plan import RootfsPlan

AT_FDCWD = -100
_PLAIN = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS

# config-linux.md, "Default Devices" and runc: /proc/self, as everybody expects, not /proc/thread-self
_SYMLINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
_CORE = ("core", "/proc/kcore")


def make_devices(root: Root, plan: RootfsPlan) -> None:
    """Device nodes, /dev/fd and its like, and /dev/ptmx. The umask is 0. MountError names the device."""
    try:
        with _open_dev(root) as dev:
            for node in plan.devices:
                _make_device(root, dev, node, plan.bind_devices)
            _make_links(dev.fileno())
    except OSError as error:
        raise MountError(f"populate /dev: {describe(error)}") from error


def _open_dev(root: Root) -> OwnedFd:
    """/dev itself, never what an image's symlink in its place leads to: a volume of the host's (CVE-2026-41579)."""
    try:
        return root.open_plain("/dev", os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        return root.make_directories("/dev")


def _make_links(dev: int) -> None:
    links = (*_SYMLINKS, _CORE) if os.access("/proc/kcore", os.F_OK) else _SYMLINKS
    for name, target in links:
        try:
            os.symlink(target, name, dir_fd=dev)
        except FileExistsError:
            pass
    # An image's own node would open terminals of a foreign devpts: it must go, whatever it is.
    try:
        os.symlink("pts/ptmx", "ptmx", dir_fd=dev)
    except FileExistsError:
        os.unlink("ptmx", dir_fd=dev)
        os.symlink("pts/ptmx", "ptmx", dir_fd=dev)


def _make_device(root: Root, dev: OwnedFd, node: DeviceNode, bind: bool) -> None:
    place, name = os.path.split(clean(node.path))
    try:
        if place == "/dev":
            _make_in(dev.fileno(), name, node, bind)
            return
        parent, name = root.make_parent(node.path)
        with parent:
            _make_in(parent.fileno(), name, node, bind)
    except OSError as error:
        raise MountError(f"device {named(node.path)}: {error.strerror}") from error


def _make_in(parent: int, name: str, node: DeviceNode, bind: bool) -> None:
    if bind:
        _bind_node(parent, name, node)
        return
    try:
        os.mknod(name, node.mode, os.makedev(node.major, node.minor), dir_fd=parent)
    except FileExistsError:
        return
    except PermissionError:
        _bind_node(parent, name, node)
        return
    if node.uid or node.gid:
        with openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, _PLAIN) as made:
            _check_node(made, node)
            os.chown(f"/proc/self/fd/{made.fileno()}", node.uid, node.gid)


def _bind_node(parent: int, name: str, node: DeviceNode) -> None:
    with (
        openat2(AT_FDCWD, node.path, os.O_PATH, RESOLVE_NO_MAGICLINKS) as source,
        _open_place(parent, name, 0) as target,
    ):
        _check_node(source, node)
        with m.clone_tree(source.fileno()) as tree:
            m.move_mount(tree.fileno(), target.fileno())


def _check_node(fd: OwnedFd, node: DeviceNode) -> None:
    status = os.fstat(fd.fileno())
    same_kind = stat.S_IFMT(status.st_mode) == stat.S_IFMT(node.mode)
    if not same_kind or status.st_rdev != os.makedev(node.major, node.minor):
        raise MountError(
            f"device {named(node.path)}: not the device {node.major}:{node.minor} that was asked for"
        )


def _open_place(parent: int, name: str, mode: int) -> OwnedFd:
    """The file `name`, made if missing, never opened for use: opening a device does things."""
    try:
        return openat2(parent, name, os.O_CREAT | os.O_EXCL | os.O_RDONLY, _PLAIN, mode)
    except FileExistsError:
        found = openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, _PLAIN)
    if stat.S_ISLNK(os.fstat(found.fileno()).st_mode):
        found.close()
        raise MountError(f"/dev/{name} is a symlink in the root file system")
    return found


# ---- the console -------------------------------------------------------------------------------


def make_console_place(root: Root) -> None:
    """The file that the terminal will cover (`runtime/terminal.py`), made while /dev can still be written."""
    try:
        with _open_dev(root) as dev:
            _open_place(dev.fileno(), "console", 0o666).close()
    except OSError as error:
        raise MountError(f"/dev/console: {describe(error)}") from error
