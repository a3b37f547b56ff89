"""Makes a new file system as a detached mount: by fsopen(2), or by mount(2) where an option is too long for it.

fsconfig(2) takes values of 255 bytes, mount(2) a page of options in all: the layers of an overlay need it.
"""

from __future__ import annotations

import os

from runtime.errors import MountError
from runtime.linux import mount as m
from runtime.linux.beneath import openat2
from runtime.rootfs.options import mount2_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.linux.fds import OwnedFd
    from runtime.rootfs.plan import FilesystemStep

    Settings = tuple[tuple[str, str | None], ...]

_LONGEST_VALUE = 255
_LONGEST_DATA = os.sysconf("SC_PAGE_SIZE") - 1  # the kernel ends it with a NUL and would cut the rest off
_PLACE = "new"


def make_filesystem(step: FilesystemStep, settings: Settings, target: OwnedFd) -> OwnedFd:
    """A detached mount of the file system of `step`, with `settings`; `target` is the directory it is meant for.

    Nothing is left on `target`. MountError for more options than the kernel takes, OSError for what it refuses.
    """
    if is_long(step.source or "") or any(is_long(value) for _key, value in settings if value is not None):
        return _by_mount2(step, settings, target)
    return _by_fsopen(step, settings)


def is_long(value: str) -> bool:
    """Whether fsconfig(2) does not take this value."""
    return len(os.fsencode(value)) > _LONGEST_VALUE


def _by_fsopen(step: FilesystemStep, settings: Settings) -> OwnedFd:
    with m.fsopen(step.type) as context:
        fd = context.fileno()
        try:
            if step.source is not None:
                m.fsconfig_set(fd, "source", step.source)
            for key, value in settings:
                m.fsconfig_set(fd, key, value)
            m.fsconfig_create(fd)
            return m.fsmount(fd, step.attributes)
        except OSError as error:
            said = m.fs_message(fd)
            if said:
                error.strerror = f"{error.strerror} ({said})"
            raise


def _by_mount2(step: FilesystemStep, settings: Settings, target: OwnedFd) -> OwnedFd:
    """mount(2) needs a place that has a path and that nobody can swap: a tmpfs of ours that lies on the target."""
    flags, data = mount2_options(settings)
    if (length := len(os.fsencode(data))) > _LONGEST_DATA:
        raise MountError(f"{step.path}.options: {length} bytes of options, the kernel takes {_LONGEST_DATA}")
    with m.fsopen("tmpfs") as context:
        m.fsconfig_create(context.fileno())
        scratch = m.fsmount(context.fileno())
    with scratch:
        m.move_mount(scratch.fileno(), target.fileno())
        here = f"/proc/self/fd/{scratch.fileno()}"  # the host's procfs, as all is before the pivot
        try:
            os.mkdir(_PLACE, dir_fd=scratch.fileno())
            m.mount(step.source or "none", f"{here}/{_PLACE}", step.type, flags, data)
            with openat2(scratch.fileno(), _PLACE, os.O_PATH | os.O_DIRECTORY, 0) as made:
                tree = m.clone_tree(made.fileno())
        finally:
            m.umount2(here, m.MNT_DETACH)
    try:
        m.mount_setattr(tree.fileno(), step.attributes, m.MOUNT_ATTR__ATIME)
    except BaseException:
        tree.close()
        raise
    return tree
