"""What holds for every test: a deadline, so that one that waits for ever is named and does not keep all others from
being run; and no thread is left for the next one.

Its fixtures are imported by a conftest.py, or it is a plugin of its own: `-p tests.harness.every_test`.
$MANOR_TEST_DEADLINE_S says how long a test may take.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.harness.waiting import eventually

DEADLINE_S = int(os.environ.get("MANOR_TEST_DEADLINE_S", "300"))


@pytest.fixture(autouse=True)
def no_test_hangs(request: pytest.FixtureRequest) -> Iterator[None]:
    """End a test that takes too long. It is named at once: who waits for all of them may have a limit, too."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def end(_number: int, _frame: object) -> None:
        late = f"{request.node.nodeid} did not end within {DEADLINE_S} s"
        with capture.global_and_fixture_disabled():
            print(f"\n{late}", file=sys.stderr, flush=True)
        raise TimeoutError(late)

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(0 if "MANOR_CYCLES" in os.environ else DEADLINE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """A thread that ends while a later test clones a process in ours would hold the interpreter's locks for ever."""
    before = set(threading.enumerate())
    yield
    eventually(lambda: not set(threading.enumerate()) - before, "threads are left behind")
