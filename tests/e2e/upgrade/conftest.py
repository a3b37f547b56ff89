"""A shim's own door on a node whose Manor is replaced by another version."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.shim.door import Door
from tests.harness.paths import scratch_dir
from tests.harness.upgrades import EARLIER, IN_PLACE, LATER, NODE, Installation, Versions


@pytest.fixture(scope="session")
def versions() -> Iterator[dict[str, Versions]]:
    """The two versions, by the way in which they are installed."""
    with tempfile.TemporaryDirectory(prefix="manor-up-", dir=scratch_dir()) as directory:
        Path(directory).chmod(0o711)
        made = {}
        for way in (NODE, IN_PLACE):
            (Path(directory) / way).mkdir()
            made[way] = Versions(Path(directory) / way, way)
        yield made


@pytest.fixture
def way() -> str:
    """How the installation is replaced; a test may want another."""
    return NODE


class Site(Door):
    """A door whose launcher is that of an installation, which can be replaced."""

    def __init__(self, directory: Path, versions: Versions) -> None:
        self.installation = Installation(versions, directory / "bin")
        self.installation.install(EARLIER)
        super().__init__(directory, self.installation.shim)

    def upgrade(self) -> None:
        """Replace the installation; of the earlier one no file is left."""
        self.installation.install(LATER)


@pytest.fixture
def site(versions: dict[str, Versions], way: str) -> Iterator[Site]:
    """One on which nothing runs yet."""
    with tempfile.TemporaryDirectory(prefix="manor-up-", dir=scratch_dir()) as directory:
        made = Site(Path(directory), versions[way])
        try:
            yield made
        finally:
            made.close()
            made.installation.remove()
