"""Closes off what a container may see but not change, or not see: read-only mounts and masks.

Runs on the new root, after sysctls were written and before the program is prepared. Nothing is looked up
in the container's /proc, and masks are made of the host's /dev/null and an empty tmpfs of our own: a
container that brings its own /dev/null masks nothing with it (CVE-2025-31133).
"""

from __future__ import annotations

import os
import stat

from runtime.errors import MountError, describe
from runtime.linux import mount as m
from runtime.linux.beneath import RESOLVE_NO_MAGICLINKS, openat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.linux.fds import OwnedFd
    from runtime.rootfs.apply import MountedRoot

AT_FDCWD = -100


def protect(mounted: MountedRoot) -> None:
    """Make read-only what was to be, mask what was to be, set the process's umask, and close `mounted`.

    Paths that do not exist are passed over, as the specification wants. MountError names the path that
    could not be protected: a container is not run half protected.
    """
    plan = mounted.plan
    try:
        for mount in mounted.late_read_only:
            m.mount_setattr(mount.fileno(), set_=m.MOUNT_ATTR_RDONLY)
        if plan.read_only:
            m.mount_setattr(mounted.root.fileno(), set_=m.MOUNT_ATTR_RDONLY)
    except OSError as error:
        raise MountError(f"make a mount read-only: {describe(error)}") from error
    for path in plan.readonly_paths:
        _each(path, "make read-only", _make_read_only)
    masks = Masks(mounted.null, plan.mount_label)
    for path in plan.masked_paths:
        _each(path, "mask", masks.cover)
    masks.close()
    mounted.close()
    os.umask(plan.umask)


def _each(path: str, verb: str, act: Callable[[OwnedFd], None]) -> None:
    try:
        try:
            target = openat2(AT_FDCWD, path, os.O_PATH, RESOLVE_NO_MAGICLINKS)
        except (FileNotFoundError, NotADirectoryError):
            return
        with target:
            act(target)
    except OSError as error:
        raise MountError(f"{verb} {path}: {describe(error)}") from error


def _make_read_only(target: OwnedFd) -> None:
    with m.clone_tree(target.fileno(), recursive=True) as tree:
        m.mount_setattr(tree.fileno(), set_=m.MOUNT_ATTR_RDONLY)
        m.move_mount(tree.fileno(), target.fileno())


class Masks:
    """Covers files with the null device and directories with one shared, empty, read-only tmpfs.

    Each is a detached mount at first, and as such goes to the first target; once it is attached somewhere,
    the further targets get clones of it (before Linux 6.15 a detached mount cannot be cloned).
    """

    __slots__ = ("_empty", "_label", "_null", "_used")

    def __init__(self, null: OwnedFd | None, label: str | None) -> None:
        self._null = null
        self._label = label
        self._empty: OwnedFd | None = None
        self._used: list[OwnedFd] = []

    def cover(self, target: OwnedFd) -> None:
        """Mask the file or directory `target`."""
        if stat.S_ISDIR(os.fstat(target.fileno()).st_mode):
            if self._empty is None:
                self._empty = _empty_tmpfs(self._label)
            source = self._empty
        else:
            assert self._null is not None
            source = self._null
        if source not in self._used:
            m.move_mount(source.fileno(), target.fileno())
            self._used.append(source)
            return
        with m.clone_tree(source.fileno()) as another:
            m.move_mount(another.fileno(), target.fileno())

    def close(self) -> None:
        """Close the tmpfs's descriptor; the null device's has its owner."""
        if self._empty is not None:
            self._empty.close()


def _empty_tmpfs(label: str | None) -> OwnedFd:
    with m.fsopen("tmpfs") as context:
        fd = context.fileno()
        settings: list[tuple[str, str | None]] = [
            ("source", "tmpfs"),
            ("ro", None),
            ("nr_blocks", "1"),
            ("nr_inodes", "1"),
        ]
        if label is not None:
            settings.append(("context", label))
        for key, value in settings:
            m.fsconfig_set(fd, key, value)
        m.fsconfig_create(fd)
        return m.fsmount(fd, m.MOUNT_ATTR_RDONLY)
