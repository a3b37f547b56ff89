"""A node's installation of Manor, replaced by another version of it while pods run.

A version is the checkout under another name, with wardens and scribes that are soon idle. It gets there by one of two
ways: as an operator's does, with manifests/install.sh, or as a developer's, in the same directory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.harness.paths import CHECKOUT, SHIM

NODE, IN_PLACE = "install.sh", "in-place"
WAYS = (NODE, IN_PLACE)
# What each copy has other than the checkout: file, what stands there, what shall.
STAMPS = (
    ("shim/version.py", 'VERSION = "0.1.0"', 'VERSION = "{version}"'),
    ("runtime/cli/help.py", 'VERSION = "0.1.0"', 'VERSION = "{version}"'),
    ("shim/warden.py", "IDLE_S = 600 ", "IDLE_S = 1 "),
    ("shim/warden.py", "TEND_S = 60 ", "TEND_S = 0.1 "),
    ("shim/scribe.py", "IDLE_S = 60 ", "IDLE_S = 1 "),
)


class Installation:
    """The programs in `bin` of a directory, and the code that they run, which `install` replaces."""

    def __init__(self, directory: Path, way: str) -> None:
        self.way = way
        self._sources = directory / "sources"
        self._prefix = directory / "opt"
        self._programs = directory / "bin"
        self._programs.mkdir(parents=True)
        self.shim = self._programs / SHIM.name
        self.command = self._programs / "manor-oci"

    def install(self, version: str) -> None:
        """Put `version` in the place of what there is, of which no file is left."""
        shutil.rmtree(self._sources, ignore_errors=True)
        for package in ("runtime", "shim"):
            shutil.copytree(CHECKOUT / package, self._sources / package)
        for name, there, wanted in STAMPS:
            text = (self._sources / name).read_text(encoding="utf-8")
            assert there in text, f"{name} has no {there!r}"
            (self._sources / name).write_text(
                text.replace(there, wanted.format(version=version)), encoding="utf-8"
            )
        before = list(self._prefix.glob("*"))
        if self.way == NODE:
            self._by_script()
        else:
            self._in_place(before)
        for path in before:
            if path.exists() and self.way == NODE:
                shutil.rmtree(path)  # as the run after the next would

    def _by_script(self) -> None:
        shutil.copy(CHECKOUT / "manifests/install.sh", self._sources)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        places = {"HOST": "/", "PREFIX": str(self._prefix), "BIN": str(self._programs), "PATH": path}
        _run([str(self._sources / "install.sh")], {**os.environ, **places}, self._sources)

    def _in_place(self, before: list[Path]) -> None:
        for path in before:
            shutil.rmtree(path)
        self._prefix.mkdir(exist_ok=True)
        for package in ("runtime", "shim"):
            shutil.move(self._sources / package, self._prefix)
        command = [sys.executable, "-m", "shim.install", str(self._programs)]
        _run(command, dict(os.environ), self._prefix)


def _run(command: list[str], environment: dict[str, str], directory: Path) -> None:
    done = subprocess.run(
        command, env=environment, cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
