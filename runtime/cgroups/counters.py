"""What a container uses, read from its cgroup: the counters of version 1 or 2, as the machine has them.

A module of its own, since most of what is done with a cgroup never looks at them, and they are many.
"""

from __future__ import annotations

from runtime.cgroups import stats_v1, stats_v2
from runtime.cgroups.layout import UNIFIED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.cgroup import Cgroup

    Stats = stats_v1.Metrics | stats_v2.Metrics


def read(cgroup: Cgroup) -> Stats:
    """`stats_v2.Metrics` on a unified machine, else `stats_v1.Metrics`. OSError."""
    hierarchy = cgroup.layout.unified
    if hierarchy is not None and cgroup.layout.mode == UNIFIED:
        return stats_v2.read(cgroup.paths[hierarchy.name])
    return stats_v1.read(cgroup.layout.places(cgroup.path))
