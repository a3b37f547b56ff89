"""Cgroups of both versions: where they are mounted, what a container's are called, what they limit and count.

    layout      which hierarchies this machine has; the path a config names; pure but for one read of mountinfo
    resources   limits as a list of writes (pure); plan_v1 and plan_v2 know the files of each version
    devices     device rules as a policy (pure); v1 writes it, device_program compiles it to eBPF for v2
    directories make a container's directories, hand v2 controllers down, remove all of it
    cgroup      Cgroup: one container's place in every hierarchy, and Join, the way into it
    freezer stats_v1 stats_v2     pausing; counters
    files       reading and writing the files of one cgroup

No process is ever moved by pid on the way in: see `Join`.
"""

from __future__ import annotations

from runtime.cgroups.cgroup import Cgroup, Join, create_cgroup, landlord_directory, open_cgroup
from runtime.cgroups.layout import CgroupView, Hierarchy, Layout, detect_layout
from runtime.cgroups.resources import FRESH, Current, Write, plan_writes

__all__ = [
    "FRESH",
    "Cgroup",
    "CgroupView",
    "Current",
    "Hierarchy",
    "Join",
    "Layout",
    "Write",
    "create_cgroup",
    "detect_layout",
    "landlord_directory",
    "open_cgroup",
    "plan_writes",
]
