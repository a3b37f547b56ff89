"""create: everything up to the start gate. A create that fails leaves nothing behind."""

from __future__ import annotations

import os
import time

from runtime import state
from runtime.cgroups import create_cgroup
from runtime.container import Container
from runtime.errors import InvalidState, ManorError, StageError
from runtime.linux import constants as c
from runtime.linux.fds import close_all
from runtime.linux.process import start_time
from runtime.namespaces import open_joins, plan_namespaces
from runtime.operations.delete import remove_cgroup
from runtime.operations.process_plan import (
    complete,
    plan_limits,
    plan_process,
    plan_terms,
    plan_time_offsets,
    refuse_unsupported,
    set_limits,
)
from runtime.rootfs import plan_rootfs
from runtime.stages.plan import LandlordPlan
from runtime.stages.stage0_parent import HostSide, bury, choose_shape, launch_landlord
from runtime.sysctls import plan_sysctls
from runtime.trace import Timeline
from runtime.undo import Undo
from runtime.user_mapping import plan_mapping, write_mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups import Cgroup
    from runtime.container import CreateRequest, Host
    from runtime.namespaces import NamespacePlan
    from runtime.spec.model import Spec
    from runtime.stages.plan import ProcessPlan
    from runtime.stages.stage0_parent import Launched
    from runtime.waiting import Operation


def create(host: Host, request: CreateRequest, timeline: Timeline | None = None) -> Operation[Container]:
    """Make the container of `request` and bring its init up to the start gate (runtime.md, "create").

    Its steps are noted on `timeline`, behind those of a caller who has done something before.
    Raises ConfigError, IdInUse, InvalidId, CgroupError, or StageError with stage, operation and object.
    """
    spec = request.spec
    timeline = timeline or Timeline()
    refuse_unsupported(spec)
    namespaces = plan_namespaces(spec.linux.namespaces)
    with Undo() as undo:
        stdio, null = complete(request.stdio)
        if null is not None:
            undo.push(null.close)
        directory = state.make_directory(host.root, request.id, bool(namespaces.kinds & c.CLONE_NEWUSER))
        undo.push(state.remove_directory, host.root, request.id)
        terms = plan_terms(host, spec, namespaces)
        plan = _plan_landlord(host, request, namespaces, plan_process(spec.process, terms, stdio))
        undo.push(close_all, [fd for _join, fd in plan.joins])
        timeline.mark("plan")
        cgroup = create_cgroup(host.layout, spec.linux.cgroups_path or "", spec.linux.resources, request.id)
        undo.push(cgroup.try_delete)
        timeline.mark("make cgroup")
        kills_before = cgroup.oom_kill_count()
        launched: Launched | None = None
        try:
            launched = yield from _launch(host, request, plan, cgroup, timeline)
            launched.warnings += plan.process.credentials.warnings
            container = Container(host, request.id, request.bundle, launched, cgroup, terms)
            undo.push(container.close)
            container.start_time, container.created = _started(launched.pid, request.id), _now()
            # Stored before init is let go: a kill in between leaves something to clean up by.
            state.save(directory, describe(container, spec))
        except Exception as error:
            told = _with_oom(error, cgroup, kills_before)
            if launched is not None:
                yield from bury(launched.pid, launched.pidfd)
            yield from remove_cgroup(cgroup)
            raise told from error
        container.become(state.CREATED)
        timeline.mark("save state")
        container.marks = timeline.marks()
        close_all(fd for _join, fd in plan.joins)
        if null is not None:
            null.close()
        undo.keep()
    return container


def _plan_landlord(
    host: Host, request: CreateRequest, namespaces: NamespacePlan, process: ProcessPlan
) -> LandlordPlan:
    spec = request.spec
    linux = spec.linux
    return LandlordPlan(
        id=request.id,
        namespaces=namespaces,
        mapping=plan_mapping(linux.uid_mappings, linux.gid_mappings)
        if namespaces.new & c.CLONE_NEWUSER
        else None,
        rootfs=plan_rootfs(spec, request.bundle, host.layout.view()),
        hostname=spec.hostname,
        domainname=spec.domainname,
        sysctls=plan_sysctls(spec),
        host_hooks=False,
        time_offsets=plan_time_offsets(spec),
        process=process,
        sibling=request.sibling,
        joins=open_joins(namespaces),  # last: what comes before may refuse, and has nothing to close
    )


def _launch(
    host: Host, request: CreateRequest, plan: LandlordPlan, cgroup: Cgroup, timeline: Timeline
) -> Operation[Launched]:
    mapping = plan.mapping
    limits = plan_limits(request.spec.process)
    side = HostSide(
        timeline,
        set_limits=lambda pid: set_limits(host, limits, pid),
        write_mapping=None if mapping is None else lambda pid: write_mapping(pid, mapping),
    )
    join = cgroup.open_join()
    try:
        shape = request.shape or choose_shape(plan.namespaces)
        launched = yield from launch_landlord(plan, join, shape, side)
    finally:
        join.close()
    return launched


def _started(pid: int, container_id: str) -> int:
    try:
        return start_time(pid)
    except OSError as error:
        raise InvalidState(f"init of container {container_id} ended before it was started") from error


def _now() -> str:
    """RFC 3339 with nanoseconds, in UTC."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"


def _with_oom(error: Exception, cgroup: Cgroup, kills_before: int) -> Exception:
    """The same failure, saying so if the kernel killed init for its memory limit meanwhile."""
    if not isinstance(error, ManorError) or cgroup.oom_kill_count() <= kills_before:
        return error
    hint = "container init was OOM-killed (memory limit too low?)"
    return StageError("", "", "", f"{error}: {hint}", kind=error.kind)


def describe(container: Container, spec: Spec) -> state.State:
    """What state.json says of `container`, which was made from `spec`."""
    return state.State(
        id=container.id,
        bundle=container.bundle,
        pid=container.pid,
        start_time=container.start_time,
        created=container.created,
        cgroups_path=container.cgroup.path,
        cgroup_directories=tuple(container.cgroup.paths.items()),
        namespaces=container.terms.namespaces,
        rootfs=os.path.join(container.bundle, spec.root.path),
        annotations=dict(spec.annotations or {}),
        oci_version=spec.oci_version,
    )
