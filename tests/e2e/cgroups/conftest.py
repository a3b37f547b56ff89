"""A yard for every test of this folder, in which nothing may be left when the test is over."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.cgroups.layout import HYBRID, Layout, detect_layout, make_layout
from tests.e2e.cgroups.yard import Yard
from tests.harness.processes import descriptors


@pytest.fixture(scope="session", params=["as mounted", "v1 alone"])
def layout(request: pytest.FixtureRequest) -> Layout:
    """This machine's layout; on a hybrid one also what it would be without its v2 hierarchy."""
    found = detect_layout()
    if request.param == "as mounted":
        return found
    if found.mode != HYBRID:
        pytest.skip("not a hybrid machine")
    return make_layout(found.v1)


@pytest.fixture
def yard(layout: Layout) -> Iterator[Yard]:
    made = Yard(layout, f"manor-cgroups-{os.getpid()}")
    before = descriptors()
    yield made
    made.close()
    left = [
        each.mountpoint
        for each in detect_layout().hierarchies
        if (Path(each.mountpoint) / made.parent).exists()
    ]
    assert not left, f"cgroups left in {left}"
    assert not descriptors() - before
