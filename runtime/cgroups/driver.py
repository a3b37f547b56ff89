"""Who makes a container's cgroup, the file system or systemd.

Light, as every shim decides it; what the path means to systemd is in `unit_name`, the talk with it in `systemd`.
"""

from __future__ import annotations

import os

FS = "fs"
SYSTEMD = "systemd"

_RUNNING = "/run/systemd/system"


def booted_with_systemd() -> bool:
    """True where systemd is PID 1 (sd_booted(3))."""
    return os.path.isdir(_RUNNING) and not os.path.islink(_RUNNING)


def driver_of(cgroups_path: str | None, systemd_cgroup: bool | None = None) -> str:
    """FS or SYSTEMD: what `systemd_cgroup` says, if it says something; else by the form of the path.

    `something.slice:prefix:name` is systemd's; everything else is a path.
    """
    if systemd_cgroup is not None:
        return SYSTEMD if systemd_cgroup else FS
    parts = (cgroups_path or "").split(":")
    named = len(parts) == 3 and parts[0].endswith(".slice") and "/" not in parts[0]
    return SYSTEMD if named else FS
