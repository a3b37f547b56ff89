"""Cgroup layouts as root file system planning sees them."""

from __future__ import annotations

from runtime.cgroups.layout import CgroupView

HYBRID = CgroupView(
    mode="hybrid",
    mounts=(
        ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct", 1),
        ("memory", "/sys/fs/cgroup/memory", 1),
        ("name=systemd", "/sys/fs/cgroup/systemd", 1),
        ("unified", "/sys/fs/cgroup/unified", 2),
    ),
)
UNIFIED = CgroupView(mode="unified", mounts=(("unified", "/sys/fs/cgroup", 2),))
