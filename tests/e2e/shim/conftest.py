"""The shim at its own door, without a containerd: what leaks is looked for after every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.shim.door import Door, opened


@pytest.fixture
def door() -> Iterator[Door]:
    """A world for one shim; a test starts it. Its directory has a short name: sockets are in it."""
    with opened() as made:
        yield made


@pytest.fixture
def running(door: Door) -> Iterator[Door]:
    """A door with a container `c1` that sleeps, deleted in the end: the shim must have nothing left then."""
    door.run("c1", ["sleep", "1000"])
    yield door
    assert door.zombies() == []
    door.end("c1")
    assert (door.cgroups(), door.mounts()) == ([], [])
