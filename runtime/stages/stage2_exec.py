"""Stage 2 of a tenant: become the program.

We are in 2:INIT, in the container's cgroup and in all of its namespaces already. Our job is the short version
of `stage2_init`: the root file system stands, so there is nothing to mount and nobody to wait for.
"""

from __future__ import annotations

from runtime.labels import join_session_keyring
from runtime.stages.program import announce, prepare_program, run_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step
    from runtime.stages.plan import TenantPlan


def become_tenant(step: Step, plan: TenantPlan, main: Channel) -> NoReturn:
    """The list of steps of an exec, in order."""
    if plan.keyring:
        step.begin("join session keyring")
        join_session_keyring(plan.container_id, plan.process.selinux_label)
    prepared = prepare_program(step, plan.process, main, landlord=False)
    announce(step, prepared, main)
    run_program(step, prepared, None)
