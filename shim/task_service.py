"""containerd's Task API, version 2 and 3 (they differ in name only): find, do, answer.

What is found is in `pod`, what is done in `container`; codes for failures are `errors`'.
"""

from __future__ import annotations

import os

from runtime.trace import Timeline
from shim import container as containers
from shim.api import task
from shim.api.options import ProcessDetails
from shim.api.types import (
    STATUS_CREATED,
    STATUS_PAUSED,
    STATUS_PAUSING,
    STATUS_RUNNING,
    STATUS_STOPPED,
    STATUS_UNKNOWN,
    Empty,
    ProcessInfo,
    pack,
)
from shim.errors import unimplemented
from shim.open_calls import Method
from shim.tasks import within
from shim.ttrpc.connection import TRACEPARENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.container import Container
    from shim.open_calls import Handler
    from shim.pod import Pod
    from shim.process import Process
    from shim.tasks import Steps
    from shim.ttrpc.connection import Call

# How long the answer to a Wait may be later than the exit, so that containerd has heard before why it was.
TOLD_S = 2.0

_STATUS = {
    "created": STATUS_CREATED,
    "running": STATUS_RUNNING,
    "stopped": STATUS_STOPPED,
    "paused": STATUS_PAUSED,
    "pausing": STATUS_PAUSING,
}


class TaskService:
    """One per shim; every method takes its request and the call that brought it."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod

    def methods(self) -> dict[str, Method]:
        """All of them, for the server; the API's own table says what each takes."""
        handlers: dict[str, Handler] = {
            "State": self.state,
            "Create": self.create,
            "Start": self.start,
            "Delete": self.delete,
            "Pids": self.pids,
            "Pause": self.pause,
            "Resume": self.resume,
            "Checkpoint": self.checkpoint,
            "Kill": self.kill,
            "Exec": self.exec,
            "ResizePty": self.resize_pty,
            "CloseIO": self.close_io,
            "Update": self.update,
            "Wait": self.wait,
            "Stats": self.stats,
            "Connect": self.connect,
            "Shutdown": self.shutdown,
        }
        return {
            name: Method(task.METHODS[name][0], handler, abandon=name == "Wait")
            for name, handler in handlers.items()
        }

    # --- making and ending -------------------------------------------------------------------------

    def create(self, request: task.CreateTaskRequest, call: Call) -> Steps[task.CreateTaskResponse]:
        """Make a container, up to its start gate."""
        timeline = _begin()
        container = yield from containers.create(self._pod, request, timeline)
        self._trace("create", call, timeline, container, container.init)
        return task.CreateTaskResponse(container.init.pid)

    def start(self, request: task.StartRequest, call: Call) -> Steps[task.StartResponse]:
        """Start a container's init, or an exec that was added."""
        timeline = _begin()
        container, process = self._find(request.id, request.exec_id)
        process.traceparent = call.header(TRACEPARENT)
        yield from container.start(process, timeline)
        self._trace("exec" if request.exec_id else "start", call, timeline, container, process)
        return task.StartResponse(process.pid)

    def exec(self, request: task.ExecProcessRequest, _call: Call) -> Empty:
        """Add an exec, to be started by Start."""
        self._pod.find(request.id).add_exec(request)
        return Empty()

    def delete(self, request: task.DeleteRequest, call: Call) -> Steps[task.DeleteResponse]:
        """Forget an exec, or a container with all that it has."""
        container, process = self._find(request.id, request.exec_id)
        yield from container.delete(process, call.patience_s())
        return task.DeleteResponse(process.pid, process.exit_status, process.exited_at())

    def shutdown(self, request: task.ShutdownRequest, call: Call) -> Steps[Empty]:
        """End the shim, unless it has containers: containerd asks after each of a pod's.

        One that holds the pod itself is ended by ShutdownSandbox, or by the pod's own id: that of a leaked shim.
        """
        sandbox = self._pod.sandbox
        if sandbox is not None and request.id == sandbox.id:
            yield from sandbox.dissolve(call.patience_s())
        if not len(self._pod) and self._pod.sandbox is None:
            self._pod.shutdown()
        return Empty()

    # --- asking ------------------------------------------------------------------------------------

    def state(self, request: task.StateRequest, call: Call) -> task.StateResponse | Steps[task.StateResponse]:
        """What is known of a process."""
        container, process = self._find(request.id, request.exec_id)
        if process.must_settle():
            return self._settled_state(container, process, call.patience_s())
        return self._state(container, process)

    def _settled_state(
        self, container: Container, process: Process, patience_s: float
    ) -> Steps[task.StateResponse]:
        yield from process.settle(patience_s)
        return self._state(container, process)

    def _state(self, container: Container, process: Process) -> task.StateResponse:
        streams = process.streams
        return task.StateResponse(
            id=process.id,
            bundle=container.bundle,
            pid=process.pid,
            status=_STATUS.get(container.status(process), STATUS_UNKNOWN),
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr,
            terminal=streams.terminal,
            exit_status=process.exit_status,
            exited_at=process.exited_at(),
            exec_id=process.exec_id,
        )

    def wait(self, request: task.WaitRequest, _call: Call) -> Steps[task.WaitResponse]:
        """Answer when a process has ended.

        containerd 1.6 and 1.7 say OOMKilled only of a container whose TaskOOM came before this answer.
        """
        container, process = self._find(request.id, request.exec_id)
        yield process.exited
        if process is container.init and container.accounts.has_killed():
            yield from within(self._pod.loop, self._pod.events.sent(), TOLD_S)
        return task.WaitResponse(process.exit_status, process.exited_at())

    def pids(self, request: task.PidsRequest, _call: Call) -> task.PidsResponse:
        """All processes of a container, and which of them are execs."""
        container = self._pod.find(request.id)
        execs = {process.pid: process.exec_id for process in container.execs.values()}
        return task.PidsResponse(
            [
                ProcessInfo(pid, pack(ProcessDetails(execs[pid])) if pid in execs else None)
                for pid in container.pids()
            ]
        )

    def stats(self, request: task.StatsRequest, _call: Call) -> task.StatsResponse:
        """What a container has used."""
        return task.StatsResponse(self._pod.find(request.id).accounts.counters())

    def connect(self, request: task.ConnectRequest, _call: Call) -> task.ConnectResponse:
        """Who we are; containerd asks for containers that we may not have, too."""
        container = self._pod.get(request.id)
        return task.ConnectResponse(os.getpid(), container.init.pid if container else 0)

    # --- changing ----------------------------------------------------------------------------------

    def kill(self, request: task.KillRequest, _call: Call) -> Steps[Empty]:
        """Send a signal."""
        container, process = self._find(request.id, request.exec_id)
        yield from container.kill(process, request.signal, request.all)
        return Empty()

    def pause(self, request: task.PauseRequest, _call: Call) -> Steps[Empty]:
        """Freeze a container."""
        yield from self._pod.find(request.id).pause()
        return Empty()

    def resume(self, request: task.ResumeRequest, _call: Call) -> Empty:
        """Thaw a container."""
        self._pod.find(request.id).resume()
        return Empty()

    def update(self, request: task.UpdateTaskRequest, _call: Call) -> Steps[Empty]:
        """Change a container's limits."""
        yield from self._pod.find(request.id).update(request.resources.value if request.resources else b"{}")
        return Empty()

    def resize_pty(self, request: task.ResizePtyRequest, _call: Call) -> Empty:
        """Set the size of a process's terminal."""
        _container, process = self._find(request.id, request.exec_id)
        if process.io is not None:
            process.io.resize(request.width, request.height)
        return Empty()

    def close_io(self, request: task.CloseIORequest, _call: Call) -> Empty:
        """Let a process's stdin end."""
        _container, process = self._find(request.id, request.exec_id)
        if request.stdin and process.io is not None:
            process.io.close_stdin()
        return Empty()

    def checkpoint(self, request: task.CheckpointTaskRequest, _call: Call) -> Empty:
        """Not offered."""
        self._pod.find(request.id)
        raise unimplemented("checkpoint")

    # --- parts of the above ------------------------------------------------------------------------

    def _find(self, container_id: str, exec_id: str) -> tuple[Container, Process]:
        container = self._pod.find(container_id)
        return container, container.process(exec_id)

    def _trace(
        self, name: str, call: Call, timeline: Timeline, container: Container, process: Process
    ) -> None:
        attributes = {"container.id": container.id, "process.pid": str(process.pid)}
        if process.exec_id:
            attributes["exec.id"] = process.exec_id
        timeline.mark("answer")
        self._pod.emit_span(name, call.header(TRACEPARENT), timeline.marks(), attributes)


def _begin() -> Timeline:
    timeline = Timeline()
    timeline.mark("asked")
    return timeline
