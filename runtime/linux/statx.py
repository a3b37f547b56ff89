"""Which file a path leads to, without asking the server that has it.

stat(2) of a file on a file server that is gone, or of one whose FUSE process does not answer, waits, and who has asked
a FUSE process cannot even be killed.
"""

from __future__ import annotations

import os
import struct

from runtime.linux.ffi import c_char_p, c_int, c_uint, c_void_p, create_string_buffer
from runtime.linux.libc import function

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW, _AT_NO_AUTOMOUNT, _AT_STATX_DONT_SYNC = 0x100, 0x800, 0x4000
_STATX_INO = 0x100
_SIZE = 256
_INODE_AT, _DEVICE_AT = 32, 136  # struct statx: stx_ino; stx_dev_major, stx_dev_minor

_statx = function("statx", c_int, c_int, c_char_p, c_int, c_uint, c_void_p)  # Linux 4.11, glibc 2.28


def identity(path: str, follow_symlinks: bool = True) -> tuple[int, int, int]:
    """Device, as two numbers, and inode number, as they were known last. statx(2), AT_STATX_DONT_SYNC. OSError."""
    flags = _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC | (0 if follow_symlinks else _AT_SYMLINK_NOFOLLOW)
    found = create_string_buffer(_SIZE)
    _statx(_AT_FDCWD, os.fsencode(path), flags, _STATX_INO, found)
    (inode,) = struct.unpack_from("=Q", found, _INODE_AT)
    major, minor = struct.unpack_from("=2I", found, _DEVICE_AT)
    return major, minor, inode
