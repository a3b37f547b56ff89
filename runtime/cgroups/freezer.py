"""Pausing a container: telling the freezer, asking it, and waiting for it without blocking anybody.

v1 has a controller for it, v2 has it in every cgroup (Linux 5.2). Freezing is never complete when the write
returns: `wait_frozen` is a generator in the vocabulary of `runtime.waiting`.
"""

from __future__ import annotations

import errno
import time

from runtime.cgroups.directories import walk
from runtime.cgroups.files import parse_pairs, read_file, write_file
from runtime.errors import CgroupError
from runtime.waiting import Sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from runtime.waiting import Wait

_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.02
_ROUNDS_BEFORE_THAW = 25


class Freezer:
    """The freezer of the cgroup directory `path` in a hierarchy of `version`."""

    __slots__ = ("path", "version")

    def __init__(self, path: str, version: int) -> None:
        self.path = path
        self.version = version

    def freeze(self) -> None:
        """Begin to stop every task, those to come included; returns at once. CgroupError."""
        self._write("FROZEN" if self.version == 1 else "1")

    def hold(self) -> None:
        """Begin to stop every task for the time of a kill; a cgroup that is gone holds nobody. CgroupError."""
        self._write("FROZEN" if self.version == 1 else "1", or_gone=True)

    def thaw(self) -> None:
        """Let every task run again; a cgroup that is gone needs none. CgroupError."""
        self._write("THAWED" if self.version == 1 else "0", or_gone=True)

    def thaw_all(self) -> None:
        """`thaw` for who is to die, with what the container has frozen below, where v1 keeps even the killed.

        CgroupError, OSError.
        """
        self.thaw()
        if self.version == 1:
            for directory, name in walk(self.path):
                try:
                    if not name:
                        write_file("freezer.state", "THAWED", directory)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENODEV):
                        raise CgroupError(f"thaw what is below {self.path}: {error.strerror}") from error

    def frozen(self) -> bool:
        """True once every task stands still; False while some still run, and for a cgroup that is gone."""
        try:
            if self.version == 1:
                return read_file(f"{self.path}/freezer.state").strip() == "FROZEN"
            return parse_pairs(read_file(f"{self.path}/cgroup.events")).get("frozen") == 1
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return False
            raise CgroupError(f"read the freezer of {self.path}: {error.strerror}") from error

    def asked(self) -> bool:
        """True from `freeze` to `thaw`, whether all tasks stand still yet or not; not for a frozen parent's sake."""
        file, yes = ("freezer.self_freezing", "1") if self.version == 1 else ("cgroup.freeze", "1")
        try:
            return read_file(f"{self.path}/{file}").strip() == yes
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return False
            raise CgroupError(f"read the freezer of {self.path}: {error.strerror}") from error

    def wait_frozen(self, timeout_s: float) -> Generator[Wait, None, None]:
        """Freeze, and wait until it is true. After `timeout_s` everything runs again and CgroupError is raised.

        v1 does not freeze a cgroup for sure while tasks keep appearing in it: it wants to be told again, and
        a short thaw now and then gets it out of a state in which it is stuck (freezer-subsystem.rst; seen up
        to Linux 5.4).
        """
        deadline = time.monotonic() + timeout_s
        pause_s, rounds = _FIRST_PAUSE_S, 0
        self.freeze()
        while not self.frozen():
            if time.monotonic() >= deadline:
                self.thaw()
                raise CgroupError(f"freeze {self.path}: tasks still run after {timeout_s:g} s")
            yield Sleep(pause_s)
            pause_s, rounds = min(pause_s * 2, _LONGEST_PAUSE_S), rounds + 1
            if self.version == 1:
                if rounds % _ROUNDS_BEFORE_THAW == 0:
                    self.thaw()
                self.freeze()

    def _write(self, value: str, *, or_gone: bool = False) -> None:
        file = "freezer.state" if self.version == 1 else "cgroup.freeze"
        try:
            write_file(f"{self.path}/{file}", value)
        except OSError as error:
            if or_gone and error.errno in (errno.ENOENT, errno.ENODEV):
                return
            raise CgroupError(f"write {value!r} to {self.path}/{file}: {error.strerror}") from error
