"""A landlord: how a container's init is cloned and brought up to its start gate, in either shape.

We are in stage 0. What the stages do then is in `stage1_namespaces` and `stage2_init`, how we talk in `stage0_parent`.
"""

from __future__ import annotations

import errno
import os

from runtime.linux import constants as c
from runtime.stages.channel import channel_pair
from runtime.stages.clone import INIT
from runtime.stages.direct import clone_directly, kept
from runtime.stages.mount_sources import launch_opener
from runtime.stages.plan import DIRECT, STAGED
from runtime.stages.shared_pids import make_shared_world
from runtime.stages.stage0_parent import clone_failure, converse
from runtime.stages.stage1_namespaces import (
    LATE_KINDS,
    CgroupEntry,
    become_intermediate_of_landlord,
    enter_by_path,
    enter_cgroups,
    request_mapping,
    reset_affinity_after_join,
)
from runtime.stages.stage2_init import become_init, enter_remaining_namespaces, finish_init
from runtime.stages.staged import clone_in_stages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cgroups.joining import Join as CgroupJoin
    from runtime.linux.fds import OwnedFd
    from runtime.namespaces import NamespacePlan
    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step
    from runtime.stages.direct import Channels
    from runtime.stages.plan import LandlordPlan
    from runtime.stages.program import Terminal
    from runtime.stages.stage0_parent import HostSide, Launched
    from runtime.stages.start_gate import Door
    from runtime.waiting import Operation


def choose_shape(namespaces: NamespacePlan) -> str:
    """`direct` where one clone is enough: root, and no user namespace that stands in the way of another join.

    A namespace made by the clone that also makes the user namespace belongs to it; one that is joined by
    path belongs to another, which the child could not enter any more. And init is not to be born into somebody
    else's PID namespace before it has left the host.
    """
    if os.geteuid() != 0 or namespaces.join_of(c.CLONE_NEWUSER) is not None:
        return STAGED
    if not namespaces.new & c.CLONE_NEWUSER:
        return DIRECT if namespaces.pid_join is None else STAGED
    return STAGED if any(join.kind != c.CLONE_NEWPID for join in namespaces.joins) else DIRECT


def launch_landlord(
    plan: LandlordPlan, cgroup: CgroupJoin, shape: str, host: HostSide
) -> Operation[Launched]:
    """Bring a container's init up to its start gate. StageError, with no process left, when a step fails."""
    launch = _launch_directly if shape == DIRECT else _launch_in_stages
    host.open_sources = lambda pidfd, socket: launch_opener(plan.rootfs, pidfd, socket)
    born_in = cgroup.v2_dir
    try:
        channels = launch(plan, cgroup, born_in)
    except OSError as error:
        if error.errno != errno.ENOSYS or born_in is None:
            raise clone_failure(error) from error
        channels = launch(plan, cgroup, None)  # no clone3: it joins by cgroup.procs
    return (yield from converse(channels, host))


def _launch_directly(plan: LandlordPlan, cgroup: CgroupJoin, born_in: OwnedFd | None) -> Channels:
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
    return clone_directly(run, near, far, keep, flags, born_in, pid_join[0] if pid_join else -1, plan.sibling)


def _launch_in_stages(plan: LandlordPlan, cgroup: CgroupJoin, born_in: OwnedFd | None) -> Channels:
    """Clone the intermediate process of a container's init. OSError of clone3(2), with nothing left open."""
    entry = CgroupEntry(cgroup.v1_tasks, None if born_in else cgroup.v2_dir)
    fds = landlord_fds(plan)
    init_keep = kept(plan.process, None, *fds)
    keep = kept(plan.process, entry, *fds)

    def run_inter(step: Step, main: Channel, clone_init: Callable[[], tuple[int, int]]) -> None:
        become_intermediate_of_landlord(step, plan, entry, main, clone_init)

    def run_init(step: Step, main: Channel) -> None:
        enter_remaining_namespaces(step, plan)
        become_init(step, plan, main)

    if plan.namespaces.pid_join is not None:
        return _launch_into_shared_pids(plan, entry, keep, born_in)
    return clone_in_stages(run_inter, run_init, keep, init_keep, born_in, plan.sibling)


def _launch_into_shared_pids(
    plan: LandlordPlan, entry: CgroupEntry, keep: tuple[int, ...], born_in: OwnedFd | None
) -> Channels:
    """The same where init joins a PID namespace by path: it is not born before its root is made (`shared_pids`)."""
    made: list[tuple[tuple[Door, ...], Terminal | None]] = []
    init_keep = [*kept(plan.process, None), *(fd.fileno() for fd in landlord_fds(plan) if fd is plan.gate)]

    def run_inter(step: Step, main: Channel, clone_init: Callable[[], tuple[int, int]]) -> None:
        def make_world_first() -> tuple[int, int]:
            doors, terminal = make_shared_world(step, plan, main)
            made.append((doors, terminal))
            init_keep.extend(fd.fileno() for fd in (*(fd for _kind, fd in doors), *(terminal or ())))
            step.begin("clone init")
            return clone_init()

        become_intermediate_of_landlord(step, plan, entry, main, make_world_first)

    def run_init(step: Step, main: Channel) -> None:
        doors, terminal = made[0]
        finish_init(step, plan, doors, main, terminal)

    return clone_in_stages(run_inter, run_init, keep, init_keep, born_in, plan.sibling)


def landlord_fds(plan: LandlordPlan) -> list[OwnedFd]:
    """What init uses that its plan names."""
    fds = [fd for _join, fd in plan.joins]
    return fds if plan.gate is None else [*fds, plan.gate]
