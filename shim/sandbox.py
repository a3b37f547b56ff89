"""A pod that containerd leaves to its shim (`sandboxer = "shim"`): its states, what it holds, who waits for its end.

    created ── start ──► ready ── stop ──► stopping ──► stopped
       │                   │                   ▲
       │                   └─ landlord died ──► ended ── stop ──┘
       └── start failed, or stop ──────────────────────► stopped

It holds namespaces by descriptors, files in a directory of its own, and a landlord where its containers share a
PID namespace. All of it is had from `start` on and given back by `stop`, or by a start that fails; what a killed
shim leaves on disk is removed by `delete`. The RPCs are `sandbox_service`'s, what a pod is to be `pod_plan`'s.
"""

from __future__ import annotations

import _signal
import os
import time

from runtime.cgroups.cgroup import open_cgroup
from runtime.errors import ManorError, NotFound, describe
from runtime.linux.fds import close_all
from runtime.namespaces import KINDS
from shim import landlord, rootfs_mounts, stats
from shim.api.types import Metric, timestamp
from shim.container import DRAIN_TIMEOUT_S
from shim.errors import failed_precondition
from shim.exits import exit_code
from shim.log import ERROR
from shim.pod_files import PodFiles
from shim.pod_namespaces import make_namespaces
from shim.pod_plan import Tenancy
from shim.process import STOPPED as PROCESS_ENDED
from shim.tasks import Mutex, Outcome, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.linux.fds import OwnedFd
    from runtime.stages.clone import Step
    from shim.landlord import Landlord
    from shim.pod import Pod
    from shim.pod_plan import PodPlan
    from shim.tasks import Steps

CREATED = "created"
READY = "ready"
ENDED = "ended"
STOPPING = "stopping"
STOPPED = "stopped"

NEXT: dict[str, tuple[str, ...]] = {
    CREATED: (READY, STOPPED),
    READY: (ENDED, STOPPING),
    ENDED: (STOPPING,),
    STOPPING: (STOPPING, STOPPED),
    STOPPED: (),
}

# How long a stop waits for containers that it has killed, where its caller sets no time.
STOP_TIMEOUT_S = 30.0


class Sandbox:
    """The pod of `plan` on this shim; nothing is made before `start`."""

    def __init__(self, pod: Pod, plan: PodPlan) -> None:
        self._pod = pod
        self.plan = plan
        self.id = plan.id
        self.status = CREATED
        self.created_at_ns = 0
        self.exited_at_ns = 0
        self.exit_status = 0
        self.exited = Outcome()
        self.files = PodFiles(pod.host.root)
        self.landlord: Landlord | None = None
        self._namespaces: dict[str, OwnedFd] = {}
        self._mutex = Mutex()

    @property
    def pid(self) -> int:
        """What containerd names the pod's namespaces by: the landlord, or else ourselves; 0 unless it is ready."""
        if self.status != READY:
            return 0
        return self.landlord.pid if self.landlord is not None else os.getpid()

    def _become(self, status: str) -> None:
        if status not in NEXT[self.status]:
            raise failed_precondition(f"pod {self.id} is {self.status} and cannot become {status}")
        self.status = status

    # --- start -------------------------------------------------------------------------------------

    def start(self) -> Steps[None]:
        """Make all that the pod has. FailedPrecondition unless created; StageError, MountError, ConfigError …"""
        yield from self._mutex.acquire()
        try:
            if self.status != CREATED:
                raise failed_precondition(f"cannot start pod {self.id}: it is {self.status}")
            try:
                yield from self._bring_up()
            except Exception:
                yield from self._undo()
                self._become(STOPPED)
                self._end(0, time.time_ns())
                raise
            self._become(READY)
            self.created_at_ns = time.time_ns()
        finally:
            self._mutex.release()

    def _bring_up(self) -> Steps[None]:
        plan = self.plan
        self._namespaces = yield from make_namespaces(plan, lambda: self.files.make(plan), self._pod.keep)
        if plan.shares_pids:
            self.landlord = yield from landlord.bring_up(
                self._pod, plan, self.files.bundle_of(self.id), self._namespaces, self._landlord_died
            )

    def _landlord_died(self, wait_status: int, when_ns: int) -> None:
        """Whoever killed it: the containers that shared its PID namespace end with it, and so does the pod."""
        if self.status == READY:
            self._become(ENDED)
            self._end(exit_code(wait_status), when_ns)

    def _end(self, exit_status: int, when_ns: int) -> None:
        if not self.exited.done:
            self.exit_status, self.exited_at_ns = exit_status, when_ns
            self.exited.set()

    # --- stop --------------------------------------------------------------------------------------

    def stop(self, timeout_s: float) -> Steps[None]:
        """End what runs in the pod and give back all that it has; once more does nothing.

        What can't be given back is an error, and left for another try. TimeoutError when a container does not end.
        """
        yield from self._mutex.acquire()
        try:
            if self.status == STOPPED:
                return
            if self.status == CREATED:
                self._become(STOPPED)
            else:
                self._become(STOPPING)
                yield from self._end_containers(timeout_s or STOP_TIMEOUT_S)
                yield from self._give_back()
                self._become(STOPPED)
            self._end(0, time.time_ns())
        finally:
            self._mutex.release()

    def dissolve(self, patience_s: float) -> Steps[None]:
        """Stop the pod and forget it, with the containers that nobody has deleted and nobody can any more.

        Clients that still read their output are waited for, `patience_s` for all of them together.
        """
        asked = time.monotonic()
        yield from self.stop(STOP_TIMEOUT_S)
        deadline = min(asked + patience_s, time.monotonic() + DRAIN_TIMEOUT_S)
        for container in self._pod.containers():
            try:
                yield from container.delete(container.init, max(0.0, deadline - time.monotonic()))
            except Exception as error:
                self._pod.log.write(ERROR, f"delete container {container.id}: {describe(error)}")
        if self._pod.sandbox is self:
            self._pod.sandbox = None

    def _end_containers(self, timeout_s: float) -> Steps[None]:
        """containerd ends them before; who does not gets the same end for them."""
        deadline = time.monotonic() + timeout_s
        for container in self._pod.containers():
            init = container.init
            if init.status == PROCESS_ENDED:
                continue
            try:
                yield from container.kill(init, _signal.SIGKILL, everyone=True)
            except (NotFound, ProcessLookupError):
                pass
            rest_s = max(0.0, deadline - time.monotonic())
            if not (yield from within(self._pod.loop, init.exited, rest_s)):
                raise TimeoutError(
                    f"container {container.id} was killed and has not ended within {timeout_s:g} s"
                )

    def _give_back(self) -> Steps[None]:
        if self.landlord is not None:
            yield from self.landlord.remove()
            self.landlord = None
        close_all(self._namespaces.values())
        self._namespaces = {}
        yield from rootfs_mounts.in_child("remove pod", self._remove_files)

    def _remove_files(self, step: Step) -> None:
        step.begin("remove files of", f"pod {self.id}")
        self.files.remove()

    def _undo(self) -> Steps[None]:
        """After a start that failed, whose failure is the one to tell."""
        try:
            yield from self._give_back()
        except (ManorError, OSError) as error:
            self._pod.log.write(ERROR, f"remove what pod {self.id} has made: {describe(error)}")

    # --- its containers, and who asks --------------------------------------------------------------

    def require_ready(self) -> None:
        """FailedPrecondition unless it takes containers."""
        if self.status != READY:
            raise failed_precondition(f"pod {self.id} is {self.status}: it takes no containers")

    def tenancy(self) -> Tenancy:
        """What a container of this pod is given, as long as the pod is ready: else the numbers of its descriptors are
        others'. FailedPrecondition unless it is.
        """
        self.require_ready()
        paths = {name: f"/proc/self/fd/{fd.fileno()}" for name, fd in self._namespaces.items()}
        if self.landlord is not None:
            paths["pid"] = self.landlord.path_of_pid_namespace()
        shm = self.files.shm if "ipc" in self.plan.own else ""
        fds = tuple([fd.fileno() for fd in self._namespaces.values()])
        return Tenancy(self.pid, paths, self.files.sources(), shm, self.plan.private_pids, fds)

    def namespaces(self) -> dict[str, str]:
        """What the kernel calls the pod's own namespaces, by their OCI names."""
        found = {
            name: f"{KINDS[name][1]}:[{os.fstat(fd.fileno()).st_ino}]"
            for name, fd in self._namespaces.items()
        }
        if self.landlord is not None:
            try:
                found["pid"] = os.readlink(self.landlord.path_of_pid_namespace())
            except OSError:
                pass  # it has just ended
        return found

    def metrics(self) -> Metric:
        """What all of the pod uses. FailedPrecondition for one without a cgroup that its containers share."""
        if not self.plan.cgroup_parent:
            raise failed_precondition(f"pod {self.id} has no cgroup of its own")
        cgroup = open_cgroup(self._pod.host.layout, self.plan.cgroup_parent)
        return Metric(timestamp(time.time_ns()), self.id, stats.read(cgroup))
