"""A shim at its door that has had something to do. Also run where all controllers are in v2 (`tests/vm/run.sh`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.shim.door import Door, opened
from tests.e2e.shim.idle import assert_small
from tests.harness.waiting import eventually


@pytest.fixture
def door() -> Iterator[Door]:
    with opened() as made:
        yield made


def test_an_idle_shim_has_little_memory_of_its_own(door: Door) -> None:
    door.run("c1", ["sleep", "1000"])
    for exec_id in ("e1", "e2", "e3"):
        door.exec("c1", exec_id, ["true"])
        assert door.wait("c1", exec_id) == 0
        door.delete("c1", exec_id)
    eventually(lambda: "exit e3" in door.events.topics())
    assert_small(door.shim_pid())
    door.end("c1")
