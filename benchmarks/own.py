"""Works with other peers: an exec beside itself without tracing, and a fork of a shim beside bare Python's."""

from __future__ import annotations

import functools
import subprocess
import sys

from benchmarks import measure, works
from benchmarks.measure import Row
from benchmarks.stage import Stage
from tests.harness.containerd import Containerd
from tests.harness.paths import CHECKOUT
from tests.harness.registry import Registry

UNTRACED = {"MANOR_TRACE": "off"}
# Prints how long each of a number of forks took until the child, which ends at once, was reaped: in ms.
FORKS = """
import os, sys, time
sys.path.insert(0, {code!r})
{setup}
import gc
gc.collect(); gc.freeze()
for _ in range({count}):
    begin = time.perf_counter()
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    print((time.perf_counter() - begin) * 1000)
"""


def tracing(stage: Stage, registry: Registry, quick: bool) -> list[Row]:
    """`exec.shim` with tracing as it is by default, beside the same in a containerd whose shims do not trace."""
    node = Containerd(stage.node.version, registry, environment=UNTRACED)
    try:
        silent = Stage(node, ["manor"])
        blocks = {
            "manor": functools.partial(works.exec_shim, stage.sides["manor"]),
            "untraced": functools.partial(works.exec_shim, silent.sides["manor"]),
        }
        for block in blocks.values():
            block(5)
        samples = measure.in_turns(blocks, 6 if quick else 24, 20)
        silent.close()
    finally:
        node.close()
    return measure.rows("exec.shim.traced", "ms", samples)


def _forks(setup: str, count: int) -> list[float]:
    program = FORKS.format(code=str(CHECKOUT), setup=setup, count=count)
    done = subprocess.run([sys.executable, "-ISB", "-c", program], capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def fork(quick: bool) -> list[Row]:
    """Fork and exit of a process with everything a warden has imported, beside bare Python's."""
    blocks = {
        "manor": functools.partial(_forks, "import shim.daemon"),
        "python": functools.partial(_forks, ""),
    }
    return measure.rows("fork.exit", "ms", measure.in_turns(blocks, 2 if quick else 6, 50))
