"""The moment to kill at: what a process of Manor's is doing is known by the children it has, and by their names."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

JOIN_LIMIT_S = 120.0
_FLOCK = struct.Struct("hhqqi")  # struct flock: type whence start len pid


class Underway:
    """A call in a thread of its own, which may fail because of what is done to the node meanwhile."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.result: Any = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except Exception as error:
            self.error = error

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait for its end. TimeoutError."""
        self._thread.join(JOIN_LIMIT_S)
        if not self.done:
            raise TimeoutError(f"{self._call} does not end")


def children(pid: int) -> list[int]:
    """Of all of a process's threads; none if it has gone."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    except OSError:
        pass
    return found


def name_of(pid: int) -> str:
    """What a process calls itself, "" if it has gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip()
    except OSError:
        return ""


def wait_for_stage(parent: int, stage: str, call: Underway, without: str = "") -> bool:
    """Until `parent` has a child that is in `stage`, and none in `without`; False if `call` has ended before."""
    while not call.done:
        names = [name_of(child) for child in children(parent)]
        if any(stage in name for name in names) and not (without and any(without in name for name in names)):
            return True
    return False


def wait_for_child(parent: int, before: list[int], call: Underway, word: bytes = b"") -> int:
    """The first new child of `parent`, with `word` in its command line; 0 if `call` has ended before."""
    while not call.done:
        for child in children(parent):
            if child not in before and (not word or word in _command_line(child)):
                return child
    return 0


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def warden_of(directory: Path) -> int:
    """Who holds the lock that makes it the warden of a run directory; 0 if nobody does.

    Not by its command line, which its newborn shims have, too.
    """
    for path in directory.glob("warden-*.lock"):
        with open(path, "rb") as file:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
            answer = fcntl.fcntl(file.fileno(), fcntl.F_GETLK, asked)
        kind, _whence, _start, _length, pid = _FLOCK.unpack(answer)
        if kind != fcntl.F_UNLCK and pid > 0:
            return int(pid)
    return 0


def wait_for_warden(directory: Path, call: Underway) -> int:
    """The pid of the warden as soon as there is one, which is long before it serves; 0 if `call` has ended before."""
    while not call.done:
        if pid := warden_of(directory):
            return pid
        time.sleep(0.0005)
    return 0
