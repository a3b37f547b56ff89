"""The command as a whole, whatever the verb."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.manor.test_ledger import run_dir
from tests.unit.manor.test_trace import line, raw

__all__ = ["run_dir"]


@pytest.fixture(params=[1, 2000], ids=["within a buffer", "beyond it"])
def spans(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / "spans.jsonl"
    file.write_text("".join(line(raw("one", 0, 1, of=str(number))) for number in range(request.param)))
    return file


def test_a_reader_of_traces_that_leaves_early_ends_it_quietly(spans: Path) -> None:
    assert without_a_reader("trace", "--all", "--file", str(spans)) == (141, b"")


@pytest.mark.parametrize("verb", [["ps"], ["ps", "--json"], ["leaks", "--grace", "0", "--json"]])
def test_so_does_one_of_other_verbs(run_dir: Path, verb: list[str]) -> None:
    assert without_a_reader(*verb, "--run-dir", str(run_dir)) == (141, b"")


def without_a_reader(*words: str) -> tuple[int, bytes]:
    """How a command ends whose output nobody reads, and what it says on stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "manor", *words],
            cwd=Path(__file__).parents[3],
            stdout=writer,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr
