"""The direct shape: stage 1's work around one clone, for a root caller with one thread.

The PID namespace is entered by stage 0 for the length of the clone and left again in a `finally`; the new
namespaces are flags of the clone; the rest is done by the child before it goes on as stage 2. Two kinds
are never flags: **cgroup** (unshared after the last v1 join, or its v1 root were the shim's cgroup) and
**time** (as a flag its offsets are frozen). It saves a process, and the memory
that would be charged to the container for it.
"""

from __future__ import annotations

import os

from runtime.affinity import format_cpu_list
from runtime.errors import StageError
from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd
from runtime.linux.process import setns
from runtime.linux.sched import restore_affinity, sched_getaffinity, sched_setaffinity
from runtime.stages.channel import channel_pair
from runtime.stages.clone import INIT, clone_stage
from runtime.stages.stage1_namespaces import (
    LATE_KINDS,
    CgroupEntry,
    enter_by_path,
    enter_cgroups,
    enter_landlords_namespaces,
    enter_tenants_cgroups,
    request_mapping,
    reset_affinity_after_join,
)
from runtime.stages.stage2_exec import become_tenant
from runtime.stages.stage2_init import become_init
from runtime.stages.start_gate import close_doors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cgroups.cgroup import Join as CgroupJoin
    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step
    from runtime.stages.plan import LandlordPlan, ProcessPlan, TenantPlan


BIND = "bind to CPUs"


class Channels:
    """What stage 0 has after its clone: the child, and the ends it talks to; `inter` only in the staged shape."""

    __slots__ = ("init", "inter", "pid", "pidfd")

    def __init__(self, pid: int, pidfd: int, init: Channel, inter: Channel | None = None) -> None:
        self.pid, self.pidfd = pid, OwnedFd(pidfd)
        self.init, self.inter = init, inter


def launch_landlord(plan: LandlordPlan, cgroup: CgroupJoin, born_in: OwnedFd | None) -> Channels:
    """Clone a container's init. OSError of clone3(2) or setns(2), with nothing left open."""
    entry = CgroupEntry(cgroup.v1_tasks, None if born_in else cgroup.v2_dir)
    near, far = channel_pair("main", INIT)

    def run(step: Step) -> None:
        if plan.namespaces.new & c.CLONE_NEWUSER:
            request_mapping(step, plan, far)
        enter_cgroups(step, entry)
        entry.close()
        reset_affinity_after_join(step, None)
        enter_by_path(step, plan.joins)
        become_init(step, plan, far)

    keep = kept(plan.process, entry, *landlord_fds(plan))
    flags = plan.namespaces.new & ~LATE_KINDS
    pid_join = [fd.fileno() for join, fd in plan.joins if join.kind == c.CLONE_NEWPID]
    return _clone(run, near, far, keep, flags, born_in, pid_join[0] if pid_join else -1, plan.sibling)


def launch_tenant(
    plan: TenantPlan, cgroup: CgroupJoin, born_in: OwnedFd | None, landlord: OwnedFd | None
) -> Channels:
    """Clone an exec. OSError of clone3(2), among them EBUSY, with nothing left open."""
    entry = CgroupEntry(cgroup.v1_tasks, None if born_in else cgroup.v2_dir, landlord)
    near, far = channel_pair("main", INIT)

    def run(step: Step) -> None:
        enter_tenants_cgroups(step, plan, entry)
        enter_landlords_namespaces(step, plan)
        close_doors(plan.doors)
        become_tenant(step, plan, far)

    keep = tenant_fds(plan, entry)
    pid_fd = plan.door(c.CLONE_NEWPID) if plan.kinds & c.CLONE_NEWPID else -1
    return born_on(plan, lambda: _clone(run, near, far, keep, 0, born_in, pid_fd))


def born_on(plan: TenantPlan, clone: Callable[[], Channels]) -> Channels:
    """`clone` with our affinity set to the tenant's meanwhile: with CLONE_INTO_CGROUP a child is never before its join.

    StageError of the step BIND with EINVAL where we may not use any of those CPUs.
    """
    cpus = plan.affinity.before_join
    if cpus is None or plan.cpuset is not None:
        return clone()
    ours = sched_getaffinity(0)
    try:
        sched_setaffinity(0, cpus)
    except OSError as error:
        number = error.errno or 0
        raise StageError("main", BIND, f"to {format_cpu_list(cpus)}", os.strerror(number), number) from error
    try:
        return clone()
    finally:
        restore_affinity(ours)


def kept(process: ProcessPlan, entry: CgroupEntry | None, *others: OwnedFd) -> tuple[int, ...]:
    """The descriptors that a stage needs; `entry` where it is the one that joins the cgroup."""
    stdio, wanted = process.stdio, [*others]
    if entry is not None:
        wanted += [*entry.v1_tasks, *(fd for fd in (entry.v2, entry.landlord) if fd is not None)]
    preserved = range(3, 3 + process.preserved_fds)
    return (stdio.stdin, stdio.stdout, stdio.stderr, *preserved, *(fd.fileno() for fd in wanted))


def tenant_fds(plan: TenantPlan, entry: CgroupEntry) -> tuple[int, ...]:
    """What the first stage of a tenant needs."""
    transient = () if plan.cpuset is None else plan.cpuset.fds()
    doors = (fd.fileno() for _kind, fd in plan.doors)
    return (*kept(plan.process, entry), plan.landlord_pidfd, *doors, *transient)


def landlord_fds(plan: LandlordPlan) -> list[OwnedFd]:
    """What init uses that its plan names."""
    fds = [fd for _join, fd in plan.joins]
    return fds if plan.gate is None else [*fds, plan.gate]


def _clone(
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
