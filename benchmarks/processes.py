"""What a runtime's processes hold and spend: proportional memory and CPU time, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def pss_mb(pid: int) -> float:
    """Proportional set size of a process in MB (10^6 bytes): shared pages count by how many share them. 0 if gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return 0.0


def cpu_ms(pids: Iterable[int]) -> float:
    """CPU time in ms that processes and the children they have reaped have spent so far."""
    ticks = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # After the command, which may contain anything: utime, stime, cutime, cstime are fields 14 to 17.
        ticks += sum(int(field) for field in text[text.rindex(")") + 2 :].split()[11:15])
    return ticks * 1000 / TICKS_PER_SECOND
