"""What tests of the shim's parts share: driving a loop until something is true."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any

from shim.loop import Loop
from shim.tasks import spawn


def turn_until(loop: Loop, condition: Callable[[], object], limit_s: float = 60) -> None:
    """Take turns until `condition` holds; fails after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        wake = loop.call_later(0.02, lambda: None)
        loop.turn()
        wake.cancel()


def settle(loop: Loop, seconds: float = 0.05) -> None:
    """Take turns for a while."""
    deadline = time.monotonic() + seconds
    turn_until(loop, lambda: time.monotonic() >= deadline)


def drive(loop: Loop, generator: Generator[Any, Any, Any], limit_s: float = 60) -> Any:
    """Run the loop until `generator` has ended; its result, or its failure raised."""
    ended: list[tuple[Any, Exception | None]] = []
    spawn(loop, generator, lambda value, failure: ended.append((value, failure)))
    turn_until(loop, lambda: ended, limit_s)
    ((value, failure),) = ended
    if failure is not None:
        raise failure
    return value
