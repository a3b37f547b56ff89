"""A tenant: how an exec is cloned into a running container, in either shape, and brought past its execve.

We are in stage 0. What the stages do then is in `stage1_namespaces` and `stage2_exec`, how we talk in `stage0_parent`.
"""

from __future__ import annotations

import errno
import os

from runtime.affinity import format_cpu_list
from runtime.cgroups.joining import LANDLORD
from runtime.errors import StageError
from runtime.linux import constants as c
from runtime.linux.sched import restore_affinity, sched_getaffinity, sched_setaffinity
from runtime.stages.channel import channel_pair
from runtime.stages.clone import INIT
from runtime.stages.direct import clone_directly, kept
from runtime.stages.plan import DIRECT, STAGED
from runtime.stages.stage0_parent import await_execve, bury, clone_failure, converse
from runtime.stages.stage1_namespaces import (
    FALLBACK_ERRORS,
    CgroupEntry,
    become_intermediate_of_tenant,
    enter_landlords_namespaces,
    enter_tenants_cgroups,
)
from runtime.stages.stage2_exec import become_tenant
from runtime.stages.staged import clone_in_stages
from runtime.stages.start_gate import close_doors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cgroups.joining import Join as CgroupJoin
    from runtime.linux.fds import OwnedFd
    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step
    from runtime.stages.direct import Channels
    from runtime.stages.plan import TenantPlan
    from runtime.stages.stage0_parent import HostSide, Launched
    from runtime.waiting import Operation

BIND = "bind to CPUs"


def choose_tenant_shape(kinds: int) -> str:
    """`staged` for a container with a PID namespace: a stage must not be seen in it before it has left the host.

    The direct shape's only child is born there with the host's root and mounts, and the shim's descriptors.
    """
    return STAGED if kinds & c.CLONE_NEWPID else DIRECT


def launch_tenant(
    plan: TenantPlan,
    cgroup: CgroupJoin,
    shape: str,
    host: HostSide,
    landlord_cgroup: Callable[[], OwnedFd] | None,
) -> Operation[Launched]:
    """Bring an exec past its execve. `landlord_cgroup` opens the cgroup to fall back to, None allows none."""
    launch = _launch_directly if shape == DIRECT else _launch_in_stages
    joined, why, fallback = cgroup.place, "", None
    # On its way through another cpuset it is born in our cgroup, and joins its own by itself.
    born_in = cgroup.v2_dir if plan.cpuset is None else None
    try:
        try:
            if born_in is None and cgroup.v2_dir is not None and landlord_cgroup is not None:
                fallback = landlord_cgroup()
            channels = launch(plan, cgroup, born_in, fallback)
        except OSError as error:
            if born_in is None:
                raise
            if error.errno in FALLBACK_ERRORS and landlord_cgroup is not None:
                # Init moved away: into a child, so that its cgroup holds controllers (EBUSY), or for good.
                fallback = landlord_cgroup()
                joined, why = LANDLORD, os.strerror(error.errno or 0)
                channels = launch(plan, cgroup, fallback, None)
            elif error.errno == errno.ENOSYS:
                fallback = landlord_cgroup() if landlord_cgroup is not None else None
                channels = launch(plan, cgroup, None, fallback)
            else:
                raise
    except OSError as error:
        raise clone_failure(error) from error
    finally:
        if fallback is not None:
            fallback.close()
    launched = yield from converse(channels, host)
    launched.cgroup, launched.cgroup_why = joined, why
    try:
        yield from await_execve(launched, host.patience_s)
        host.timeline.mark("execute")
    except BaseException as failure:
        if not isinstance(failure, GeneratorExit):  # else nobody drives us any more
            yield from bury(launched.pid, launched.pidfd)
        launched.close()
        raise
    return launched


def _launch_directly(
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

    keep = _tenant_fds(plan, entry)
    pid_fd = plan.door(c.CLONE_NEWPID) if plan.kinds & c.CLONE_NEWPID else -1
    return _born_on(plan, lambda: clone_directly(run, near, far, keep, 0, born_in, pid_fd))


def _launch_in_stages(
    plan: TenantPlan, cgroup: CgroupJoin, born_in: OwnedFd | None, landlord: OwnedFd | None
) -> Channels:
    """Clone the intermediate process of an exec. OSError of clone3(2), with nothing left open."""
    entry = CgroupEntry(cgroup.v1_tasks, None if born_in else cgroup.v2_dir, landlord)
    init_keep = kept(plan.process, None)
    keep = _tenant_fds(plan, entry)

    def run_inter(step: Step, main: Channel, clone_init: Callable[[], tuple[int, int]]) -> None:
        become_intermediate_of_tenant(step, plan, entry, main, clone_init)

    def run_init(step: Step, main: Channel) -> None:
        become_tenant(step, plan, main)

    return _born_on(plan, lambda: clone_in_stages(run_inter, run_init, keep, init_keep, born_in))


def _born_on(plan: TenantPlan, clone: Callable[[], Channels]) -> Channels:
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


def _tenant_fds(plan: TenantPlan, entry: CgroupEntry) -> tuple[int, ...]:
    """What the first stage of a tenant needs."""
    transient = () if plan.cpuset is None else plan.cpuset.fds()
    doors = (fd.fileno() for _kind, fd in plan.doors)
    return (*kept(plan.process, entry), plan.landlord_pidfd, *doors, *transient)
