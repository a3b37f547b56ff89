"""A deadline for every unit test: one that waits for ever is named, and the others are run."""

from __future__ import annotations

from tests.harness.every_test import no_test_hangs, no_thread_is_left

__all__ = ["no_test_hangs", "no_thread_is_left"]  # fixtures of every test
