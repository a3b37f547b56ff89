"""A container of this shim: its life from Create to Delete, and the execs in it.

Every step that waits is a generator. The order of events is decided here, and is containerd's:

    create ─► start ─► exit ─► delete                   of init
       └─ exec-added ─► exec-started ─► exit            of each exec, all before init's exit

A process may end before its start has been reported: its exit is watched for only after the start event
is queued, and the reaper keeps what came before.
"""

from __future__ import annotations

import _signal

from runtime import state
from runtime.container import CreateOptions, ExecOptions, ExecRequest
from runtime.errors import ConfigError, describe
from runtime.operations.apart import ApartRequest, create_apart
from runtime.operations.delete import delete
from runtime.operations.exec import exec_
from runtime.operations.kill import kill
from runtime.operations.start import start
from runtime.operations.update import pause, resume, update
from runtime.record import replace
from runtime.spec.load import load_process, load_resources
from runtime.stages.plan import Stdio
from shim import rootfs_mounts
from shim.accounts import Accounts
from shim.api.events import (
    TaskCreate,
    TaskDelete,
    TaskExecAdded,
    TaskExecStarted,
    TaskIO,
    TaskPaused,
    TaskResumed,
    TaskStart,
)
from shim.errors import already_exists, failed_precondition, not_found, unimplemented
from shim.leaves import Leaves, kill_exec
from shim.log import ERROR, WARNING
from shim.options import CONTAINER, options_of
from shim.process import CREATED, RUNNING, STOPPED, Process
from shim.stdio import Streams
from shim.tasks import Outcome, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.container import Container as RuntimeContainer
    from runtime.linux.fds import OwnedFd
    from runtime.trace import Timeline
    from shim.api.task import CreateTaskRequest, ExecProcessRequest
    from shim.loop import Timer
    from shim.pod import Pod
    from shim.tasks import Steps

PAUSING = "pausing"

# How long Delete waits for the client to take what the process wrote, and how long for somebody else in the
# container, who still has the stream open, to write or to end. Both have been containerd's own figures; who waits less
# for the answer is not kept so long (`Call.patience_s`).
DRAIN_TIMEOUT_S = 10.0
QUIET_TIMEOUT_S = 2.0
# How long init's exit is held back for execs that end with it, and Delete for an init that was killed by it.
LAST_EXITS_TIMEOUT_S = 10.0


class Container:
    """Made by `create`, under a hold of the reaper."""

    def __init__(
        self, pod: Pod, runtime: RuntimeContainer, init: Process, mounted: bool, execs: ExecOptions
    ) -> None:
        self.pod = pod
        self.id = runtime.id
        self.bundle = runtime.bundle
        self.runtime = runtime
        self.init = init
        self.mounted = mounted
        self.pausing = False
        self.execs: dict[str, Process] = {}
        self.leaves = Leaves(pod)
        self._exec_options = execs
        self._last_exit: tuple[int, int] | None = None  # init's, held back until those of the execs are told
        self._hold_back: Timer | None = None
        self._killed = False
        if init.io is not None:
            init.io.attach(runtime.console)
        runtime.console = None
        self.accounts = Accounts(pod, runtime.id, runtime.cgroup)
        init.pid, init.start_time = runtime.pid, runtime.start_time
        self._warn(init, runtime.warnings)
        self._watch(init)

    def process(self, exec_id: str) -> Process:
        """Init for "", else the exec of that id. NotFound without one."""
        if not exec_id:
            return self.init
        process = self.execs.get(exec_id)
        if process is None:
            raise not_found(f"process {exec_id} of container {self.id}")
        return process

    def status(self, process: Process) -> str:
        """The state of a process: created, running, pausing, paused or stopped."""
        if process.status != STOPPED:
            if self.pausing:
                return PAUSING
            if self.runtime.status == state.PAUSED:
                return state.PAUSED
        return process.status

    def _warn(self, process: Process, warnings: tuple[str, ...]) -> None:
        for warning in warnings:
            self.pod.log.write(WARNING, f"process {process.id}: {warning}")

    # --- start and exec ----------------------------------------------------------------------------

    def start(self, process: Process, timeline: Timeline) -> Steps[None]:
        """Start init, or an exec that was added. InvalidState, StageError …"""
        yield from process.mutex.acquire()
        try:
            if process.status != CREATED:
                raise failed_precondition(f"cannot start a {process.status} process")
            process.starting = timeline
            with self.pod.reaper.hold():
                if process is self.init:
                    yield from self._start_init(timeline)
                else:
                    yield from self._start_exec(process, timeline)
        finally:
            process.starting = None
            process.mutex.release()

    def _start_init(self, timeline: Timeline) -> Steps[None]:
        init = self.init
        known = len(self.runtime.marks)
        if init.watch is not None:
            init.watch.cancel()
        try:
            yield from start(self.runtime)
        except Exception:
            self._watch(init)
            yield from within(self.pod.loop, init.exited, LAST_EXITS_TIMEOUT_S)  # a failed start ends it
            raise
        init.status = RUNNING
        self.pod.events.publish(TaskStart(self.id, init.pid))
        self._watch(init)
        timeline.add(self.runtime.marks[known:])

    def _start_exec(self, process: Process, timeline: Timeline) -> Steps[None]:
        if self._last_exit is not None:
            raise failed_precondition(f"container {self.id} init process is not running")
        assert process.spec is not None
        try:
            io = yield from process.open_io(process.spec.terminal)
            timeline.mark("open streams")
            request = ExecRequest(process.spec, Stdio(*io.child_fds()), options=self._exec_options)
            tenant = yield from exec_(self.runtime, request)
            process.started(tenant)
            try:
                io.attach(tenant.console)
            except Exception:
                yield from _end(self.pod, tenant.pid, tenant.pidfd)
                raise
        except Exception:
            self.leaves.release(process)
            process.never_started()
            raise
        self._warn(process, tenant.warnings)
        process.status = RUNNING
        process.spec = None  # it may be large, and nobody needs it any more
        self.pod.events.publish(TaskExecStarted(self.id, process.exec_id, process.pid))
        self._watch(process)
        timeline.add(tenant.marks)

    def add_exec(self, request: ExecProcessRequest) -> Process:
        """Take note of an exec to be started later. AlreadyExists, ConfigError, FailedPrecondition."""
        state.check_id(request.exec_id)
        if request.exec_id in self.execs:
            raise already_exists(f"process {request.exec_id} of container {self.id}")
        self.runtime.require("exec in", state.CREATED, state.RUNNING)
        if request.spec is None:
            raise ConfigError("", "the request brings no process")
        spec = replace(load_process(request.spec.value), terminal=request.terminal)
        streams = Streams(request.stdin, request.stdout, request.stderr, request.terminal)
        process = Process(self.pod, self.id, request.exec_id, streams, spec)
        process.io_owner = self.init.io_owner
        self.execs[request.exec_id] = process
        self.pod.events.publish(TaskExecAdded(self.id, request.exec_id))
        return process

    # --- exits -------------------------------------------------------------------------------------

    def _watch(self, process: Process) -> None:
        process.watch = self.pod.reaper.watch(
            process.pid, lambda status, when_ns: self._ended(process, status, when_ns)
        )

    def _ended(self, process: Process, status: int, when_ns: int) -> None:
        if process is self.init:
            self._init_ended(status, when_ns)
            return
        process.ended(status, when_ns, self.accounts.oom_of_exec(status))
        self.pod.loop.call_soon(self.leaves.release, process)  # when who waits for the exit has been told
        self._report_init_if_last()

    def _init_ended(self, status: int, when_ns: int) -> None:
        """Init's exit is the last of its container: without a PID namespace the others must be killed for that."""
        self.accounts.count_up()
        self.init.note_exit(status, when_ns, self.accounts.oom_of_init(status))
        was_paused = self.runtime.status == state.PAUSED
        self.runtime.ended()
        try:
            if not self.runtime.terms.init_is_first or was_paused:
                self.runtime.cgroup.signal_all(_signal.SIGKILL)
            if was_paused:
                self.runtime.cgroup.thaw()
        except Exception as error:
            self.pod.log.write(ERROR, f"kill what is left of container {self.id}: {describe(error)}")
        self._last_exit = (status, when_ns)
        self._hold_back = self.pod.loop.call_later(LAST_EXITS_TIMEOUT_S, self._report_init)
        self._report_init_if_last()

    def _report_init_if_last(self) -> None:
        if self._last_exit is not None and not any(one.status == RUNNING for one in self.execs.values()):
            self._report_init()

    def _report_init(self) -> None:
        if not self.init.exited.done and self._last_exit is not None:
            if self._hold_back is not None:
                self._hold_back.cancel()
            self.init.ended(*self._last_exit)

    # --- what is done to a running one -------------------------------------------------------------

    def kill(self, process: Process, number: int, everyone: bool) -> Steps[None]:
        """Signal a process, or with `everyone` all of the container. NotFound when it has ended.

        SIGKILL for an exec takes with it all that came of the exec.
        A start that is under way is waited for, but not by SIGKILL, which is what helps when one hangs.
        """
        if number == _signal.SIGKILL:
            if process is self.init:
                self._signal(process, number, everyone)
            else:
                yield from kill_exec(self.runtime, process)
            return
        yield from process.mutex.acquire()
        try:
            self._signal(process, number, everyone)
        finally:
            process.mutex.release()

    def _signal(self, process: Process, number: int, everyone: bool) -> None:
        if process is not self.init:
            process.signal(number)
            return
        kill(self.runtime, number, everyone)
        self._killed |= number == _signal.SIGKILL

    def pause(self) -> Steps[None]:
        """Freeze all processes. InvalidState unless running."""
        yield from self.init.mutex.acquire()
        self.pausing = True
        try:
            self.runtime.require("pause", state.RUNNING)
            yield from pause(self.runtime)
            if self._killed:  # meanwhile: frozen, it could not die
                resume(self.runtime)
                raise failed_precondition(f"cannot pause container {self.id}: it has been killed")
        finally:
            self.pausing = False
            self.init.mutex.release()
        self.pod.events.publish(TaskPaused(self.id))

    def resume(self) -> None:
        """Thaw all processes. InvalidState unless paused."""
        resume(self.runtime)
        self.pod.events.publish(TaskResumed(self.id))

    def update(self, resources: bytes) -> Steps[None]:
        """Change limits to what the OCI LinuxResources in JSON say. ConfigError, CgroupError, InvalidState."""
        yield from update(self.runtime, load_resources(resources))

    def pids(self) -> list[int]:
        """All processes in the container's cgroups, as the shim's PID namespace sees them.

        Of an ended one its init, until it is deleted: a daemon of 2.x that starts takes a task without processes
        for one that was never created, and deletes it without asking how it ended.
        """
        found = self.runtime.cgroup.pids()
        return found or ([self.init.pid] if self.init.status == STOPPED else [])

    # --- the end -----------------------------------------------------------------------------------

    def delete(self, process: Process, patience_s: float = DRAIN_TIMEOUT_S) -> Steps[None]:
        """Forget a process that has ended, and with init the container. FailedPrecondition while it runs.

        A client that still reads is waited for, `patience_s` at most. NotFound for who asked at the same time as
        another: what goes by that name by now is another one.
        """
        yield from process.mutex.acquire()
        try:
            if self.pod.get(self.id) is not self or self.process(process.exec_id) is not process:
                raise not_found(f"process {process.id} of container {self.id}")
            if process.status == RUNNING:
                raise failed_precondition(f"cannot delete a running process {process.id}")
            if process is self.init:
                yield from self._delete_container(patience_s)
            else:
                yield from self._drain(process, patience_s)
                yield from self.leaves.forget(process)
                process.close()
                self.execs.pop(process.exec_id, None)
                if not process.exited.done:
                    process.exited.set()
        finally:
            process.mutex.release()

    def _delete_container(self, patience_s: float) -> Steps[None]:
        init = self.init
        if init.status == STOPPED:
            yield from self._drain(init, patience_s)
        yield from delete(self.runtime)
        if not (yield from within(self.pod.loop, init.exited, LAST_EXITS_TIMEOUT_S)):
            self.pod.log.write(WARNING, f"init of container {self.id} was killed and has not ended yet")
        for process in (*self.execs.values(), init):
            process.close()
        self.leaves.close()
        self.accounts.close()
        if self.mounted:
            yield from rootfs_mounts.unmount_all(rootfs_of(self.bundle))
            self.mounted = False
        self.pod.remove(self.id)
        self.pod.events.publish(TaskDelete(self.id, init.pid, init.exit_status, init.exited_at(), self.id))

    def _drain(self, process: Process, patience_s: float) -> Steps[None]:
        io, quiet_s = process.io, min(QUIET_TIMEOUT_S, patience_s)
        if io is None or (yield from within(self.pod.loop, io.drained, quiet_s)):
            return
        if io.pending():
            rest_s = min(DRAIN_TIMEOUT_S, patience_s) - quiet_s
            if not (yield from within(self.pod.loop, io.drained, rest_s)) and io.pending():
                self.pod.log.write(WARNING, f"output of process {process.id} was not read: cut off")


def create(pod: Pod, request: CreateTaskRequest, timeline: Timeline) -> Steps[Container]:
    """Make the container of `request` and bring its init up to the start gate.

    Raises AlreadyExists, and what mounts, streams and the runtime's create raise. A create that fails
    leaves nothing behind.
    """
    state.check_id(request.id)
    if request.checkpoint:
        raise unimplemented("restore from a checkpoint")
    pod.reserve(request.id, timeline)
    try:
        container = yield from _create(pod, request, timeline)
    except BaseException:
        pod.remove(request.id)
        raise
    pod.add(container)
    pod.events.publish(
        TaskCreate(
            request.id,
            request.bundle,
            request.rootfs,
            TaskIO(request.stdin, request.stdout, request.stderr, request.terminal),
            request.checkpoint,
            container.init.pid,
        )
    )
    return container


def _create(pod: Pod, request: CreateTaskRequest, timeline: Timeline) -> Steps[Container]:
    handler = options_of(request.options, pod.handler)
    options = handler.options
    rootfs = rootfs_of(request.bundle)
    steps = rootfs_mounts.plan(request.rootfs, rootfs)
    sandbox = pod.sandbox
    if sandbox is not None:
        sandbox.require_ready()
    init = Process(
        pod, request.id, "", Streams(request.stdin, request.stdout, request.stderr, request.terminal)
    )
    init.io_owner = (options.io_uid, options.io_gid)
    try:
        io = yield from init.open_io(request.terminal)
        timeline.mark("open streams")
        tenancy = None if sandbox is None else sandbox.tenancy()  # of now, and nothing waits until it is used
        apart = ApartRequest(
            request.id,
            request.bundle,
            Stdio(*io.child_fds()),
            request.terminal,
            prepare=lambda: rootfs_mounts.mount_all(steps),
            options=CreateOptions(no_pivot=options.no_pivot_root, keyring=not options.no_new_keyring),
            adapt=None if tenancy is None else tenancy.adapt,
            keep=pod.keep if tenancy is None else (*pod.keep, *tenancy.fds),
        )
        host = replace(pod.host, systemd_cgroup=True) if options.systemd_cgroup else pod.host
        with pod.reaper.hold():
            runtime = yield from create_apart(host, apart)
            timeline.add(runtime.marks)
            try:
                if sandbox is not None:
                    sandbox.require_ready()  # whoever stopped it meanwhile has not seen this container
                execs = ExecOptions(leaf=handler.exec_cgroup != CONTAINER)
                return Container(pod, runtime, init, bool(steps), execs)
            except Exception:
                yield from _abandon(pod, runtime)
                raise
    except Exception:
        init.close()
        if steps:
            yield from rootfs_mounts.unmount_all(rootfs)
        raise


def _abandon(pod: Pod, runtime: RuntimeContainer) -> Steps[None]:
    """Undo a create behind its init, whose container nobody will have; what can't be removed is logged."""
    try:
        try:
            yield from _end(pod, runtime.pid, runtime.pidfd)
        finally:
            runtime.ended()
            yield from delete(runtime)
    except Exception as error:
        pod.log.write(ERROR, f"remove container {runtime.id}: {describe(error)}")


def _end(pod: Pod, pid: int, pidfd: OwnedFd) -> Steps[None]:
    """Kill a process that containerd will not hear of, and wait for its end, but not for ever."""
    try:
        _signal.pidfd_send_signal(pidfd.fileno(), _signal.SIGKILL)
    except ProcessLookupError:
        pass
    gone = Outcome()
    pod.reaper.watch(pid, lambda _status, _when_ns: gone.set())
    yield from within(pod.loop, gone, LAST_EXITS_TIMEOUT_S)


def rootfs_of(bundle: str) -> str:
    """Where containerd wants a container's root file system mounted."""
    return f"{bundle}/rootfs"
