"""A launcher and a run directory for each test, with a daemon that tells about itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.unit.shim.installed import Manor, make_code

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def manor(tmp_path: Path) -> Iterator[Manor]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = Manor(tmp_path, make_code(tmp_path / "code"))
    yield made
    made.end()
