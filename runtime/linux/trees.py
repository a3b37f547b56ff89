"""Removing a directory with all that is in it, and nothing else: no symlink is followed, no mount entered.

No ctypes: whoever reads the state of a container loads this.
"""

from __future__ import annotations

import errno
import os

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


_DEEPEST = 64  # levels: each takes a descriptor, and nothing of ours has more than a few


def remove_tree(directory: int, name: str, levels: int = _DEEPEST) -> None:
    """Like rm -r of `name` in the directory behind a descriptor; fine if it is gone.

    OSError: EBUSY where something is mounted in there, which stays with what is in it; ELOOP for what is deeper than
    `levels`.
    """
    try:
        os.unlink(name, dir_fd=directory)
        return
    except FileNotFoundError:
        return
    except IsADirectoryError:
        pass
    if not levels:
        raise OSError(errno.ELOOP, "Too many levels of directories", name)
    try:
        inside = os.open(name, _FLAGS, dir_fd=directory)
        try:
            if mount_id(inside) != mount_id(directory):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
            for each in os.listdir(inside):
                remove_tree(inside, each, levels - 1)
        finally:
            os.close(inside)
        os.rmdir(name, dir_fd=directory)
    except FileNotFoundError:
        pass  # somebody else did


def mount_id(fd: int) -> int:
    """The number of the mount that `fd` is in, as mountinfo has it. proc_pid_fdinfo(5), Linux 3.15. OSError."""
    info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(info, 4096)
    finally:
        os.close(info)
    return int(text[text.index(b"mnt_id:") + 7 :].split(None, 1)[0])
