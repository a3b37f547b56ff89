"""What /proc says of one process: its children, its zombies, its memory, its CPU time."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path

# Of what a process has to itself, and of all anonymous memory, what it still shares with who forked it included.
MEMORY_KINDS = ("Private_Dirty", "Anonymous")


def children(pid: int) -> list[int]:
    """Its children, ended ones that it has not reaped included."""
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text(encoding="ascii").split())
    return found


def stat_fields(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from `state` on; nothing of a process that is not there."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def is_zombie(pid: int) -> bool:
    """Whether it has ended and waits to be reaped."""
    return stat_fields(pid)[:1] == ["Z"]


def cpu_seconds(pid: int) -> float:
    """How much CPU time it has had."""
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors() -> Counter[str]:
    """What this process has open, how often. Not by number: what earlier tests left to the garbage collector is closed
    at any time, so all that counts is what is there and was not: `descriptors() - before`.
    """
    found = Counter[str]()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one of this very list
            found[os.readlink(f"/proc/self/fd/{number}")] += 1
    return found


def memory_kb(pid: int) -> dict[str, int]:
    """`MEMORY_KINDS` by name."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        name, _colon, rest = line.partition(":")
        if name in MEMORY_KINDS:
            found[name] = int(rest.split()[0])
    return found
