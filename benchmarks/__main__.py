"""`python -m benchmarks`: measure every runtime of this machine on the same works, in turns, and say so.

Ratios are Manor's median by the peer's, from one run on one machine; absolute figures belong to that machine.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from pathlib import Path

from benchmarks import measure, oci, own, report, works
from benchmarks.measure import Row
from benchmarks.stage import Stage, describe
from tests.harness import tools
from tests.harness.containerd import VERSIONS, Containerd
from tests.harness.registry import Registry

OWN = ["exec.shim.traced", "exec.leaf", "fork.exit"]


def arguments() -> argparse.Namespace:
    """What can be asked on the command line."""
    names = [work.name for work in works.WORKS] + [f"pss.pod.{count}" for count in works.POD_COUNTS]
    names += OWN + list(oci.WORKS)
    parser = argparse.ArgumentParser(prog="bench", description="measure Manor beside runc")
    parser.add_argument(
        "--works", default="", help=f"some of: {', '.join(names)}; pss stands for all of pss.pod.*"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a quarter or a third of the samples (mostly half the rounds of half as many), and up to 5 pods",
    )
    parser.add_argument("--containerd", default="2.3", choices=VERSIONS)
    parser.add_argument(
        "--runtimes", default="", help="some of the handlers of this machine: manor,runc,crun"
    )
    parser.add_argument("--output", default=str(report.LATEST), help="where the JSON goes (%(default)s)")
    asked = parser.parse_args()
    asked.names = asked.works.split(",") if asked.works else [*names, "pss"]
    unknown = set(asked.names) - set(names) - {"pss"}
    if unknown:
        parser.error(f"no such work: {', '.join(sorted(unknown))}")
    return asked


def say(text: str) -> None:
    """Tell who waits what is being done."""
    print(f"  {text}", file=sys.stderr, flush=True)


def measure_works(stage: Stage, names: list[str], quick: bool) -> list[Row]:
    """Every work that is asked for, all runtimes in turns."""
    found: list[Row] = []
    for work in works.WORKS:
        if work.name not in names:
            continue
        begin = time.monotonic()
        blocks = {name: functools.partial(work.block, side) for name, side in stage.sides.items()}
        for block in blocks.values():
            block(2)  # what is only slow the first time is not what is measured
        rounds = max(2, work.rounds // 2) if quick else work.rounds
        samples = measure.in_turns(blocks, rounds, max(2, work.per_round // 2) if quick else work.per_round)
        found += measure.rows(work.name, work.unit, samples)
        say(f"{work.name}: {time.monotonic() - begin:.0f} s")
    return found


def measure_memory(stage: Stage, names: list[str], quick: bool) -> list[Row]:
    """Memory per pod at several numbers of pods: the runtimes one after the other, each with a fresh set of pods."""
    wanted = [count for count in works.POD_COUNTS if {"pss", f"pss.pod.{count}"} & set(names)]
    if quick and wanted:
        wanted = sorted({min(count, 5) for count in wanted})
    if not wanted:
        return []
    found: dict[str, dict[int, float]] = {}
    for name, side in stage.sides.items():
        begin = time.monotonic()
        found[name] = works.memory(side, wanted)
        say(f"pss.pod of {name}: {time.monotonic() - begin:.0f} s")
    return [
        row
        for count in wanted
        for row in measure.rows(
            f"pss.pod.{count}", "MB", {name: [sizes[count]] for name, sizes in found.items()}
        )
    ]


def measure_own(stage: Stage, registry: Registry, names: list[str], quick: bool) -> list[Row]:
    """Manor beside itself and beside bare Python."""
    found: list[Row] = []
    if "manor" in stage.sides and "exec.shim.traced" in names:
        found += own.tracing(stage, registry, quick)
    if "manor" in stage.sides and "exec.leaf" in names:
        found += own.leaf(stage, quick)
    if "manor" in stage.sides and "fork.exit" in names:
        found += own.fork(quick)
    return found


def main() -> int:
    """Measure, print the table, write the JSON."""
    asked = arguments()
    if os.geteuid() != 0:
        print("the benchmarks need root", file=sys.stderr)
        return 1
    begin = time.monotonic()
    of_commands = oci.measure_commands(asked.names, asked.quick, say)
    if set(asked.names) <= set(oci.WORKS):
        return tell(of_commands, Path(asked.output), begin)
    try:
        registry = Registry()
    except tools.ToolError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    try:
        node = Containerd(asked.containerd, registry)
        try:
            print("\n".join(describe(node)))
            stage = Stage(node, asked.runtimes.split(",") if asked.runtimes else None)
            rows = measure_works(stage, asked.names, asked.quick)
            rows += measure_own(stage, registry, asked.names, asked.quick)
            rows += measure_memory(stage, asked.names, asked.quick)
            stage.close()
        finally:
            node.close()
    finally:
        registry.close()
    return tell([*rows, *of_commands], Path(asked.output), begin)


def tell(rows: list[Row], output: Path, begin: float) -> int:
    """Print the table and write the JSON."""
    print(f"\nloads of the machine while measuring: {' '.join(f'{load:.1f}' for load in os.getloadavg())}")
    print("\n".join(report.table(rows)))
    report.write(rows, output)
    print(f"\n{len(rows)} rows in {time.monotonic() - begin:.0f} s; {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
