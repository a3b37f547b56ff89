"""Reading and writing the files of one cgroup directory.

A directory is opened once beneath its hierarchy's mount point, its files relative to that. What the
kernel refuses becomes a CgroupError that names the config's field, the file and the value.
"""

from __future__ import annotations

import os

from runtime.errors import CgroupError
from runtime.linux.beneath import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)
from runtime.linux.fds import OwnedFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.cgroups.layout import Hierarchy
    from runtime.cgroups.writes import Write

_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_CHUNK = 16_384
_SURE_END = 2048  # seq_file hands out whole records up to a page: half a page is the end, more may not be


def open_directory(hierarchy: Hierarchy, path: str) -> OwnedFd:
    """`path` in `hierarchy` as an O_PATH descriptor; OSError. Nothing mounted over it or linked there is followed."""
    root = os.open(hierarchy.mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not path:
            return OwnedFd(os.dup(root))
        return openat2(root, path, os.O_PATH | os.O_DIRECTORY, resolve=_INSIDE)
    finally:
        os.close(root)


def write_file(file: str, value: str, directory: int | None = None) -> None:
    """Write `value` with one write(2), which is how cgroup files take a command; OSError."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def read_file(file: str, directory: int | None = None) -> str:
    """The whole of `file`; OSError."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
    try:
        data = chunk = os.read(fd, _CHUNK)
        while len(chunk) > _SURE_END:
            chunk = os.read(fd, _CHUNK)
            data += chunk
    finally:
        os.close(fd)
    return data.decode("utf-8", "replace")


def write_all(directory: int, path: str, writes: Iterable[Write]) -> None:
    """Do `writes` in order in the cgroup `path` that is open as `directory`; CgroupError at the first failure."""
    for write in writes:
        _write(directory, path, write)


def _write(directory: int, path: str, write: Write) -> None:
    try:
        write_file(write.file, write.value, directory)
    except FileNotFoundError as error:
        if write.otherwise is not None:
            _write(directory, path, write.otherwise)
        elif not write.optional:
            raise _refused(path, write, "this kernel has no such file") from error
    except OSError as error:
        raise _refused(path, write, error.strerror or str(error)) from error


def _refused(path: str, write: Write, cause: str) -> CgroupError:
    return CgroupError(f"{write.field}: write {write.value!r} to {path}/{write.file}: {cause}")


def parse_pairs(text: str) -> dict[str, int]:
    """Flat keyed files ("key value" a line), as numbers; lines of another form are left out."""
    pairs = {}
    for line in text.splitlines():
        key, _blank, value = line.partition(" ")
        if value.isdecimal():
            pairs[key] = int(value)
    return pairs
