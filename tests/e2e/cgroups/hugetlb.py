"""A landlord that manages cgroups of its own, as systemd in a container does: the real cause of EBUSY in an exec.

Its v2 cgroup hands a controller to children, so by the rule of no internal processes (cgroup-v2.rst) nobody
can join it any more; the landlord itself lives in a child. On a hybrid machine hugetlb is the only controller
that v2 has, and the root's `subtree_control` is everybody's: it is changed under a lock and put back.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

LOCK = Path("/run/lock/manor-tests-hugetlb.lock")
PREFERRED = ("hugetlb", "pids", "memory")
GRACE_S = 30.0


@contextmanager
def shared_root(root: Path) -> Iterator[None]:
    """Have the v2 root's `subtree_control` to ourselves; controllers that it gains meanwhile are taken back."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        control = root / "cgroup.subtree_control"
        before = control.read_text().split()
        try:
            yield
        finally:
            for controller in set(control.read_text().split()) - set(before):
                _take_back(control, controller)


@contextmanager
def landlord_moved_away(directory: Path, child: str = "init") -> Iterator[Path]:
    """Move all processes of the v2 cgroup `directory` to a child and give it a controller for its children.

    Yields the child. At the end the controller is taken back, from the parents too where it was given to them
    here; the child and its processes stay, for whoever owns them to remove.
    """
    parents = [parent for parent in directory.parents if (parent / "cgroup.controllers").exists()]
    root = parents[-1]
    controller = next(name for name in PREFERRED if name in (root / "cgroup.controllers").read_text().split())
    with shared_root(root), ExitStack() as stack:
        for parent in reversed(parents):
            stack.enter_context(_handed_down(parent, controller))
        moved_to = directory / child
        moved_to.mkdir(exist_ok=True)
        for pid in (directory / "cgroup.procs").read_text().split():
            (moved_to / "cgroup.procs").write_text(pid)
        stack.enter_context(_handed_down(directory, controller))
        yield moved_to


@contextmanager
def _handed_down(directory: Path, controller: str) -> Iterator[None]:
    control = directory / "cgroup.subtree_control"
    if controller in control.read_text().split():
        yield
        return
    control.write_text(f"+{controller}")
    try:
        yield
    finally:
        _take_back(control, controller)


def _take_back(control: Path, controller: str) -> None:
    """EBUSY while somebody below hands it down in turn; gone with its cgroup is as good as taken back."""
    deadline = time.monotonic() + GRACE_S
    while True:
        try:
            control.write_text(f"-{controller}")
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
