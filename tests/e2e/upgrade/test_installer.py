"""manifests/install.sh: what it leaves for whom, run again and again, and when it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.paths import CHECKOUT, SHIM

# What it runs, instead of an installer of ours that compiles for a second: writes a program with the place of its code.
INSTALL = f"""
import os, sys
if os.path.exists("fails"):
    sys.exit("no space")
os.makedirs("shim/__pycache__", exist_ok=True)
with open(sys.argv[1] + "/{SHIM.name}", "w") as file:
    file.write(os.getcwd())
if os.path.exists("fails-late"):
    sys.exit("no space")
"""


class Machine:
    """A node's directories, and an image of the installer."""

    def __init__(self, directory: Path) -> None:
        self.image, self.prefix, self._programs = directory / "image", directory / "opt", directory / "bin"
        self.umask = 0o022
        for package in ("runtime", "shim"):
            (self.image / package).mkdir(parents=True)
        (
            self.image / "shim/__init__.py"
        ).touch()  # before the checkout's, which is among this Python's packages
        (self.image / "shim/install.py").write_text(INSTALL)
        shutil.copy(CHECKOUT / "manifests/install.sh", self.image)

    def install(self) -> int:
        """Run it; its exit code."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        places = {"HOST": "/", "PREFIX": str(self.prefix), "BIN": str(self._programs), "PATH": path}
        command = [str(self.image / "install.sh")]
        environ = {**os.environ, **places}
        return subprocess.run(
            command, env=environ, capture_output=True, check=False, umask=self.umask
        ).returncode

    def current(self) -> Path:
        """The code that the shim's program refers to."""
        return Path((self._programs / SHIM.name).read_text())

    def there(self) -> set[Path]:
        """All that lies below the prefix."""
        return set(self.prefix.iterdir())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_each_run_has_a_directory_and_the_one_before_stays_until_the_next(machine: Machine) -> None:
    before: list[Path] = []
    for _run in range(4):
        assert machine.install() == 0
        before.append(machine.current())
        assert machine.there() == set(before[-2:])
        assert machine.current().stat().st_mode & 0o777 == 0o755
        assert (machine.current() / "runtime").is_dir()
    assert len(set(before)) == 4


def test_nobody_else_may_write_to_what_root_will_run_whatever_the_umask_is(machine: Machine) -> None:
    machine.umask = 0
    assert machine.install() == 0
    made = [machine.prefix, *machine.prefix.rglob("*"), machine.current() / "shim/__pycache__"]
    assert [path for path in made if path.stat().st_mode & 0o022] == []
    assert (machine.current() / "shim/__pycache__").stat().st_mode & 0o777 == 0o755


def test_the_layout_of_manor_0_1_stays_as_long_as_it_is_the_one_before(machine: Machine) -> None:
    for package in ("runtime", "shim"):
        (machine.prefix / package).mkdir(parents=True)
    assert machine.install() == 0
    assert machine.there() == {machine.prefix / "runtime", machine.prefix / "shim", machine.current()}
    first = machine.current()
    assert machine.install() == 0
    assert machine.there() == {first, machine.current()}


def test_a_run_that_fails_leaves_what_there_was(machine: Machine) -> None:
    assert machine.install() == 0
    there, current = machine.there(), machine.current()
    (machine.image / "runtime/broken").mkdir()
    (machine.image / "shim/install.py").write_text(INSTALL.replace('"fails"', '"runtime/broken"'))
    assert machine.install() != 0
    assert (machine.there(), machine.current()) == (there, current)


def test_code_that_a_program_refers_to_stays_whatever_fails_after_that(machine: Machine) -> None:
    (machine.image / "runtime/broken").mkdir()
    (machine.image / "shim/install.py").write_text(INSTALL.replace('"fails-late"', '"runtime/broken"'))
    assert machine.install() != 0
    assert machine.there() == {machine.current()}
