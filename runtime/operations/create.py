"""create: everything up to the start gate. A create that fails leaves nothing behind."""

from __future__ import annotations

import os
import time

from runtime import state, terms, trace
from runtime.cgroups.cgroup import create_cgroup
from runtime.cgroups.driver import FS, SYSTEMD, driver_of
from runtime.container import Container
from runtime.errors import CgroupError, InvalidState, ManorError, StageError, Unsupported
from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd, close_all
from runtime.linux.process import start_time
from runtime.namespaces import open_joins, plan_namespaces
from runtime.operations.attend import Attendance, write_maps
from runtime.operations.container_plan import monotonic_offset_ns, plan_terms, plan_time_offsets, untold
from runtime.operations.delete import remove_cgroup
from runtime.operations.gate import make_gate
from runtime.operations.lifecycle_hooks import container_hooks
from runtime.operations.listener import notify
from runtime.operations.load import lock
from runtime.operations.process_plan import (
    complete,
    lend_oom_score,
    plan_limits,
    plan_process,
    set_limits,
    set_scheduler,
)
from runtime.record import replace
from runtime.rootfs.on_host import detach
from runtime.rootfs.plan import plan_rootfs, root_on_host
from runtime.stages.landlord import choose_shape, landlord_fds, launch_landlord
from runtime.stages.plan import LandlordPlan
from runtime.stages.stage0_parent import HostSide, bury
from runtime.sysctls import plan_sysctls
from runtime.trace import Timeline
from runtime.undo import Undo
from runtime.user_mapping import caller, check_rootless, plan_mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.cgroup import Cgroup
    from runtime.container import CreateRequest, Host, Terms
    from runtime.namespaces import NamespacePlan
    from runtime.operations.process_plan import LimitsPlan
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
    if caller() is not None:
        check_rootless(spec)
    namespaces = plan_namespaces(spec.linux.namespaces)
    lent: list[OwnedFd] = []  # what init needs and nobody afterwards
    with Undo() as undo:
        undo.push(close_all, lent)
        stdio, null = complete(request.stdio)
        lent += [null] if null is not None else []
        directory = state.make_directory(host.root, request.id, bool(namespaces.kinds & c.CLONE_NEWUSER))
        undo.push(state.remove_directory, host.root, request.id)
        for name in request.options.directories:
            os.mkdir(f"{directory}/{name}", 0o755)
        trace.passed("make state directory")
        attendance = Attendance(host, request)
        undo.push(attendance.close)
        undo.push(attendance.undo)
        said = replace(
            plan_terms(host, spec, namespaces),
            keyring=request.options.keyring,
            rdt=attendance.group,
            root_on_host=root_on_host(spec, request.bundle),
        )
        process = plan_process(host, spec.process, said, stdio, request.options.preserved_fds)
        gate = yield from _announce(host, request, directory, said, lent)
        trace.passed("announce")
        if request.prepare is not None:
            request.prepare()
            timeline.mark("prepare root file system")
        plan = _plan_landlord(host, request, namespaces, process, gate, attendance)
        lent += landlord_fds(plan)
        timeline.mark("plan")
        cgroup = yield from _make_cgroup(host, spec, request.id)
        undo.push(cgroup.try_delete)
        state.note_cgroup(directory, cgroup.paths.values())
        timeline.mark("make cgroup")
        container = yield from _bring_up(host, request, plan, said, cgroup, attendance, timeline)
        container.marks = timeline.marks()
        undo.keep()
    attendance.close()
    close_all(lent)
    return container


def _announce(
    host: Host, request: CreateRequest, directory: str, said: Terms, lent: list[OwnedFd]
) -> Operation[OwnedFd | None]:
    """The start gate. Killed from here on, with no cgroup and no mount yet, we leave word of what to clean up by."""
    if not request.options.gate:
        path, more = request.spec.linux.cgroups_path or "", _seldom(host, request.spec, said)
        # For who has nobody to ask for its state meanwhile, at a tenth of the price.
        state.announce(directory, request.bundle, path, more)
        return None
    lent.append((yield from lock(host, request.id)))  # whoever asks meanwhile sees it as being created
    gate = make_gate(directory)
    lent.append(gate)
    trace.passed("make start gate")
    state.save(directory, announce(request, said))
    return gate


def _seldom(host: Host, spec: Spec, said: Terms) -> dict[str, object]:
    """What else a create is about to make, where it is more than a root and a cgroup."""
    more: dict[str, object] = {"root_on_host": said.root_on_host, "rdt": said.rdt}
    more["systemd"] = driver_of(spec.linux.cgroups_path, host.systemd_cgroup) == SYSTEMD
    return {name: thing for name, thing in more.items() if thing}


def _make_cgroup(host: Host, spec: Spec, container_id: str) -> Operation[Cgroup]:
    path, resources = spec.linux.cgroups_path or "", spec.linux.resources
    if driver_of(path, host.systemd_cgroup) == FS:
        return create_cgroup(host.layout, path, resources, container_id, rootless=host.rootless)
    if host.systemd is None:
        raise Unsupported(
            f"linux.cgroupsPath {path!r} asks for the systemd cgroup driver, which is not available here"
        )
    return (yield from host.systemd().create(host.layout, path, resources, container_id, spec.annotations))


def _bring_up(
    host: Host,
    request: CreateRequest,
    plan: LandlordPlan,
    said: Terms,
    cgroup: Cgroup,
    attendance: Attendance,
    timeline: Timeline,
) -> Operation[Container]:
    """Init at its start gate and the state written; or neither, and the cgroup gone too."""
    kills_before = cgroup.oom_kill_count()
    launched: Launched | None = None
    try:
        limits = plan_limits(request.spec.process)
        side = _host_side(host, request, plan, limits, said, attendance, timeline)
        side.confine = cgroup.confining if cgroup.later else None
        launched = yield from _launch(host, request, plan, limits, cgroup, side)
        set_scheduler(limits, launched.pid)
        cgroup.settle()
        launched.warnings += plan.process.credentials.warnings + untold(request.spec)
        if host.systemd is not None and cgroup.unit:
            refused = host.systemd().refused_annotations(request.spec.annotations or {})
            launched.warnings += tuple(
                [f"annotation {name}: this property is not allowed" for name in refused]
            )
        said = replace(said, rdt=attendance.rdt)
        container = Container(host, request.id, request.bundle, launched, cgroup, said)
        container.start_time, container.created = _started(launched.pid, request.id), _now()
        # Stored before init is let go: a kill in between leaves something to clean up by.
        state.save(f"{host.root}/{request.id}", describe(container, request))
        timeline.mark("save state")
    except Exception as error:
        told = _with_oom(error, cgroup, kills_before)
        if launched is not None:
            yield from bury(launched.pid, launched.pidfd)
            launched.close()
        yield from _clear_away(cgroup, plan)
        raise told from error
    container.become(state.CREATED)
    return container


def _clear_away(cgroup: Cgroup, plan: LandlordPlan) -> Operation[None]:
    """After a failure, which is the one to tell: whatever else goes wrong, as much as can go is gone."""
    try:
        yield from remove_cgroup(cgroup)
    except CgroupError:
        pass
    if plan.rootfs.on_host:
        try:
            detach(plan.rootfs.root)
        except OSError:
            pass


def _plan_landlord(
    host: Host,
    request: CreateRequest,
    namespaces: NamespacePlan,
    process: ProcessPlan,
    gate: OwnedFd | None,
    attendance: Attendance,
) -> LandlordPlan:
    spec = request.spec
    linux = spec.linux
    return LandlordPlan(
        id=request.id,
        namespaces=namespaces,
        mapping=plan_mapping(linux.uid_mappings, linux.gid_mappings, caller())
        if namespaces.new & c.CLONE_NEWUSER
        else None,
        rootfs=plan_rootfs(spec, request.bundle, host.layout.view(), request.options.no_pivot),
        hostname=spec.hostname,
        domainname=spec.domainname,
        sysctls=plan_sysctls(spec),
        asks_host=attendance.asked or bool(request.spec.hooks and request.spec.hooks.create_container),
        set_up_net_devices=attendance.set_up_net_devices,
        create_container_hooks=container_hooks(request, "createContainer", state.CREATING),
        start_container_hooks=container_hooks(request, "startContainer", state.CREATED),
        time_offsets=plan_time_offsets(spec),
        monotonic_offset_ns=monotonic_offset_ns(spec),
        process=process,
        gate=gate,
        lets_in=gate is not None and caller() is not None,
        keyring=request.options.keyring,
        sibling=request.sibling,
        joins=open_joins(namespaces),  # last: what comes before may refuse, and has nothing to close
    )


def _host_side(
    host: Host,
    request: CreateRequest,
    plan: LandlordPlan,
    limits: LimitsPlan,
    said: Terms,
    attendance: Attendance,
    timeline: Timeline,
) -> HostSide:
    mapping = plan.mapping
    side = HostSide(
        timeline,
        set_limits=lambda pid: set_limits(host, limits, pid),
        write_mapping=None
        if mapping is None
        else lambda pid: write_maps(host, pid, mapping, plan.time_offsets),
        attend=attendance.attend if plan.asks_host else None,
        notify=notify(said, request.id, request.bundle, state.CREATING),
    )
    if request.spec.hooks is not None:
        side.patience_s = None
    return side


def _launch(
    host: Host, request: CreateRequest, plan: LandlordPlan, limits: LimitsPlan, cgroup: Cgroup, side: HostSide
) -> Operation[Launched]:
    shape = request.shape or choose_shape(plan.namespaces)
    give_back = lend_oom_score(host, limits)
    try:
        with cgroup.open_join() as join:
            return (yield from launch_landlord(plan, join, shape, side))
    finally:
        give_back()


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


def announce(request: CreateRequest, said: Terms) -> state.State:
    """What state.json says before there is a process: what to clean up by, should we be killed on the way."""
    spec = request.spec
    return state.State(
        id=request.id,
        bundle=request.bundle,
        pid=0,
        start_time=0,
        created=_now(),
        cgroups_path=spec.linux.cgroups_path or "",
        cgroup_directories=(),
        namespaces=said.namespaces,
        rootfs=os.path.join(request.bundle, spec.root.path),
        annotations=dict(spec.annotations or {}),
        oci_version=spec.oci_version,
        terms=terms.to_json(said),
        owner=os.geteuid(),
    )


def describe(container: Container, request: CreateRequest) -> state.State:
    """What state.json says of `container`, which was made for `request`."""
    return replace(
        announce(request, container.terms),
        pid=container.pid,
        start_time=container.start_time,
        created=container.created,
        cgroups_path=container.cgroup.path,
        cgroup_directories=tuple(container.cgroup.paths.items()),
        unit=container.cgroup.unit,
    )
