"""tmpcopyup: the files of an image's directory, copied into the tmpfs that is going to cover it.

The destination is a mount that is not attached yet, so nobody else can reach it. The source belongs to the
image: it is read through descriptors, without following a symlink, and no deeper than we allow.
"""

from __future__ import annotations

import errno
import os
import stat

from runtime.linux.beneath import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

DEEPEST = 128
_CHUNK_BYTES = 1 << 20
_PLAIN = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS


def copy_tree(source: int, destination: int, depth: int = 0) -> None:
    """Copy what is in the directory `source` into the directory `destination`: contents, owners and modes.

    OSError of the call that failed, with the name it failed for: ENOSPC where the tmpfs is too small,
    ELOOP for a tree of more than DEEPEST levels.
    """
    if depth > DEEPEST:
        raise OSError(errno.ELOOP, f"directories nested deeper than {DEEPEST} levels")
    with openat2(source, ".", os.O_RDONLY | os.O_DIRECTORY, _PLAIN) as listed:
        for name in os.listdir(listed.fileno()):
            _copy(source, destination, name, depth)


def _copy(source: int, destination: int, name: str, depth: int) -> None:
    status = os.stat(name, dir_fd=source, follow_symlinks=False)
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        os.mkdir(name, 0o700, dir_fd=destination)
        flags = os.O_PATH | os.O_DIRECTORY
        with openat2(source, name, flags, _PLAIN) as below, openat2(destination, name, flags, _PLAIN) as made:
            copy_tree(below.fileno(), made.fileno(), depth + 1)
    elif stat.S_ISREG(mode):
        _copy_file(source, destination, name)
    elif stat.S_ISLNK(mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=destination)
    else:
        os.mknod(name, mode, status.st_rdev, dir_fd=destination)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=destination, follow_symlinks=False)
    if not stat.S_ISLNK(mode):
        os.chmod(name, stat.S_IMODE(mode), dir_fd=destination)  # after chown, which takes setuid away


def _copy_file(source: int, destination: int, name: str) -> None:
    # O_NONBLOCK: should the name have become a fifo by now, it is found out, not waited for.
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    with (
        openat2(source, name, os.O_RDONLY | os.O_NONBLOCK, _PLAIN) as read,
        openat2(destination, name, flags, _PLAIN, 0o600) as written,
    ):
        if not stat.S_ISREG(os.fstat(read.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no regular file any more", name)
        while os.sendfile(written.fileno(), read.fileno(), None, _CHUNK_BYTES):
            pass
