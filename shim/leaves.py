"""The leaf cgroups of a container's execs: how an exec is killed, and what becomes of its leaf when it has ended.

A leaf is removed as soon as nobody is in it. An exec that ends in the ordinary way may leave processes behind, a daemon
that it has started: they live on with the container, and their leaf with them. A process that was killed leaves its
cgroup a little after that. So a leaf that is still in use is watched, and removed when it has become empty; what is
left when the container is deleted goes with the container's own cgroup.
"""

from __future__ import annotations

import time

from runtime.errors import CgroupError, describe
from runtime.operations.kill_tree import kill_tree
from shim import spans
from shim.log import DEBUG
from shim.loop import EPOLLPRI
from shim.tasks import Outcome, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.leaf import Leaf
    from runtime.container import Container as RuntimeContainer
    from runtime.linux.fds import OwnedFd
    from shim.loop import Loop, Timer
    from shim.pod import Pod
    from shim.process import Process
    from shim.tasks import Steps

# How long Delete of an exec that was killed waits for the rest of its tree to have gone.
KILL_TIMEOUT_S = 2.0
# A leaf that is empty and does not go: a last process is on its way out, or a container makes cgroups in it.
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.005, 10.0
# Each that is watched takes two descriptors. Of those above that number only the name is kept, and a few of them are
# tried whenever another exec has ended.
MOST_WATCHED = 64
_TRIED_AT_ONCE = 2


def kill_exec(container: RuntimeContainer, process: Process) -> Steps[None]:
    """SIGKILL for an exec and all that came of it. FailedPrecondition before its start, NotFound after its end.

    What it has left behind when it ended by itself is nobody's exec any more, and is not killed.
    """
    process.require_running()
    process.killed = True
    leaf = process.leaf
    if leaf is not None and leaf.holds(process.pid):
        try:
            # Asked once more: the container may have put another one in its place, or have moved the exec, meanwhile.
            if leaf.kill() and leaf.holds(process.pid):
                return
        except CgroupError:
            pass  # by its descent, then
    # It has none, or its container has moved it elsewhere.
    yield from kill_tree(container, process.pid)
    if leaf is not None:
        leaf.kill()


class Leaves:
    """Of one container's execs. Whoever makes it calls `close`."""

    def __init__(self, pod: Pod) -> None:
        self.loop: Loop = pod.loop
        self._pod = pod
        self._watched: list[LeafInUse] = []
        self._unwatched: list[Leaf] = []

    def __len__(self) -> int:
        return len(self._watched) + len(self._unwatched)

    def release(self, process: Process) -> None:
        """The exec has ended, or was never to be: tell what it has used, and see to the removal of its leaf. Once."""
        if process.released:
            return
        process.released = True
        leaf, process.leaf = process.leaf, None
        if process.exit is not None:
            self._tell(process, process.exit.code, leaf)
        self._sweep()
        if leaf is None:
            return
        if self.remove(leaf):
            leaf.close()
        elif len(self._watched) < MOST_WATCHED:
            process.leaf_gone = Outcome()
            self._watched.append(LeafInUse(self, leaf, process.leaf_gone))
        else:
            leaf.close()
            self._unwatched.append(leaf)

    def _sweep(self) -> None:
        if self._unwatched:
            tried, self._unwatched = self._unwatched[:_TRIED_AT_ONCE], self._unwatched[_TRIED_AT_ONCE:]
            self._unwatched += [each for each in tried if not self.remove(each)]

    def forget(self, process: Process) -> Steps[None]:
        """The exec is deleted: one that was killed with all that came of it has left nobody, soon."""
        self.release(process)
        if process.killed and process.leaf_gone is not None:
            yield from within(self.loop, process.leaf_gone, KILL_TIMEOUT_S)

    def remove(self, leaf: Leaf) -> bool:
        """Remove it once; True when there is nothing more to be done about it."""
        try:
            return leaf.remove()
        except OSError as error:
            self._pod.log.write(DEBUG, f"remove leaf cgroup {leaf.name}: {describe(error)}")
            return True

    def drop(self, left: LeafInUse) -> None:
        """It has gone."""
        self._watched.remove(left)

    def close(self) -> None:
        """Stop watching: the container's cgroup is gone, or will be removed by somebody else."""
        for left in tuple(self._watched):
            left.close()
        self._unwatched.clear()

    def _tell(self, process: Process, code: int, leaf: Leaf | None) -> None:
        """How long it has run, and with a leaf its CPU time, that of its start and of all that came of it included."""
        marks = (("started", process.started_ns), ("exit", time.monotonic_ns()))
        about = {
            "container.id": process.container_id,
            "exec.id": process.exec_id,
            "process.pid": str(process.pid),
            "process.exit.code": str(code),
        }
        text = ""
        try:
            used = None if leaf is None else leaf.cpu_time()
        except OSError:
            used = None
        if leaf is not None and used is not None:
            about["cgroup"] = leaf.name
            about["cpu.usage_usec"] = str(used.usage_us)
            about["cpu.user_usec"] = str(used.user_us)
            about["cpu.system_usec"] = str(used.system_us)
            text = f", CPU time {used.usage_us} us (user {used.user_us}, system {used.system_us})"
        self._pod.emit_span(spans.RUN, process.traceparent, marks, about)
        took_ms = (marks[1][1] - marks[0][1]) // 1_000_000
        whose = f"exec {process.exec_id} of container {process.container_id}"
        self._pod.log.write(DEBUG, f"{whose} ended with {code} after {took_ms} ms{text}")


class LeafInUse:
    """A leaf that has outlived its exec, watched until it is empty and removed."""

    def __init__(self, leaves: Leaves, leaf: Leaf, gone: Outcome) -> None:
        self._leaves = leaves
        self._leaf = leaf
        self._gone = gone
        self._events: OwnedFd | None = None
        self._retry: Timer | None = None
        self._pause_s = _FIRST_RETRY_S
        try:
            self._events = leaf.open_events()
            leaves.loop.watch(self._events.fileno(), EPOLLPRI, lambda _events: self._look())
        except OSError:
            pass  # gone meanwhile, or no descriptor is left: looking now and then has to do
        self._look_later()  # it may have become empty just before it was watched

    def _look(self) -> None:
        """Remove it if it is empty. An event lasts until the file is read again, whatever it says (kernfs)."""
        try:
            populated = self._leaf.populated(self._events)
            if not populated and self._leaves.remove(self._leaf):
                self.close()
                return
        except OSError:
            populated = False
        if not populated or self._events is None:
            self._look_later()

    def _look_later(self) -> None:
        if self._retry is None:
            self._retry = self._leaves.loop.call_later(self._pause_s, self._look_again)
            self._pause_s = min(self._pause_s * 2, _LONGEST_RETRY_S)

    def _look_again(self) -> None:
        self._retry = None
        self._look()

    def close(self) -> None:
        """Stop watching; whoever waits for it is told that it is over."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._events is not None:
            self._leaves.loop.unwatch(self._events.fileno())
            self._events.close()
            self._events = None
        self._leaf.close()
        self._leaves.drop(self)
        self._gone.set()
