"""Verbs that need a checkout: the demo and the benchmarks bring their own containerd, which no installation has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _run(package: str, arguments: Sequence[str]) -> int:
    if not (ROOT / package / "__main__.py").exists():
        print(
            f"manor: {package} is only in a checkout of the project, not in an installation", file=sys.stderr
        )
        return 1
    return subprocess.run([sys.executable, "-m", package, *arguments], cwd=ROOT, check=False).returncode


def demo(arguments: Sequence[str]) -> int:
    """Run the demo, after `make ready`."""
    return _run("demo", arguments)


def bench(arguments: Sequence[str]) -> int:
    """Run the benchmarks, after `make ready`."""
    return _run("benchmarks", arguments)
