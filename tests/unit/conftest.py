"""A deadline for every unit test: one that waits for ever is named, and the others are run."""

from __future__ import annotations

from tests.harness.deadline import no_test_hangs

__all__ = ["no_test_hangs"]  # a fixture of every test
