"""The command line as an attacker's victim: bundles that are up to something, and a canary tree on the host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rootfs.conftest import Canary, canary
from tests.harness.bundles import Bundle
from tests.harness.mountinfo import mounts_of

__all__ = ["Canary", "canary"]

COMMAND = Path(sys.executable).parent / "manor-oci"
QUIET: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
Answer = subprocess.CompletedProcess[str]


class Oci:
    """`manor-oci` with a root of its own; what it made is deleted at the end."""

    def __init__(self, path: Path) -> None:
        self.path, self.root = path, path / "root"
        self._names: list[str] = []

    def bundle(self, *args: str) -> Bundle:
        name = f"c{len(self._names) + 1}"
        self._names.append(name)
        (self.path / name).mkdir()
        return Bundle(self.path / name, list(args) or ["sleep", "1000"], f"/manor-tests/{os.getpid()}-{name}")

    def __call__(
        self,
        *words: object,
        pass_fds: tuple[int, ...] = (),
        before: tuple[str, ...] = (),
        stdin: int = subprocess.DEVNULL,
    ) -> Answer:
        """Run a verb; stdout and stderr come back as text."""
        command = [*before, str(COMMAND), "--root", str(self.root), *map(str, words)]
        return subprocess.run(
            command,
            stdin=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
            pass_fds=pass_fds,
        )

    def run(self, bundle: Bundle, *options: object, **how: object) -> Answer:
        """`run` in the foreground."""
        bundle.write()
        return self("run", "--bundle", bundle.path, *options, bundle.path.name, **how)  # type: ignore[arg-type]

    def started(self, bundle: Bundle) -> str:
        """A running container of the bundle; its id."""
        bundle.write()
        name = bundle.path.name
        # Detached, as one that keeps our pipes would keep us waiting.
        command = [
            str(COMMAND),
            "--root",
            str(self.root),
            "run",
            "--detach",
            "--bundle",
            str(bundle.path),
            name,
        ]
        subprocess.run(command, check=True, timeout=60, **QUIET)
        return name

    def clean(self) -> None:
        for name in self._names:
            self("delete", "--force", name)


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[Oci]:
    """The command line; no container, mount or cgroup of it stays."""
    made = Oci(tmp_path)
    yield made
    made.clean()
    assert mounts_of(tmp_path) == []
    assert not list(Path("/sys/fs/cgroup").glob(f"*/manor-tests/{os.getpid()}-*"))
    assert [path.name for path in made.root.glob("*") if not path.name.startswith("@")] == []
