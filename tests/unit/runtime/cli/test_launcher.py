"""The program `manor-oci` as it is installed: from one file of code, unless a source is newer."""

from __future__ import annotations

import ast
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
    source = code / "runtime" / "version.py"
    source.write_text(source.read_text().replace('VERSION = "', 'VERSION = "changed '))
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


@pytest.mark.parametrize("verb", install.LINKED)
def test_what_is_linked_for_a_verb_is_what_it_imports(verb: str) -> None:
    """Found out from the sources there, and by importing here; in this order nothing is missing."""
    source = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import runtime.cli\n"
        f"from runtime.cli.verbs import find, late\n"
        f"late('runtime.stages.graft') if {verb!r} in runtime.cli.SEALED_VERBS else None\n"
        "late('runtime.cli.command')\n"
        f"find({verb!r})\n"
        "print(*(name for name in sys.modules if name.partition('.')[0] == 'runtime'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-ISBc", source], capture_output=True, text=True, check=True, cwd="/"
    )
    sources = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            path.read_bytes()
        )
        for path in (ROOT / "runtime").rglob("*.py")
    }
    first, rest = install.linked(verb, sources)
    assert not set(first) & set(rest)
    assert sorted((*first, *rest)) == sorted(done.stdout.split())


def test_a_linked_verb_looks_for_no_module(code: Path) -> None:
    """Its modules have no spec, which only the import system gives; those of another verb have."""
    looked_up = "[name for name, it in sys.modules.items() if name.startswith('runtime') and it.__spec__]"
    tail = f"\nimport sys\nprint({looked_up}, file=sys.stderr)\n"
    for verb, name in (("state", "inspect"), ("list", "inspect")):
        module = code / "runtime" / "cli" / f"{name}.py"
        original = module.read_text()
        module.write_text(original + tail)
        install.write_command(code.parent / "bin", code)
        said = run(code, "--root", str(code.parent), verb, "none").stderr.splitlines()[0]
        module.write_text(original)
        looked_for = ast.literal_eval(said)
        assert (looked_for in ([], ["runtime.cli.command"])) == (verb == "state"), said
