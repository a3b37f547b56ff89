"""The staged shape: main, 1:INTER and 2:INIT as three processes, as runc and youki do it.

It is needed where a user namespace stands between what stage 1 and stage 2 may do, and for a caller
who is not root; elsewhere it is the reference that the direct shape is tested against.
"""

from __future__ import annotations

from runtime.stages.channel import channel_pair
from runtime.stages.clone import INIT, INTER, clone_stage
from runtime.stages.direct import Channels, born_on, kept, landlord_fds, tenant_fds
from runtime.stages.shared_pids import make_shared_world
from runtime.stages.stage1_namespaces import (
    CgroupEntry,
    become_intermediate_of_landlord,
    become_intermediate_of_tenant,
)
from runtime.stages.stage2_exec import become_tenant
from runtime.stages.stage2_init import become_init, enter_remaining_namespaces, finish_init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.cgroups.cgroup import Join as CgroupJoin
    from runtime.linux.fds import OwnedFd
    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step
    from runtime.stages.plan import LandlordPlan, TenantPlan
    from runtime.stages.start_gate import Door


def launch_landlord(plan: LandlordPlan, cgroup: CgroupJoin, born_in: OwnedFd | None) -> Channels:
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
    return _clone(run_inter, run_init, keep, init_keep, born_in, plan.sibling)


def _launch_into_shared_pids(
    plan: LandlordPlan, entry: CgroupEntry, keep: tuple[int, ...], born_in: OwnedFd | None
) -> Channels:
    """The same where init joins a PID namespace by path: it is not born before its root is made (`shared_pids`)."""
    made: list[tuple[Door, ...]] = []
    init_keep = [*kept(plan.process, None), *(fd.fileno() for fd in landlord_fds(plan) if fd is plan.gate)]

    def run_inter(step: Step, main: Channel, clone_init: Callable[[], tuple[int, int]]) -> None:
        def make_world_first() -> tuple[int, int]:
            made.append(make_shared_world(step, plan, main))
            init_keep.extend(fd.fileno() for _kind, fd in made[0])
            step.begin("clone init")
            return clone_init()

        become_intermediate_of_landlord(step, plan, entry, main, make_world_first)

    def run_init(step: Step, main: Channel) -> None:
        finish_init(step, plan, made[0], main)

    return _clone(run_inter, run_init, keep, init_keep, born_in, plan.sibling)


def launch_tenant(
    plan: TenantPlan, cgroup: CgroupJoin, born_in: OwnedFd | None, landlord: OwnedFd | None
) -> Channels:
    """Clone the intermediate process of an exec. OSError of clone3(2), with nothing left open."""
    entry = CgroupEntry(cgroup.v1_tasks, None if born_in else cgroup.v2_dir, landlord)
    init_keep = kept(plan.process, None)
    keep = tenant_fds(plan, entry)

    def run_inter(step: Step, main: Channel, clone_init: Callable[[], tuple[int, int]]) -> None:
        become_intermediate_of_tenant(step, plan, entry, main, clone_init)

    def run_init(step: Step, main: Channel) -> None:
        become_tenant(step, plan, main)

    return born_on(plan, lambda: _clone(run_inter, run_init, keep, init_keep, born_in))


def _clone(
    run_inter: Callable[[Step, Channel, Callable[[], tuple[int, int]]], None],
    run_init: Callable[[Step, Channel], None],
    keep: tuple[int, ...],
    init_keep: Sequence[int],
    born_in: OwnedFd | None,
    sibling: bool = False,
) -> Channels:
    near_inter, far_inter = channel_pair("main", INTER)
    near_init, far_init = channel_pair("main", INIT)

    def clone_init() -> tuple[int, int]:
        # A sibling: stage 0, not the intermediate process, must be able to wait for it.
        pid, pidfd = clone_stage(
            INIT, lambda step: run_init(step, far_init), far_init, tuple(init_keep), sibling=True
        )
        far_init.close()
        return pid, pidfd

    try:
        pid, pidfd = clone_stage(
            INTER,
            lambda step: run_inter(step, far_inter, clone_init),
            far_inter,
            (*keep, far_init.fileno()),
            sibling=sibling,
            cgroup_fd=born_in.fileno() if born_in else -1,
        )
    except OSError:
        near_inter.close()
        near_init.close()
        raise
    finally:
        far_inter.close()
        far_init.close()
    return Channels(pid, pidfd, near_init, near_inter)
