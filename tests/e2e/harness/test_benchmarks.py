"""What the benchmarks change to measure, and change back."""

from __future__ import annotations

import os

import pytest

from benchmarks.oci import without_v2
from runtime.cgroups.layout import HYBRID, LEGACY, detect_layout
from tests.harness.mountinfo import mounts_of
from tests.unit.runtime.forked import in_child


@pytest.mark.skipif(detect_layout().mode != HYBRID, reason="there is no v2 hierarchy beside v1")
def test_the_v2_hierarchy_is_out_of_sight_for_a_while() -> None:
    def look() -> list[object]:
        mounts, said = mounts_of("cgroup"), list[str]()
        with without_v2(said.append):
            inside = detect_layout().mode
        after = mounts_of("cgroup")
        return [inside, after == mounts, os.getcwd(), len(said)]

    assert in_child(look) == [LEGACY, True, os.getcwd(), 1]
    assert detect_layout().mode == HYBRID
