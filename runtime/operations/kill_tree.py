"""kill_tree: SIGKILL for a process and all that came of it, where it has no cgroup of its own that could be killed.

What descends from a process is found by its parent, and by the session: a child whose parent has ended belongs to
init, but stays in the session that it was born in. A process that has lost its parent *and* made itself a session of
its own is nobody's any more, and is spared: it could be init's as well. (A leaf knows it: `runtime.cgroups.leaf`.)

Whoever is found is stopped first, so that it can't fork away from us, and all are killed when nobody new is found.
"""

from __future__ import annotations

import _signal
import os

from runtime.linux.fds import OwnedFd
from runtime.linux.procstat import lineage, start_time
from runtime.waiting import Sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runtime.container import Container
    from runtime.waiting import Operation

# A process that is stuck in the kernel does not stop: after so many looks it is killed as it is.
_MOST_ROUNDS = 50
_PAUSE_S = 0.002
_AT_ONCE = 128  # processes that are looked at before others have their turn: about 2 ms


def kill_tree(container: Container, pid: int) -> Operation[None]:
    """Kill `pid`, a tenant that has not been reaped, and all in the container that came of it.

    Whatever ends this early, those that were found are killed.
    """
    yield from kill_descent(pid, lambda: _processes(container))


def _processes(container: Container) -> list[int]:
    """Of the container; all of the machine where it has no cgroup, or where they are all gone from it."""
    try:
        found = container.cgroup.pids()
    except OSError:
        found = []
    return found or [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def kill_descent(pid: int, processes: Callable[[], Iterable[int]]) -> Operation[None]:
    """`kill_tree` among `processes()`, which is asked anew as long as there may be more."""
    tree: dict[int, int] = {}  # pid: its start time, by which it is known again
    try:
        _stop(pid, tree)
        for _round in range(_MOST_ROUNDS):
            still, grown = yield from _look(tree, processes)
            if still and not grown:
                return
            yield Sleep(0 if still else _PAUSE_S)
    finally:
        for each, started in tree.items():
            _signal_same(each, started, _signal.SIGKILL)


def _look(tree: dict[int, int], processes: Callable[[], Iterable[int]]) -> Operation[tuple[bool, bool]]:
    """Stop what came of `tree` and is not in it yet; (whether all of `tree` stood still before, whether it grew)."""
    still = True
    for pid, started in tree.items():
        try:
            _parent, _session, began, stands = lineage(pid)
        except (OSError, ValueError):
            continue
        still &= stands or began != started
    known = len(tree)
    for number, pid in enumerate(processes(), 1):
        if pid not in tree and _came_of(pid, tree):
            _stop(pid, tree)
        if not number % _AT_ONCE:
            yield Sleep(0)
    return still, len(tree) > known


def _came_of(pid: int, tree: dict[int, int]) -> bool:
    """A pid that names a session is not used again as long as the session has members, whoever has ended."""
    try:
        parent, session, _started, _still = lineage(pid)
    except (OSError, ValueError):
        return False
    return _is_of(parent, tree) or (session != pid and _is_of(session, tree))


def _is_of(pid: int, tree: dict[int, int]) -> bool:
    """Whether `pid` is of the tree, or was; not if somebody else has its number by now."""
    if pid not in tree:
        return False
    try:
        return start_time(pid) == tree[pid]
    except (OSError, ValueError):
        return True


def _stop(pid: int, tree: dict[int, int]) -> None:
    try:
        started = start_time(pid)
    except (OSError, ValueError):
        return
    if _signal_same(pid, started, _signal.SIGSTOP):
        tree[pid] = started


def _signal_same(pid: int, started: int, number: int) -> bool:
    """Signal the process `pid` that was started then; False if there is none."""
    try:
        with OwnedFd(os.pidfd_open(pid)) as pidfd:
            if start_time(pid) != started:
                return False
            _signal.pidfd_send_signal(pidfd.fileno(), number)
    except (OSError, ValueError):
        return False
    return True
