"""The direct shape: stage 1's work around one clone, for a root caller with one thread.

The PID namespace is entered by stage 0 for the length of the clone and left again in a `finally`; the new
namespaces are flags of the clone; the rest is done by the child before it goes on as stage 2. Two kinds
are never flags: **cgroup** (unshared after the last v1 join, or its v1 root were the shim's cgroup) and
**time** (as a flag its offsets are frozen). It saves a process, and the memory
that would be charged to the container for it.
"""

from __future__ import annotations

import os

from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd
from runtime.linux.process import setns
from runtime.stages.clone import INIT, clone_stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step
    from runtime.stages.plan import ProcessPlan
    from runtime.stages.stage1_namespaces import CgroupEntry


class Channels:
    """What stage 0 has after its clone: the child, and the ends it talks to; `inter` only in the staged shape."""

    __slots__ = ("init", "inter", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, init: Channel, inter: Channel | None = None) -> None:
        self.pid, self.pidfd = pid, OwnedFd(pidfd)
        self.init, self.inter = init, inter


def kept(process: ProcessPlan, entry: CgroupEntry | None, *others: OwnedFd) -> tuple[int, ...]:
    """The descriptors that a stage needs; `entry` where it is the one that joins the cgroup."""
    stdio, wanted = process.stdio, [*others]
    if entry is not None:
        wanted += [*entry.v1_tasks, *(fd for fd in (entry.v2, entry.landlord) if fd is not None)]
    preserved = range(3, 3 + process.preserved_fds)
    return (stdio.stdin, stdio.stdout, stdio.stderr, *preserved, *(fd.fileno() for fd in wanted))


def clone_directly(
    run: Callable[[Step], None],
    near: Channel,
    far: Channel,
    keep: tuple[int, ...],
    flags: int,
    born_in: OwnedFd | None,
    pid_namespace: int,
    sibling: bool = False,
) -> Channels:
    """Clone with our children's PID namespace set to `pid_namespace` (a pidfd or a namespace's fd; -1: our own)."""
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC) if pid_namespace >= 0 else -1
    try:
        if pid_namespace >= 0:
            setns(pid_namespace, c.CLONE_NEWPID)
        try:
            cgroup_fd = born_in.fileno() if born_in else -1
            pid, pidfd = clone_stage(INIT, run, far, keep, flags, sibling, cgroup_fd)
        finally:
            if pid_namespace >= 0:
                setns(ours, c.CLONE_NEWPID)
    except OSError:
        near.close()
        raise
    finally:
        if ours >= 0:
            os.close(ours)
        far.close()
    return Channels(pid, pidfd, near)
