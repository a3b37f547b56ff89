"""A shim at its own door, for what it writes down; and one that is killed at a marked point."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.shim.door import Door, opened
from tests.harness.waiting import eventually

LIMIT_S = 60


@pytest.fixture
def door() -> Iterator[Door]:
    """A world for one shim; a test starts it."""
    with opened() as made:
        yield made


@contextmanager
def killed_between_record_and_event(shim: int) -> Iterator[None]:
    """Inside, `shim` is killed by the first exit that it reports; after it, it is dead.

    The mark is the system call by which it waits for the record to be on disk: the record is written then, and
    the event is not sent.
    """
    strace = subprocess.Popen(
        [
            *("strace", "-f", "-qq", "-o", "/dev/null", "-p", str(shim)),
            *("-e", "trace=io_submit,fdatasync", "-e", "inject=io_submit,fdatasync:signal=KILL"),
        ]
    )
    try:
        eventually(lambda: "TracerPid:\t0" not in Path(f"/proc/{shim}/status").read_text(), LIMIT_S)
        yield
        eventually(lambda: not is_alive(shim), LIMIT_S)
    finally:
        strace.terminate()
        strace.wait()


def is_alive(pid: int) -> bool:
    """Whether a process runs, zombies left out."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def journal_directory(run_dir: Path) -> str:
    """The only pod's state directory, where its journal is."""
    (found,) = (run_dir / "pods").glob("*")
    return os.fspath(found)
