"""A container's status from its state file, /proc and its freezer, for whoever did not make it.

Light, as `state` and `list` need nothing else of the runtime: the cgroups are the directories that the state names.
"""

from __future__ import annotations

import fcntl
import os

from runtime import state
from runtime.linux import procstat


def status_of(root: str, known: state.State) -> str:
    """creating, created, running, paused or stopped."""
    directory = f"{root}/{known.id}"
    if not known.pid:
        return state.CREATING if _is_locked(directory) else state.STOPPED
    if not state.is_alive(known.pid, known.start_time):
        return state.STOPPED
    if is_frozen(known.cgroup_directories):
        return state.PAUSED
    if os.path.lexists(f"{directory}/{state.GATE}") or not _has_executed(known.pid):
        return state.CREATED
    return state.RUNNING


def is_frozen(directories: tuple[tuple[str, str], ...]) -> bool:
    """Whether the freezer of these cgroups, (hierarchy, directory) each, holds every task.

    That is v1's where there is one: on a hybrid machine v2's is not used.
    """
    for name, path in directories:
        if "freezer" in name.split(","):
            return _read(f"{path}/freezer.state").strip() == b"FROZEN"
    for name, path in directories:
        if name == "unified":
            return b"frozen 1" in _read(f"{path}/cgroup.events").splitlines()
    return False


def _has_executed(pid: int) -> bool:
    try:
        return procstat.has_executed(pid)
    except OSError:
        return True  # it has ended meanwhile


def _is_locked(directory: str) -> bool:
    """Whether somebody is at work on the container right now."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _read(path: str) -> bytes:
    """A small file of the kernel's; nothing where it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)
