"""Events that must wait on disk, because more of them wait than a shim should hold in memory.

A queue in a file of the pod's state directory: appended at one end, taken in order from the other, removed
when it is empty. It is for the time in which containerd takes nothing, and is gone with the pod.
"""

from __future__ import annotations

import os
import struct

from runtime.linux.fds import OwnedFd

# Begins with sockets.NOTE_MARK, as no container's directory does.
FILE = "@events"
MAX_BYTES = 64 << 20
_LENGTH = struct.Struct("=I")
_READ_BYTES = 256 * 1024


class Backlog:
    """Of the pod whose state is in `directory`; with "" it takes nothing."""

    __slots__ = ("_directory", "_file", "_read", "_written", "count")

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._file: OwnedFd | None = None
        self._read = 0
        self._written = 0
        self.count = 0

    def append(self, event: bytes) -> bool:
        """Take an event; False if it can't be kept: no directory, no room, or MAX_BYTES are there."""
        record = _LENGTH.pack(len(event)) + event
        if not self._directory or self._written + len(record) > MAX_BYTES:
            return False
        try:
            if self._file is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
                self._file = OwnedFd(os.open(f"{self._directory}/{FILE}", flags, 0o600))
            # At a place of its own: what a full disk has cut off is written over by the next.
            if os.pwrite(self._file.fileno(), record, self._written) != len(record):
                return False
        except OSError:
            return False
        self._written += len(record)
        self.count += 1
        return True

    def take(self) -> list[bytes]:
        """The oldest events, as many as one read gives; they are forgotten here. OSError."""
        if self._file is None:
            return []
        number = self._file.fileno()
        head = os.pread(number, _LENGTH.size, self._read)
        first = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        data = os.pread(number, max(_READ_BYTES, _LENGTH.size + first), self._read)
        taken: list[bytes] = []
        at = 0
        while len(taken) < self.count and at + _LENGTH.size <= len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            end = at + _LENGTH.size + length
            if end > len(data):
                break
            taken.append(data[at + _LENGTH.size : end])
            at = end
        if not taken:
            raise OSError(f"{self._directory}/{FILE} is damaged")
        self._read += at
        self.count -= len(taken)
        if not self.count:
            self.close()
        return taken

    def close(self) -> None:
        """Forget all, and the file; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
            try:
                os.unlink(f"{self._directory}/{FILE}")
            except OSError:
                pass  # the pod's directory may be gone
        self.count = self._read = self._written = 0
