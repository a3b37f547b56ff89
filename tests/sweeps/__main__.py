"""One run: a node, what must outlive it all, the sweeps that were asked for, and what came of them as JSON."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from tests.harness import leaks, venv
from tests.harness.containerd import VERSIONS
from tests.harness.paths import VENV
from tests.harness.registry import Registry
from tests.sweeps.kills import SWEEPS
from tests.sweeps.load import Steady
from tests.sweeps.report import Report
from tests.sweeps.world import World

# A shim whose containerd died before it knew of it ends after a minute.
LEFT_LIMIT_S = 100.0
# containerd renames a bundle before it removes it, to a name with a point. One of a task that it could not ask for its
# pid it keeps for good, whatever the runtime.
BUNDLE = re.compile(r"io\.containerd\.runtime\.v2\.task/[^/]+/([^/]+)$")

NETNS = "/io.containerd.grpc.v1.cri/netns/"


def main() -> int:
    """The exit code says whether nothing was wrong."""
    sys.setswitchinterval(0.0005)  # marks are short
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # and everything with it
    parser = argparse.ArgumentParser(prog="python -m tests.sweeps")
    parser.add_argument("--containerd", default=VERSIONS[-1], choices=VERSIONS)
    parser.add_argument("--handlers", default="manor,manor-pods")
    parser.add_argument("--kills", default="containerd=2,warden=2,shim=4", help="how many of what")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no round after that")
    parser.add_argument(
        "--json", type=Path, help="where the result goes, besides stdout; containerd's log, too"
    )
    parser.add_argument(
        "--whole-pods", action="store_true", help="none is half made when containerd is killed"
    )
    parser.add_argument("--reference", action="store_true", help="what is wrong is told, and no failure")
    given = parser.parse_args()
    kills = {name: int(number) for name, number in (each.split("=") for each in given.kills.split(","))}
    handlers = [
        each for each in given.handlers.split(",") if (given.containerd, each) != ("1.6", "manor-pods")
    ]
    report = Report()
    registry = Registry()
    try:
        venv.write_commands(VENV / "bin" / "python")
        world = World(given.containerd, handlers, registry, report)
        try:
            world.whole_pods, world.until = given.whole_pods, time.monotonic() + given.minutes * 60
            sweep(world, kills, given.seed)
        finally:
            if given.json:
                given.json.parent.mkdir(exist_ok=True)
                shutil.copy(world.node.log, given.json.with_suffix(".containerd.log"))
            world.close()
    finally:
        registry.close()
    asked = {"containerd": given.containerd, "handlers": handlers, "seed": given.seed, "kills": kills}
    text = json.dumps({**asked, **report.as_json()}, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    return 1 if report.wrong and not given.reference else 0


def sweep(world: World, kills: dict[str, int], seed: int) -> None:
    """All that were asked for, on one node, and what they leave."""
    for handler in world.handlers:  # brings up what stays
        pod = world.cri.run_pod(world.pod_message(world.fresh("first")), handler)
        world.cri.stop_pod(pod)
        world.cri.remove_pod(pod)
    before = settled(world)
    steady = [Steady(world, handler) for handler in world.handlers]
    for name, number in kills.items():
        began = time.monotonic()
        SWEEPS[name](world, seed, steady).run(number)
        world.report.time(f"the sweep of {name}", time.monotonic() - began)
    world.report.round = "end"
    for each in steady:
        each.end()
    check_leaks(world, before)


def settled(world: World) -> leaks.Inventory:
    """What there is once nothing has been added for a second: the first pod's scribe takes a while to come up."""
    while True:
        found = leaks.take(world.node)
        time.sleep(1)
        if not leaks.take(world.node).more_than(found):
            return found


def check_leaks(world: World, before: leaks.Inventory) -> None:
    """Nothing is left, once those have ended that wait for somebody who knows of them."""
    deadline = time.monotonic() + LEFT_LIMIT_S
    while (left := leaks.take(world.node).more_than(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for thing in left:
        bundle = BUNDLE.search(thing)
        if bundle is not None and world.epoch and bundle[1].startswith("."):
            world.report.note("bundles that containerd was removing when it was killed, and forgot")
        elif world.epoch and NETNS in thing:
            world.report.note(
                "names of network namespaces that containerd had made for no pod yet when it was killed"
            )
        elif bundle is not None and bundle[1] in world.cut_off:
            world.report.note("bundles of a start that failed when its shim died, which containerd forgot")
        else:
            world.report.is_wrong(f"left behind: {thing}")


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # gRPC's threads take seconds to end
