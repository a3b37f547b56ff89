"""Where the milliseconds of a start went: each process keeps a list of (step, CLOCK_MONOTONIC ns).

Marks are made by the stages and travel back in messages that are sent anyway. Turning them into spans
is `shim/spans.py`'s work, exporting them the scribe's.
"""

from __future__ import annotations

import time

_marks: list[tuple[str, int]] = []


def mark(step: str) -> None:
    """Note that `step` has just been finished."""
    _marks.append((step, time.monotonic_ns()))


def take() -> list[tuple[str, int]]:
    """All marks since the last call, oldest first; the list is empty afterwards."""
    taken = _marks[:]
    _marks.clear()
    return taken
