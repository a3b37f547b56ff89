"""exec: a tenant joins a running container."""

from __future__ import annotations

import errno

from runtime import rdt, state
from runtime.affinity import format_cpu_list, isolated_cpus, plan_tenant
from runtime.cgroups.cgroup import landlord_directory
from runtime.cgroups.joining import LANDLORD_POLICY, LEAF, OWN, STRICT_POLICY
from runtime.cgroups.leaf import REFUSALS, make_leaf
from runtime.cgroups.transient_cpuset import make_transient_cpuset
from runtime.container import Tenant
from runtime.errors import CgroupError, ManorError, StageError
from runtime.linux.process import start_time
from runtime.operations.gate import knock_to_enter
from runtime.operations.listener import notify
from runtime.operations.process_plan import (
    complete,
    lend_oom_score,
    plan_limits,
    plan_process,
    set_limits,
    set_scheduler,
)
from runtime.record import replace
from runtime.stages.plan import TenantPlan
from runtime.stages.stage0_parent import HostSide
from runtime.stages.start_gate import close_doors
from runtime.stages.tenant import BIND, choose_tenant_shape, launch_tenant
from runtime.trace import Timeline
from runtime.user_mapping import caller
from runtime.waiting import Sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.affinity import AffinityPlan
    from runtime.cgroups.cgroup import Cgroup, Join
    from runtime.cgroups.leaf import Leaf
    from runtime.cgroups.transient_cpuset import TransientCpuset
    from runtime.container import Container, ExecRequest
    from runtime.linux.fds import OwnedFd
    from runtime.operations.process_plan import LimitsPlan
    from runtime.spec.model import Process
    from runtime.stages.stage0_parent import Launched
    from runtime.stages.start_gate import Door
    from runtime.waiting import Operation

# A process that has moved on leaves its cgroup a little later.
_REMOVALS, _REMOVAL_S = 100, 0.01


def exec_(container: Container, request: ExecRequest) -> Operation[Tenant]:
    """Start `request.process` in `container` and return once it has been executed.

    InvalidState in a container that is not running (a paused one would freeze the tenant in the middle of
    its stages); ConfigError or InvalidArgument for what the request may not ask; StageError for the rest.
    """
    options = request.options
    paused = (state.PAUSED,) if options.ignore_paused else ()
    container.require("exec in", state.CREATED, state.RUNNING, *paused)
    timeline = Timeline()
    affinity = plan_affinity(container, request.process)
    stdio, null = complete(request.stdio)
    doors: tuple[Door, ...] = ()
    try:
        doors = yield from _doors(container)
        plan = TenantPlan(
            container_id=container.id,
            landlord_pid=container.pid,
            landlord_pidfd=container.pidfd.fileno(),
            kinds=container.terms.namespaces,
            affinity=affinity,
            process=plan_process(
                container.host, request.process, container.terms, stdio, options.preserved_fds
            ),
            keyring=options.keyring and container.terms.keyring,
            doors=doors,
        )
        timeline.mark("plan")
        launched, leaf = yield from _launch(container, request, plan, timeline)
    finally:
        close_doors(doors)
        if null is not None:
            null.close()
    try:
        started = start_time(launched.pid)
    except FileNotFoundError:
        started = 0  # it has run, ended and been reaped already: nobody can mistake it for another
    launched.warnings += affinity.warnings + plan.process.credentials.warnings
    return Tenant(launched, leaf, started, timeline.marks())


def _doors(container: Container) -> Operation[tuple[Door, ...]]:
    """The namespaces of an init at its start gate, where we may not enter them by its pid: we are not root."""
    if container.status != state.CREATED or container.start_gate is not None or caller() is None:
        return ()
    return (yield from knock_to_enter(container.directory()))


def _launch(
    container: Container, request: ExecRequest, plan: TenantPlan, timeline: Timeline
) -> Operation[tuple[Launched, Leaf | None]]:
    cgroup = container.cgroup
    kills_before = cgroup.oom_kill_count()
    limits = plan_limits(request.process)
    said = container.terms
    side = HostSide(
        timeline,
        set_limits=lambda pid: _set_limits(container, limits, pid),
        notify=notify(said, container.id, container.bundle, state.RUNNING, container.pid),
    )
    if request.options.ignore_paused:
        side.patience_s = None  # until somebody resumes the container
    policy = STRICT_POLICY if request.options.strict else LANDLORD_POLICY
    shape = request.shape or choose_tenant_shape(plan.kinds)
    give_back = lend_oom_score(container.host, limits)
    join: Join | None = None
    leaf: Leaf | None = None
    try:
        join = cgroup.open_join(container.pid, dict(request.options.cgroup) or None, policy)
        if request.options.leaf:
            leaf = _leaf_for(cgroup, join, plan)

        def launch(plan: TenantPlan, join: Join) -> Operation[Launched]:
            landlord = (lambda: _landlord(container)) if join.may_fall_back else None
            return launch_tenant(plan, join, shape, side, landlord)

        launched = yield from _launch_somewhere(cgroup, plan, join, leaf, launch)
    except BaseException as error:
        if leaf is not None:
            leaf.discard()
        if isinstance(error, ManorError) and cgroup.oom_kill_count() > kills_before:
            raise StageError("", "", "", f"{error}: possibly OOM-killed", kind=error.kind) from error
        raise
    finally:
        give_back()
        if join is not None:
            join.close()
    if leaf is not None and launched.cgroup != LEAF:
        leaf.discard()
        leaf = None
    return launched, leaf


def _leaf_for(cgroup: Cgroup, join: Join, plan: TenantPlan) -> Leaf | None:
    """A leaf below the cgroup that was opened for `join`, where there is a v2 hierarchy and it is the container's own.

    Not for an exec with `execCPUAffinity.initial` where cpusets are in v2: the way to CPUs that are not ours is a
    threaded cgroup there (`transient_cpuset`), beside which nobody may be in a leaf.
    """
    unified, cpuset = cgroup.layout.unified, cgroup.layout.find("cpuset")
    if unified is None or join.v2_dir is None or join.place != OWN:
        return None
    if plan.affinity.before_join is not None and cpuset is not None and cpuset.version == 2:
        return None
    return make_leaf(unified, cgroup.path, join.v2_dir)


def _launch_somewhere(
    cgroup: Cgroup,
    plan: TenantPlan,
    join: Join,
    leaf: Leaf | None,
    launch: Callable[[TenantPlan, Join], Operation[Launched]],
) -> Operation[Launched]:
    """`launch` in the leaf, and where that does not take it, without: a container may do with it what it likes."""
    if leaf is not None:
        try:
            return (yield from _launch_at(cgroup, plan, join.into_leaf(leaf.directory), launch))
        except StageError as error:
            if error.operation not in ("clone", "join cgroup") or error.number not in REFUSALS:
                raise
    return (yield from _launch_at(cgroup, plan, join, launch))


def _launch_at(
    cgroup: Cgroup,
    plan: TenantPlan,
    join: Join,
    launch: Callable[[TenantPlan, Join], Operation[Launched]],
) -> Operation[Launched]:
    """`launch`, by way of a cpuset where it is to begin on CPUs that are not ours."""
    try:
        return (yield from launch(plan, join))
    except StageError as error:
        if (error.operation, error.number) != (BIND, errno.EINVAL):
            raise
        way = _cpuset_for(cgroup, plan, error)
    return (yield from _launch_by(way, launch(replace(plan, cpuset=way), join)))


def _cpuset_for(cgroup: Cgroup, plan: TenantPlan, refused: StageError) -> TransientCpuset:
    """A way to the CPUs of `execCPUAffinity.initial` that our own cpuset does not have; `refused` if there is none."""
    try:
        return make_transient_cpuset(cgroup, format_cpu_list(plan.affinity.before_join or ()))
    except CgroupError as error:
        raise refused from error


def _launch_by(way: TransientCpuset, launch: Operation[Launched]) -> Operation[Launched]:
    """`launch`, which goes through the cpuset `way`; that is gone afterwards, and what is in its way is a warning."""
    try:
        launched = yield from launch
    except GeneratorExit:
        _try_remove(way)  # nobody drives us any more; else it goes with the container
        raise
    except BaseException:
        yield from _remove(way)
        raise
    launched.warnings += yield from _remove(way)
    return launched


def _remove(way: TransientCpuset) -> Operation[tuple[str, ...]]:
    for _ in range(_REMOVALS):
        if _try_remove(way):
            return ()
        yield Sleep(_REMOVAL_S)
    return (f"cpuset {way.path} is left behind: a process stays in it",)


def _try_remove(way: TransientCpuset) -> bool:
    try:
        return way.remove()
    except CgroupError:
        return False


def _set_limits(container: Container, planned: LimitsPlan, pid: int) -> tuple[str, ...]:
    """Limits of the tenant's own, and those of the resctrl group that its landlord is in."""
    if container.terms.rdt is not None:
        rdt.join(container.terms.rdt[0], pid)
    set_scheduler(planned, pid)
    return set_limits(container.host, planned, pid)


def _landlord(container: Container) -> OwnedFd:
    """The cgroup that init is in now, below the v2 root (it may vanish meanwhile: nothing is paused)."""
    return landlord_directory(container.host.layout, container.pid)


def plan_affinity(container: Container, process: Process) -> AffinityPlan:
    """The CPUs of a tenant. The container's own execCPUAffinity serves where the exec brings none, as in runc."""
    wanted = process.exec_cpu_affinity
    if wanted is None:
        wanted = container.terms.affinity
    transition = container.terms.transition
    if transition is None:
        return plan_tenant(None, (), None, wanted)
    return plan_tenant(transition, isolated_cpus(), container.terms.cpuset, wanted)
