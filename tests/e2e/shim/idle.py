"""What a shim may hold while its pod does nothing."""

from __future__ import annotations

import sys

from tests.harness.processes import memory_kb

# All anonymous memory, shared with the warden or not. 3.11 writes to what it only reads: `runtime/linux/sharing.py`.
IDLE_ANONYMOUS_KB = 5 << 10 if sys.version_info >= (3, 12) else 7680
# What a shim has to itself; from 3.12 on the objects it shares with the warden are immortal, and what it writes to lies
# together (`runtime/linux/packing.py`). If code that is new runs in each shim: `make hot`.
IDLE_PRIVATE_KB = 1536 if sys.version_info >= (3, 12) else 5376


def assert_small(shim: int) -> None:
    """AssertionError if the idle shim `shim` has more memory than that."""
    found = memory_kb(shim)
    assert found["Anonymous"] <= IDLE_ANONYMOUS_KB, found
    assert found["Private_Dirty"] <= IDLE_PRIVATE_KB, found
