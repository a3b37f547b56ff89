"""Waiting for what will come true: ask again and again, and fail after a deadline that no healthy machine meets."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def eventually(condition: Callable[[], object], what: object = "", limit_s: float = 60) -> None:
    """Return once `condition()` is true; AssertionError with `what` if that takes longer than `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, what or condition
        time.sleep(0.01)


def catches(pid: int, signum: int) -> bool:
    """Whether that process has set a handler for the signal (the SigCgt of its /proc/PID/status)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    caught = int(next(line for line in lines if line.startswith("SigCgt:")).split()[1], 16)
    return bool(caught >> (signum - 1) & 1)
