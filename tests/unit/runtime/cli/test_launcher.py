"""The program `manor-oci` as it is installed: from one file of code, unless a source is newer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shim import install

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of the packages, installed into `bin` beside it."""
    made = tmp_path / "code"
    for package in ("runtime", "shim"):
        shutil.copytree(ROOT / package, made / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "bin").mkdir()
    install.write_command(tmp_path / "bin", made)
    return made


def run(code: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = code.parent / "bin" / "manor-oci"
    return subprocess.run(
        [program, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, **environment},
    )


def test_its_first_line_is_the_real_interpreter_with_one_cluster_of_flags(code: Path) -> None:
    with open(code.parent / "bin" / "manor-oci", "rb") as file:
        first = file.readline().decode()
    assert first == f"#!{Path(sys.executable).resolve()} -ISB\n"


def test_it_runs_from_the_bundle_alone(code: Path) -> None:
    help_text = code / "runtime" / "cli" / "help.py"
    # As long and as old as the one that was compiled: nobody can tell.
    status = help_text.stat()
    help_text.write_text("x" * status.st_size)
    os.utime(help_text, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(code, "--version").stdout.startswith("manor-oci version ")


def test_a_source_that_has_changed_goes_before_it(code: Path) -> None:
    help_text = code / "runtime" / "cli" / "help.py"
    help_text.write_text(help_text.read_text().replace('VERSION = "', 'VERSION = "changed '))
    assert run(code, "--version").stdout.startswith("manor-oci version changed ")


def test_new_and_removed_modules_are_seen(code: Path) -> None:
    (code / "runtime" / "cli" / "novel.py").write_text("VALUE = 7\n")
    table = code / "runtime" / "cli" / "help.py"
    table.write_text(table.read_text() + "\nfrom runtime.cli.novel import VALUE\nVERSION = str(VALUE)\n")
    assert run(code, "--version").stdout.startswith("manor-oci version 7")
    table.unlink()
    assert "No module named 'runtime.cli.help'" in run(code, "--version").stderr


def test_without_the_bundle_it_runs_from_the_sources(code: Path) -> None:
    install.bundle_path(code).unlink()
    assert run(code, "--version").stdout.startswith("manor-oci version ")
    assert not list(code.rglob("*.pyc"))


def test_another_python_is_told_to_install_again(code: Path) -> None:
    program = code.parent / "bin" / "manor-oci"
    text = program.read_text()
    program.write_text(text.replace(f"{sys.hexversion >> 16:#x}", "0x0"))
    done = run(code, "--version")
    assert done.returncode == 1
    assert "run `python -m shim.install` again" in done.stderr


def test_the_environment_does_not_reach_it(code: Path, tmp_path: Path) -> None:
    (tmp_path / "os.py").write_text("raise SystemExit('trap')")
    done = run(code, "--version", PYTHONPATH=str(tmp_path), PYTHONHOME="/nowhere", PYTHONINSPECT="1")
    assert (done.returncode, done.stderr) == (0, "")
