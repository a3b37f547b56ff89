"""What /proc/PID/stat says of a process: enough to know it again. No ctypes, so that asking costs little.

With its start time a pid names one process for ever: pids are used again, pid and start time together are not.
"""

from __future__ import annotations

import os

_PF_FORKNOEXEC = 0x40  # linux/sched.h
_STILL = (b"T", b"t", b"Z", b"X")


def start_time(pid: int) -> int:
    """When `pid` was started, in clock ticks after boot (proc_pid_stat(5)); FileNotFoundError when it is gone."""
    return int(_stat_fields(pid)[19])


def is_zombie(pid: int) -> bool:
    """True for a process that has ended and is not yet waited for; FileNotFoundError when it is gone."""
    return _stat_fields(pid)[0] in (b"Z", b"X")


def lineage(pid: int) -> tuple[int, int, int, bool]:
    """(parent, session, start time, whether it runs no more: stopped or ended); FileNotFoundError when it is gone."""
    fields = _stat_fields(pid)
    return int(fields[1]), int(fields[3]), int(fields[19]), fields[0] in _STILL


def has_executed(pid: int) -> bool:
    """Whether `pid` has done an execve(2) since it was cloned; FileNotFoundError when it is gone.

    A name would be the process's own to choose, this it can't take back.
    """
    return not int(_stat_fields(pid)[6]) & _PF_FORKNOEXEC


def _stat_fields(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat after the command's name, which may hold spaces and parentheses."""
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        line = os.read(fd, 4096)
    finally:
        os.close(fd)
    return line[line.rindex(b")") + 2 :].split()
