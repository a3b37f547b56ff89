"""A shim at its own door."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.shim.door import Door, opened


@pytest.fixture
def door() -> Iterator[Door]:
    """A world for one shim; a test starts it."""
    with opened() as made:
        yield made
