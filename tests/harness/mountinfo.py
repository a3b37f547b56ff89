"""/proc/PID/mountinfo of the host, where others have mounts as well, on paths of any bytes. proc_pid_mountinfo(5)."""

from __future__ import annotations


def mount_lines(pid: str | int = "self") -> list[str]:
    """The lines. Only a line feed ends one: a carriage return in a path is not escaped. OSError if `pid` has gone."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return file.read().removesuffix("\n").split("\n")


def mounts_of(place: object) -> list[str]:
    """Those lines of ours in which the path `place` stands."""
    return [line for line in mount_lines() if str(place) in line]


def mount_points(pid: str | int = "self") -> list[str]:
    """All mount points in the mount namespace of `pid`, in order; none if it has gone."""
    try:
        lines = mount_lines(pid)
    except OSError:
        return []
    return [line.split(" ")[4].replace("\\040", " ") for line in lines]
