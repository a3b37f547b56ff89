"""Where the milliseconds of a start went: a list of (step, CLOCK_MONOTONIC ns) that is made while they pass.

A step's mark says when it was done. The stages' lists travel back in messages that are sent anyway.
Turning them into spans is `shim/spans.py`'s work, exporting them the scribe's.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Marks = tuple[tuple[str, int], ...]

# What is called with stage and step wherever one begins, to let it fail or wait: `runtime/faults.py` sets it, on
# demand, in a command line that was asked to or in a test. None in every shim.
planted: Callable[[str, str], None] | None = None
MAIN = "main"


class Timeline:
    """The marks of one operation. There is one for each, as a shim has many of them under way at once."""

    __slots__ = ("_ahead_ns", "_marks")

    def __init__(self) -> None:
        self._marks: list[tuple[str, int]] = []
        self._ahead_ns = 0

    def set_ahead(self, nanoseconds: int) -> None:
        """From now on our clock is so much ahead of the others': we are in a time namespace (time_namespaces(7))."""
        self._ahead_ns += nanoseconds

    def note(self, step: str) -> None:
        """Note that `step` of a child has just been done."""
        self._marks.append((step, time.monotonic_ns() - self._ahead_ns))

    def mark(self, step: str) -> None:
        """Note that `step` of stage 0 has just been done."""
        self._marks.append((step, time.monotonic_ns()))
        if planted is not None:
            planted(MAIN, step)

    def add(self, marks: Iterable[tuple[str, int]]) -> None:
        """Take in the marks of another process; the clock is the same for all of a machine."""
        self._marks += marks

    def latest(self) -> tuple[str, int]:
        """The last mark of our own that there is so far; ("", 0) without one."""
        return self._marks[-1] if self._marks else ("", 0)

    def began_ns(self) -> int:
        """When the first mark was made; now, without one."""
        return self._marks[0][1] if self._marks else time.monotonic_ns()

    def marks(self) -> Marks:
        """All of them, in the order of their times."""
        return tuple(sorted(self._marks, key=lambda mark: mark[1]))


def passed(step: str) -> None:
    """`step` of stage 0 has just been done, one that is on no timeline."""
    if planted is not None:
        planted(MAIN, step)
