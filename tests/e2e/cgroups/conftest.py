"""A yard for every test of this folder, in which nothing may be left when the test is over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.cgroups import Layout, detect_layout
from tests.e2e.cgroups.yard import Yard


@pytest.fixture(scope="session")
def layout() -> Layout:
    return detect_layout()


@pytest.fixture
def yard(layout: Layout) -> Iterator[Yard]:
    made = Yard(layout, f"manor-cgroups-{os.getpid()}")
    descriptors = sorted(os.listdir("/proc/self/fd"))
    yield made
    made.close()
    left = [each.mountpoint for each in layout.hierarchies if (Path(each.mountpoint) / made.parent).exists()]
    assert not left, f"cgroups left in {left}"
    assert sorted(os.listdir("/proc/self/fd")) == descriptors
