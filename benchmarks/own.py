"""Works with other peers: an exec beside itself without tracing, and without a cgroup of its own; a fork of a shim
beside bare Python's.
"""

from __future__ import annotations

import functools
import subprocess
import sys

from benchmarks import measure, works
from benchmarks.measure import Row
from benchmarks.stage import Side, Stage
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


def leaf(stage: Stage, quick: bool) -> list[Row]:
    """Execs in a cgroup each, beside the same in their container's: two containers of one pod, otherwise alike.

    `exec.leaf` is what who waits for an exec sees, `exec.leaf.whole` has the removal of the cgroup in it.
    """
    side = stage.sides["manor"]
    containers = {}
    for name, where in (("manor", "leaf"), ("container", "container")):
        containers[name] = identity = side.fresh("leaf")
        bundle, mounts = side.bundle(identity)
        side.door.create(identity, bundle, mounts, options=f"ExecCgroup = '{where}'")
        side.door.start(identity)
    rounds = 6 if quick else 24
    seen = {name: functools.partial(_execs, side, identity) for name, identity in containers.items()}
    whole = {
        name: functools.partial(works.exec_and_delete, side, identity)
        for name, identity in containers.items()
    }
    for block in seen.values():
        block(5)
    found = measure.rows("exec.leaf", "ms", measure.in_turns(seen, rounds, 20))
    found += measure.rows("exec.leaf.whole", "ms", measure.in_turns(whole, rounds, 20))
    for identity in containers.values():
        waiting = side.door.begin_wait(identity)
        side.door.kill(identity, works.SIGKILL)
        side.door.finish_wait(waiting)
        side.door.delete(identity)
    return found


def _execs(side: Side, container: str, count: int) -> list[float]:
    return works.exec_shim(side, count, container)


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
