"""Paths below a directory that we do not trust: openat2(2), and the `Root` that resolves everything inside it.

In a container's root a path may lead anywhere: an image chooses its symlinks, and another container that
shares a volume may swap them while we look. So a path is resolved once, by the kernel, as if the root
were `/`, and what comes back is a descriptor; whoever wants to act acts on that. What is created is
created in a directory that is held open, and never through a symlink in the last place.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd
from runtime.linux.ffi import c_size_t
from runtime.linux.libc import syscall

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_OPEN_HOW = struct.Struct("=3Q")  # struct open_how: flags, mode, resolve
_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_PLAIN = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
_NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDONLY
_MOST_SYMLINKS = 40  # MAXSYMLINKS of the kernel's own walk
_MOST_TRIES = 128


def openat2(directory: int, path: str, flags: int, resolve: int, mode: int = 0) -> OwnedFd:
    """openat2(2), always close-on-exec. OSError has `path` as its file name; ELOOP and EXDEV are refusals.

    EAGAIN, which says that a rename went on meanwhile and `..` could not be judged, is tried again.
    """
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    name = os.fsencode(path)
    tries = 0
    while True:
        try:
            return OwnedFd(syscall("openat2", c.SYS_openat2, directory, name, how, c_size_t(_OPEN_HOW.size)))
        except OSError as error:
            tries += 1
            if error.errno != errno.EAGAIN or tries >= _MOST_TRIES:
                error.filename = path
                raise


def components(path: str) -> list[str]:
    """The names in `path`, without empty ones and `.`; `..` stays."""
    return [name for name in path.split("/") if name not in ("", ".")]


def clean(path: str) -> str:
    """`path` as an absolute one without `.`, `..` and empty parts, taken by its text alone."""
    return "/" + os.path.normpath(f"/{path}").lstrip("/")


def _split(path: str) -> tuple[str, str]:
    """Directory and last name; where that is no plain name, FileNotFoundError: the long way knows what to do."""
    directory, _slash, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise FileNotFoundError(errno.ENOENT, "no plain last name", path)
    return directory or "/", name


class Root:
    """A directory whose insides are resolved as if it were `/`. Owns its descriptor."""

    __slots__ = ("_fd",)

    def __init__(self, fd: OwnedFd) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The directory's descriptor."""
        return self._fd.fileno()

    def close(self) -> None:
        """Close the directory."""
        self._fd.close()

    def open(self, path: str, flags: int = os.O_PATH) -> OwnedFd:
        """What `path` leads to, every symlink resolved inside the root; magic links are refused (ELOOP)."""
        return openat2(self.fileno(), path, flags, _INSIDE)

    def open_plain(self, path: str, flags: int = os.O_PATH) -> OwnedFd:
        """What `path` names if no part of it is a symlink, else ELOOP."""
        return openat2(self.fileno(), path.lstrip("/") or ".", flags, _PLAIN)

    def make_directories(self, path: str, mode: int = 0o755) -> OwnedFd:
        """The directory `path`, made with its parents where missing; a dangling symlink's target is made.

        ENOTDIR where something else is in the way, ELOOP where somebody swaps a part for a symlink meanwhile.
        """
        try:
            return self.open(path, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            pass
        try:
            return self._make_last(path, mode)
        except (FileNotFoundError, FileExistsError):
            return self._descend(self._resolve(path), mode)

    def make_parent(self, path: str, mode: int = 0o755) -> tuple[OwnedFd, str]:
        """The directory that is to hold the last part of `path`, made where missing, and that part's name.

        The name is no symlink's: one in the last place, dangling or not, has been followed. Between this
        and the use of the name it may become one: use it with O_NOFOLLOW. EINVAL for the root itself.
        """
        names = self._resolve(path)
        if not names:
            raise OSError(errno.EINVAL, "the root directory has no parent inside itself", path)
        return self._descend(names[:-1], mode), names[-1]

    def make_file(self, path: str, mode: int = 0o644) -> OwnedFd:
        """An O_PATH descriptor of `path`, which becomes an empty file with its parents where it is missing."""
        try:
            return self.open(path)
        except FileNotFoundError:
            pass
        directory, name = _split(path)
        try:
            with self.open(directory, os.O_PATH | os.O_DIRECTORY) as parent:
                return openat2(parent.fileno(), name, _NEW_FILE, _PLAIN, mode)
        except (FileNotFoundError, FileExistsError):
            parent, name = self.make_parent(path)
        with parent:
            return openat2(parent.fileno(), name, _NEW_FILE, _PLAIN, mode)

    def _make_last(self, path: str, mode: int) -> OwnedFd:
        """The usual case, cheaper by many calls: only the last part is missing, and it is a plain name."""
        directory, name = _split(path)
        with self.open(directory, os.O_PATH | os.O_DIRECTORY) as parent:
            os.mkdir(name, mode, dir_fd=parent.fileno())
            return openat2(parent.fileno(), name, os.O_PATH | os.O_DIRECTORY, _PLAIN)

    def _descend(self, names: list[str], mode: int) -> OwnedFd:
        """Go down plain `names`, making directories; a symlink that turns up now was put there to hurt."""
        current = OwnedFd(os.dup(self.fileno()))
        for name in names:
            with current:
                try:
                    os.mkdir(name, mode, dir_fd=current.fileno())
                except FileExistsError:
                    pass
                current = openat2(current.fileno(), name, os.O_PATH | os.O_DIRECTORY, _PLAIN)
        return current

    def _resolve(self, path: str) -> list[str]:
        """The plain names that `path` stands for, dangling symlinks and missing parts included.

        This is a guess in the presence of somebody who renames; `_descend` finds out if it was wrong.
        """
        waiting = components(path)[::-1]
        names: list[str] = []
        symlinks = 0
        while waiting:
            name = waiting.pop()
            if name == "..":
                del names[-1:]
                continue
            target = self._link_target("/".join([*names, name]))
            if target is None:
                names.append(name)
                continue
            symlinks += 1
            if symlinks > _MOST_SYMLINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                names.clear()
            waiting += components(target)[::-1]
        return names

    def _link_target(self, path: str) -> str | None:
        try:
            found = self.open_plain(path, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with found:
            if not stat.S_ISLNK(os.fstat(found.fileno()).st_mode):
                return None
            return os.readlink("", dir_fd=found.fileno())
