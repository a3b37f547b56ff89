"""`make soak`: the long checks, each with its seed, and what came of them as JSON in `soak.json` (git-ignored).

What is left to chance follows from the seed alone, so that a failure can be had again: `SEED=n make soak`. What a
check measures stands beside whether it passed (`measured`).
`ONLY="oom kills" make soak` runs that part alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # run as a script, before there is a package path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.harness import measured
from tests.harness.paths import CHECKOUT, VENV

RESULT = CHECKOUT / "soak.json"
# Through each of these: pods, execs, streams, and a containerd that is killed and started again.
THROUGH_EACH = ("pod", "exec", "crash/test_crash.py", "stdio/test_streams.py", "sandbox/test_pod.py")
CONTAINERDS = (
    "1.7.35,2.0.14,2.1.9,2.2.9"  # the last patches of what CI has not; each is built once, in minutes
)


# What `tests/sweeps` writes, one file for each of its runs.
SWEEPS = CHECKOUT / "soak-sweeps"


def parts() -> dict[str, tuple[dict[str, str], list[str]]]:
    """Name to environment and test paths."""
    cycles, cases = os.environ.get("CYCLES", "300"), os.environ.get("CASES", "5000")
    kills, exits = os.environ.get("KILLS", "100"), os.environ.get("EXITS", "100000")
    log_bytes = os.environ.get("LOG_BYTES", str(1 << 30))
    execs, orphans = os.environ.get("EXECS", "50000"), os.environ.get("ORPHANS", "10000")
    connections, frames = os.environ.get("CONNECTIONS", "10000"), os.environ.get("FRAMES", "100000")
    sweeps = os.environ.get("SWEEPS", "containerd=100,warden=50,shim=100")
    containerds = os.environ.get("CONTAINERDS", CONTAINERDS)
    abuse = {"MANOR_CONNECTIONS": connections, "MANOR_FRAMES": frames, "MANOR_SLOW_S": "60"}
    return {
        "pod cycles": ({"MANOR_CYCLES": cycles}, ["tests/e2e/cycles"]),
        "hostile configs": (
            {"MANOR_HOSTILE_CASES": cases},
            ["tests/unit/runtime/spec/test_hostile.py", "tests/e2e/hostile"],
        ),
        "oom kills": ({"MANOR_OOM_KILLS": kills}, ["tests/e2e/exits/test_oom.py"]),
        "exit codes": ({"MANOR_EXITS": exits}, ["tests/e2e/exits/test_many.py"]),
        "sweeps": (
            {"MANOR_SWEEP_KILLS": sweeps, "MANOR_SWEEP_RESULTS": str(SWEEPS)},
            ["tests/e2e/sweeps"],
        ),
        "execs": ({"MANOR_EXECS": execs}, ["tests/e2e/execs"]),
        "orphans": ({"MANOR_ORPHANS": orphans}, ["tests/e2e/orphans"]),
        "ttrpc": (abuse, ["tests/e2e/ttrpc"]),
        "logs": ({"MANOR_LOG_BYTES": log_bytes}, ["-s", "tests/e2e/stdio/test_flood.py"]),
        "versions": (
            {"MANOR_CONTAINERDS": containerds, "MANOR_TEST_HANDLERS": "manor,manor-pods"},
            [f"tests/e2e/{each}" for each in THROUGH_EACH],
        ),
    }


def main() -> int:
    """Run all of them; the exit code says whether all passed."""
    seed = os.environ.get("SEED", "") or str(time.time_ns() % 1_000_000)
    only = os.environ.get("ONLY", "")
    # A test takes as long as it takes.
    same = {"MANOR_HOSTILE_SEED": seed, "MANOR_SEED": seed, "MANOR_TEST_DEADLINE_S": "0"}
    results = []
    for name, (settings, paths) in parts().items():
        if only and only != name:
            continue
        print(f"{name}: seed {seed}", flush=True)
        start = time.monotonic()
        told = VENV / "soak-measured"  # git-ignored, and taken by make clean
        told.unlink(missing_ok=True)
        words = [str(VENV / "bin" / "python"), "-m", "pytest", "-q", *paths]
        done = subprocess.run(
            words,
            cwd=CHECKOUT,
            env=os.environ | settings | same | {measured.VARIABLE: str(told)},
            check=False,
        )
        results.append(
            {
                "soak": name,
                "seed": int(seed),
                "settings": settings,
                "passed": done.returncode == 0,
                "seconds": round(time.monotonic() - start, 1),
                "measured": measured.read(told),
            }
        )
        told.unlink(missing_ok=True)
    RESULT.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"{RESULT.name}: {sum(bool(each['passed']) for each in results)} of {len(results)} passed")
    return 0 if all(each["passed"] for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
