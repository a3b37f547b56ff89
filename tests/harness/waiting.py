"""Waiting for what will come true: ask again and again, and fail after a deadline that no healthy machine meets."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable
from pathlib import Path


def eventually(condition: Callable[[], object], what: object = "", limit_s: float = 60) -> None:
    """Return once `condition()` is true; AssertionError with `what` if that takes longer than `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, what or condition
        time.sleep(0.01)


def remove_cgroup(cgroup: Path) -> None:
    """rmdir(2) it as soon as nobody is in it any more, if it is there.

    Whoever has ended stands in no cgroup.procs, and keeps it busy (EBUSY) until reaped.
    """
    eventually(lambda: _is_removed(cgroup), f"{cgroup} is busy")


def _is_removed(cgroup: Path) -> bool:
    try:
        cgroup.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def catches(pid: int, signum: int) -> bool:
    """Whether that process has set a handler for the signal (the SigCgt of its /proc/PID/status)."""
    return _has(pid, "SigCgt", signum)


def is_being_killed(pid: int) -> bool:
    """Whether SIGKILL has been sent to that process, which has not taken it: it is frozen, say."""
    return _has(pid, "ShdPnd", signal.SIGKILL) or _has(pid, "SigPnd", signal.SIGKILL)


def _has(pid: int, signals: str, signum: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    found = int(next(line for line in lines if line.startswith(f"{signals}:")).split()[1], 16)
    return bool(found >> (signum - 1) & 1)
