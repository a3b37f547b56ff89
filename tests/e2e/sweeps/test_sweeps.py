"""SIGKILL of containerd, the warden and shims while a mixed load runs: `tests/sweeps`, of which CI does a slice.

`make soak` does `MANOR_SWEEP_KILLS` by `MANOR_SEED`, on both containerds; what came of it is in `MANOR_SWEEP_RESULTS`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.paths import CHECKOUT

SLICE = "containerd=1,warden=1,shim=3"
KILLS = os.environ.get("MANOR_SWEEP_KILLS", "")
SEED = os.environ.get("MANOR_SEED", "1")
RESULTS = os.environ.get("MANOR_SWEEP_RESULTS", "")
LIMIT_S = 250


def sweep(kind: str, *words: str) -> None:
    """One run in a process of its own."""
    command = [sys.executable, "-m", "tests.sweeps", "--seed", SEED, *words]
    if RESULTS:
        command += ["--json", str(Path(RESULTS, f"{kind}.json"))]
    limit_s = None if KILLS else LIMIT_S
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=limit_s, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]


def test_what_is_killed_takes_nothing_else_along() -> None:
    sweep("2.3", "--kills", KILLS or SLICE, *([] if KILLS else ["--whole-pods"]))


@pytest.mark.skipif(not KILLS, reason="make soak")
def test_nor_does_it_with_the_other_containerd() -> None:
    sweep("1.6", "--containerd", "1.6", "--kills", _fewer(KILLS, 5))


@pytest.mark.skipif("containerd=" not in KILLS, reason="make soak, where containerd is to be killed")
def test_what_containerd_loses_by_itself_is_known() -> None:
    """On runc, whose losses are no failure here: they stand in the results."""
    sweep("runc", "--handlers", "runc", "--kills", _only(KILLS, "containerd"), "--reference")


def _fewer(kills: str, divisor: int) -> str:
    pairs = (each.split("=") for each in kills.split(","))
    return ",".join(f"{name}={max(1, int(number) // divisor)}" for name, number in pairs)


def _only(kills: str, wanted: str) -> str:
    return ",".join(each for each in kills.split(",") if each.startswith(f"{wanted}="))
