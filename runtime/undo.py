"""Undoing what was acquired when a later step fails, without contextlib's weight.

with Undo() as undo:
    directory = make_directory(…)
    undo.push(remove_directory, …)      # the line after the acquisition
    …
    undo.keep()                         # all went well: nothing is undone
"""

from __future__ import annotations

from runtime.errors import ManorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Undo:
    """A stack of undo calls, run in reverse when the block is left without `keep`."""

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def push(self, call: Callable[..., object], *arguments: Any) -> None:
        """Have `call(*arguments)` run if the block fails."""
        self._calls.append((call, arguments))

    def keep(self) -> None:
        """Forget every undo: what was acquired has its owner now."""
        self._calls.clear()

    def __enter__(self) -> Undo:
        return self

    def __exit__(self, *_failure: object) -> None:
        while self._calls:
            call, arguments = self._calls.pop()
            try:
                call(*arguments)
            except (OSError, ManorError):
                pass  # the first failure is the one that is told; each undo is independent of the others
