"""Which files which processes open, as the kernel tells: fanotify on the mount of the root directory. Needs root."""

from __future__ import annotations

import ctypes
import os
import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# linux/fanotify.h
FAN_CLOEXEC, FAN_NONBLOCK, FAN_UNLIMITED_QUEUE = 0x1, 0x2, 0x10
FAN_MARK_ADD, FAN_MARK_MOUNT = 0x1, 0x10
FAN_OPEN = 0x20
AT_FDCWD = -100
METADATA = struct.Struct("=IBBHQii")  # event_len vers reserved metadata_len mask fd pid

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Opens:
    """What was opened so far, as (pid, path), in order."""

    fd: int
    seen: list[tuple[int, str]] = field(default_factory=list)

    def read(self) -> list[tuple[int, str]]:
        """Take in what has happened, and return all that was seen."""
        while select.select([self.fd], [], [], 0)[0]:
            data = os.read(self.fd, 65536)
            while data:
                length, _, _, _, _, fd, pid = METADATA.unpack_from(data)
                if fd >= 0:
                    self.seen.append((pid, os.readlink(f"/proc/self/fd/{fd}")))
                    os.close(fd)
                data = data[length:]
        return self.seen


@contextmanager
def watch() -> Iterator[Opens]:
    """Watch every open on the root directory's mount. OSError if the kernel has no fanotify."""
    fd = _libc.fanotify_init(FAN_CLOEXEC | FAN_NONBLOCK | FAN_UNLIMITED_QUEUE, os.O_RDONLY | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "fanotify_init")
    try:
        flags = FAN_MARK_ADD | FAN_MARK_MOUNT
        if _libc.fanotify_mark(fd, flags, ctypes.c_uint64(FAN_OPEN), AT_FDCWD, b"/") < 0:
            raise OSError(ctypes.get_errno(), "fanotify_mark")
        yield Opens(fd)
    finally:
        os.close(fd)
