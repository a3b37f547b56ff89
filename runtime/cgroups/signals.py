"""Signals to everybody in a cgroup, of either version, with no process that can be mistaken for another."""

from __future__ import annotations

import _signal
import errno
import os

from runtime.cgroups.directories import all_processes
from runtime.cgroups.files import write_file
from runtime.errors import CgroupError
from runtime.linux.fds import OwnedFd, close_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_MOST_ROUNDS = 20
_SPARE = 4  # descriptors that it takes to list who is a member
_BATCH = 128  # descriptors at a time: a container may have more processes than we may have open files


def kill_v2(directory: str) -> bool:
    """Kill all in the v2 cgroup `directory` and below by cgroup.kill; False before Linux 5.14. CgroupError."""
    try:
        write_file(f"{directory}/cgroup.kill", "1")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return not os.path.isdir(directory)  # a cgroup that is gone has nobody left
        raise CgroupError(f"kill cgroup {directory}: {error.strerror}") from error
    return True


def signal_members(directories: Collection[str], signum: int) -> None:
    """Send `signum` once to each process in `directories` and below, those that are forked meanwhile included.

    CgroupError where not even one process can be held by a descriptor.
    """
    signalled: set[int] = set()
    for _round in range(_MOST_ROUNDS):
        new = [pid for pid in all_processes(directories) if pid not in signalled]
        if not new:
            return
        for start in range(0, len(new), _BATCH):
            _signal_batch(directories, new[start : start + _BATCH], signum)
        signalled.update(new)


def _signal_batch(directories: Collection[str], pids: list[int], signum: int) -> None:
    while pids:
        handles: dict[int, OwnedFd] = {}
        try:
            later = _hold(pids, handles)
            # A pid that is still listed after its pidfd was opened is no stranger who got a used number.
            members = all_processes(directories)
            for pid, handle in handles.items():
                if pid in members:
                    _send(handle, signum)
        finally:
            close_all(handles.values())
        pids = later


def _hold(pids: list[int], handles: dict[int, OwnedFd]) -> list[int]:
    """Fill `handles`, pidfds by pid; those `pids` are returned for which there was no descriptor left.

    As many as it takes to list who is a member are left free.
    """
    spare: list[OwnedFd] = []
    try:
        for index, pid in enumerate((os.getpid(),) * _SPARE + tuple(pids)):
            kept = index - _SPARE
            try:
                held = OwnedFd(os.pidfd_open(pid))
            except OSError as error:
                if error.errno in (
                    errno.ESRCH,
                    errno.EINVAL,
                ):  # gone; or, in a threaded cgroup, not a whole process
                    continue
                if error.errno in (errno.EMFILE, errno.ENFILE) and handles:
                    return pids[kept:]
                raise CgroupError(f"signal process {pid}: {error.strerror}") from error
            if kept < 0:
                spare.append(held)
            else:
                handles[pid] = held
    finally:
        close_all(spare)
    return []


def _send(handle: OwnedFd, signum: int) -> None:
    try:
        _signal.pidfd_send_signal(handle.fileno(), signum)
    except ProcessLookupError:
        return  # it ended by itself
