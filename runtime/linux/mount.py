"""Mounts: mount(2), umount2(2), pivot_root(2) and the new mount API, which works on file descriptors.

A mount is made detached (`open_tree`, or `fsopen` … `fsmount`), given its attributes, and put in its place
with `move_mount`, so that no path has to be looked up twice. Linux 5.12 or newer is assumed for
mount_setattr. What to mount and where is decided elsewhere.
"""

from __future__ import annotations

import errno
import os
import struct

from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd
from runtime.linux.ffi import c_char_p, c_int, c_long, c_uint, c_ulong, c_void_p, create_string_buffer, sizeof
from runtime.linux.libc import function, syscall
from runtime.linux.trees import mount_id

# linux/mount.h: flags of mount(2)
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100  # Linux 5.10
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_I_VERSION = 1 << 23
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# linux/mount.h: attributes of one mount, for fsmount(2) and mount_setattr(2)
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR__ATIME = 0x70  # a choice of the next three, not a set
MOUNT_ATTR_RELATIME = 0x0
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000  # Linux 5.14

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40

_MOUNT_ATTR = struct.Struct("=4Q")  # struct mount_attr: attr_set, attr_clr, propagation, userns_fd

_mount = function("mount", c_int, c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = function("umount2", c_int, c_char_p, c_int)
_fstatfs = function("fstatfs", c_int, c_int, c_void_p)
_STATFS_ROOM = 256  # bytes: more than a struct statfs has
_KEPT = create_string_buffer(_STATFS_ROOM)  # so that there is a class of its size
_SYS_pivot_root = c.syscall_number("pivot_root")


def mount(source: str, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """mount(2) by paths. OSError has `target` as its file name."""
    try:
        _mount(os.fsencode(source), os.fsencode(target), _encode(fstype), flags, _encode(data))
    except OSError as error:
        error.filename = target
        raise


def _encode(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2) by path. OSError has `target` as its file name."""
    try:
        _umount2(os.fsencode(target), flags)
    except OSError as error:
        error.filename = target
        raise


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2); pivot_root(".", ".") leaves the old root mounted over the new one at "."."""
    syscall("pivot_root", _SYS_pivot_root, os.fsencode(new_root), os.fsencode(put_old))


def clone_tree(directory: int, path: str = "", recursive: bool = False) -> OwnedFd:
    """open_tree(2) with OPEN_TREE_CLONE: a detached bind mount of `path`, with what is below if `recursive`.

    `directory` is a descriptor, or AT_FDCWD for an absolute path; without a `path` it is itself the source.
    OSError EINVAL where the source's mount is not in our mount namespace.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    flags |= (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    try:
        return OwnedFd(syscall("open_tree", c.SYS_open_tree, directory, os.fsencode(path), c_uint(flags)))
    except OSError as error:
        error.filename = path or None
        raise


def move_mount(source: int, target: int) -> None:
    """move_mount(2): put the mount behind the descriptor `source` on what the descriptor `target` shows."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    syscall("move_mount", c.SYS_move_mount, source, b"", target, b"", c_uint(flags))


def mount_setattr(
    directory: int,
    set_: int = 0,
    clear: int = 0,
    propagation: int = 0,
    recursive: bool = False,
    path: str = "",
) -> None:
    """mount_setattr(2): add and remove MOUNT_ATTR_* and set the propagation (MS_SLAVE …) of a mount.

    The access time is a choice: to change it, `clear` must hold MOUNT_ATTR__ATIME. EINVAL where the place
    is not the root of a mount, EPERM for what a user namespace may not undo. Linux 5.12.
    """
    attributes = _MOUNT_ATTR.pack(set_, clear, propagation, 0)
    flags = (AT_RECURSIVE if recursive else 0) | (0 if path else AT_EMPTY_PATH)
    arguments = os.fsencode(path), c_uint(flags), attributes, c_ulong(_MOUNT_ATTR.size)
    try:
        syscall("mount_setattr", c.SYS_mount_setattr, directory, *arguments)
    except OSError as error:
        error.filename = path or None
        raise


def map_ids(tree: int, user_namespace: int, recursive: bool = False) -> None:
    """mount_setattr(2), MOUNT_ATTR_IDMAP: show the owners of files through the maps of a user namespace.

    `tree` is a detached mount that is not id-mapped yet. EINVAL where its file system cannot do that (or, for
    one of those below it, with `recursive`), EPERM for who is not privileged over that file system.
    """
    attributes = _MOUNT_ATTR.pack(MOUNT_ATTR_IDMAP, 0, 0, user_namespace)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    arguments = b"", c_uint(flags), attributes, c_ulong(_MOUNT_ATTR.size)
    syscall("mount_setattr", c.SYS_mount_setattr, tree, *arguments)


def fsopen(fstype: str) -> OwnedFd:
    """fsopen(2): a file system of this type, to be configured. ENODEV where the kernel does not know it."""
    try:
        return OwnedFd(syscall("fsopen", c.SYS_fsopen, os.fsencode(fstype), c_uint(_FSOPEN_CLOEXEC)))
    except OSError as error:
        error.filename = fstype
        raise


def fsconfig_set(fd: int, key: str, value: str | None = None) -> None:
    """fsconfig(2): set an option of a file system to be made; one without a value is a flag.

    EINVAL for what it does not take, with the reason to be read from `fd` (see `fs_message`); a value
    may have 255 bytes.
    """
    if value is None:
        _fsconfig(fd, _FSCONFIG_SET_FLAG, os.fsencode(key), None)
    else:
        _fsconfig(fd, _FSCONFIG_SET_STRING, os.fsencode(key), os.fsencode(value))


def fsconfig_create(fd: int) -> None:
    """fsconfig(2), FSCONFIG_CMD_CREATE: make the superblock, or find one that may be shared."""
    _fsconfig(fd, _FSCONFIG_CMD_CREATE, None, None)


def _fsconfig(fd: int, command: int, key: bytes | None, value: bytes | None) -> None:
    syscall("fsconfig", c.SYS_fsconfig, fd, c_uint(command), key, value, 0)


def fsmount(fd: int, attributes: int = 0) -> OwnedFd:
    """fsmount(2): a detached mount of the file system made by `fd`, with MOUNT_ATTR_* `attributes`."""
    return OwnedFd(syscall("fsmount", c.SYS_fsmount, fd, c_uint(_FSMOUNT_CLOEXEC), c_uint(attributes)))


def fs_message(fd: int) -> str:
    """What the kernel says about the last failure of the file system context `fd`, "" if nothing."""
    try:
        text = os.read(fd, 4096).decode(errors="replace")
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EMSGSIZE):
            return ""
        raise
    return text.removeprefix("e ").strip()


def filesystem_magic(fd: int) -> int:
    """f_type of fstatfs(2): which kind of file system `fd` lies on (constants: PROC_SUPER_MAGIC …)."""
    buffer = create_string_buffer(_STATFS_ROOM)
    _fstatfs(fd, buffer)
    magic: int = struct.unpack_from("=l" if sizeof(c_long) == 4 else "=q", buffer)[0]
    return magic & 0xFFFFFFFF


def is_mount_point(path: str) -> bool:
    """Whether something is mounted on `path`, which is not followed if it is a symlink. OSError if it is not there."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    with OwnedFd(os.open(path, flags)) as there, OwnedFd(os.open(os.path.dirname(path), flags)) as above:
        return mount_id(there.fileno()) != mount_id(above.fileno())
