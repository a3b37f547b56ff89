"""A node's installation of Manor, replaced by another version of it while pods run.

A version is the checkout under another name, with wardens and scribes that are soon idle. It gets there by one of two
ways: as an operator's does, with manifests/install.sh, or as a developer's, in the same directory. Both are run once
for each version; what a test replaces is what they made, by renames, since compiling takes a second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.harness.paths import CHECKOUT, SHIM

NODE, IN_PLACE = "install.sh", "in-place"
EARLIER, LATER = "1.0.0", "2.0.0"
COMMAND = "manor-oci"
# What each copy has other than the checkout: file, what stands there, what shall.
STAMPS = (
    ("runtime/version.py", 'VERSION = "0.1.0"', 'VERSION = "{version}"'),
    ("shim/warden.py", "IDLE_S = 600 ", "IDLE_S = 1 "),
    ("shim/warden.py", "TEND_S = 60 ", "TEND_S = 0.1 "),
    ("shim/scribe.py", "IDLE_S = 60 ", "IDLE_S = 1 "),
    ("shim/scribe.py", 'SERVICE = "manor"', 'SERVICE = "manor {version}"'),
)


class Versions:
    """The earlier and the later version as one way of installing makes them, each put aside."""

    def __init__(self, directory: Path, way: str) -> None:
        self._directory = directory
        self._places: dict[str, Path] = {}
        for version in (EARLIER, LATER):
            sources = directory / f"sources-{version}"
            _stamp(sources, version)
            self.programs(version).mkdir()
            prefix = directory / "opt"
            if way == NODE:
                _by_script(sources, prefix, self.programs(version))
            else:
                _in_place(sources, prefix, self.programs(version))
            (self._places[version],) = prefix.iterdir() if way == NODE else [prefix]
            self.put_aside(version)

    def programs(self, version: str) -> Path:
        """The directory of the programs that were written for a version."""
        return self._directory / f"bin-{version}"

    def put_in_place(self, version: str) -> None:
        """Let the programs of a version find their code."""
        if not self._places[version].exists():
            self._aside(version).rename(self._places[version])

    def put_aside(self, version: str) -> None:
        """Take the code of a version away."""
        if not self._aside(version).exists():
            self._places[version].rename(self._aside(version))

    def _aside(self, version: str) -> Path:
        return self._directory / f"code-{version}"


class Installation:
    """The programs in a directory, and the code that they run; none before `install`."""

    def __init__(self, versions: Versions, programs: Path) -> None:
        self._versions = versions
        self.shim = programs / SHIM.name
        self.command = programs / COMMAND
        programs.mkdir(parents=True)

    def install(self, version: str, keep: bool = False) -> None:
        """Put `version` in the place of what there is, of which no file is left.

        With `keep` the code of the one before stays, as install.sh leaves it for who is just being started from it.
        """
        for other in (EARLIER, LATER):
            if other != version and not keep:
                self._versions.put_aside(other)
        self._versions.put_in_place(version)
        for program in (self.shim, self.command):
            new = program.with_suffix(".new")
            shutil.copy(self._versions.programs(version) / program.name, new)
            new.replace(program)

    def remove(self) -> None:
        """Leave no file of any version."""
        for version in (EARLIER, LATER):
            self._versions.put_aside(version)
        for program in (self.shim, self.command):
            program.unlink(missing_ok=True)


def _stamp(sources: Path, version: str) -> None:
    for package in ("runtime", "shim"):
        shutil.copytree(CHECKOUT / package, sources / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, there, wanted in STAMPS:
        text = (sources / name).read_text(encoding="utf-8")
        assert there in text, f"{name} has no {there!r}"
        (sources / name).write_text(text.replace(there, wanted.format(version=version)), encoding="utf-8")


def _by_script(sources: Path, prefix: Path, programs: Path) -> None:
    shutil.copy(CHECKOUT / "manifests/install.sh", sources)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    places = {"HOST": "/", "PREFIX": str(prefix), "BIN": str(programs), "PATH": path}
    run([str(sources / "install.sh")], {**os.environ, **places}, sources)


def _in_place(sources: Path, prefix: Path, programs: Path) -> None:
    sources.rename(prefix)
    run([sys.executable, "-m", "shim.install", str(programs)], dict(os.environ), prefix)


def run(command: list[str], environment: dict[str, str], directory: Path) -> None:
    """Run a command of an installation. AssertionError with what it says when it fails."""
    done = subprocess.run(
        command, env=environment, cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
