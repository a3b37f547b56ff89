"""What processes use: CPU time, and memory, each with all that came of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class Usage:
    """CPU time in seconds, of ended children too; memory as RSS, summed up: pages that two share count twice."""

    cpu_s: float
    memory_bytes: int


def usage_of(pids: Collection[int]) -> dict[int, Usage]:
    """Of each of `pids` with its descendants, but for those that descend from another of them; of who is there."""
    own: dict[int, Usage] = {}
    children: defaultdict[int, list[int]] = defaultdict(list)
    for process in psutil.process_iter(["pid", "ppid", "cpu_times", "memory_info"]):
        pid, times, memory = process.info["pid"], process.info["cpu_times"], process.info["memory_info"]
        children[process.info["ppid"]].append(pid)
        if times is not None and memory is not None:  # else it has ended meanwhile
            cpu_s = times.user + times.system + times.children_user + times.children_system
            own[pid] = Usage(cpu_s, memory.rss)
    return {pid: _sum(pid, own, children, set(pids) - {pid}) for pid in pids if pid in own}


def _sum(pid: int, own: dict[int, Usage], children: dict[int, list[int]], others: set[int]) -> Usage:
    cpu_s, memory_bytes = 0.0, 0
    rest = [pid]
    while rest:
        here = rest.pop()
        if (used := own.get(here)) is not None:
            cpu_s, memory_bytes = cpu_s + used.cpu_s, memory_bytes + used.memory_bytes
        rest += [each for each in children.get(here, ()) if each not in others]
    return Usage(cpu_s, memory_bytes)


def usage_of_shim(pid: int) -> Usage | None:
    """Of a shim itself: its memory is its share (PSS), for most of what it has it shares with its warden."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return Usage(times.user + times.system, process.memory_full_info().pss)
    except psutil.Error:
        return None


def size(number: int) -> str:
    """For people: "912K", "3.4M", "1.2G"."""
    kib = number / 1024
    for unit in "KMG":
        if kib < 1000 or unit == "G":
            return f"{kib:.0f}{unit}" if unit == "K" or kib >= 100 else f"{kib:.1f}{unit}"
        kib /= 1024
    raise AssertionError
