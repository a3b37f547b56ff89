"""The events that a shim publishes, the topics they go under, and the service that takes them.

containerd serves `Events.Forward` on the socket that TTRPC_ADDRESS names; the order in which a shim
must send is not known here. Source: containerd api/events,
api/services/ttrpc/events/v1, core/runtime/events.go.
"""

# ruff: noqa: D101 - the protocol says what a message is for, and repeating it would not explain it
from __future__ import annotations

from shim.api.message import Message, bool_, message, messages, string, uint32
from shim.api.types import Empty, Envelope, Mount, Timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SERVICE = "containerd.services.events.ttrpc.v1.Events"


class SandboxCreate(Message):
    NAME = "containerd.events.SandboxCreate"
    sandbox_id: str = string(1)


class SandboxStart(Message):
    NAME = "containerd.events.SandboxStart"
    sandbox_id: str = string(1)


class SandboxExit(Message):
    NAME = "containerd.events.SandboxExit"
    sandbox_id: str = string(1)
    exit_status: int = uint32(2)
    exited_at: Timestamp | None = message(3, Timestamp)


class TaskIO(Message):
    NAME = "containerd.events.TaskIO"
    stdin: str = string(1)
    stdout: str = string(2)
    stderr: str = string(3)
    terminal: bool = bool_(4)


class TaskCreate(Message):
    NAME = "containerd.events.TaskCreate"
    container_id: str = string(1)
    bundle: str = string(2)
    rootfs: Sequence[Mount] = messages(3, Mount)
    io: TaskIO | None = message(4, TaskIO)
    checkpoint: str = string(5)
    pid: int = uint32(6)


class TaskStart(Message):
    NAME = "containerd.events.TaskStart"
    container_id: str = string(1)
    pid: int = uint32(2)


class TaskDelete(Message):
    NAME = "containerd.events.TaskDelete"
    container_id: str = string(1)
    pid: int = uint32(2)
    exit_status: int = uint32(3)
    exited_at: Timestamp | None = message(4, Timestamp)
    id: str = string(5)


class TaskExit(Message):
    NAME = "containerd.events.TaskExit"
    container_id: str = string(1)
    id: str = string(2)
    pid: int = uint32(3)
    exit_status: int = uint32(4)
    exited_at: Timestamp | None = message(5, Timestamp)


class TaskOOM(Message):
    NAME = "containerd.events.TaskOOM"
    container_id: str = string(1)


class TaskExecAdded(Message):
    NAME = "containerd.events.TaskExecAdded"
    container_id: str = string(1)
    exec_id: str = string(2)


class TaskExecStarted(Message):
    NAME = "containerd.events.TaskExecStarted"
    container_id: str = string(1)
    exec_id: str = string(2)
    pid: int = uint32(3)


class TaskPaused(Message):
    NAME = "containerd.events.TaskPaused"
    container_id: str = string(1)


class TaskResumed(Message):
    NAME = "containerd.events.TaskResumed"
    container_id: str = string(1)


class TaskCheckpointed(Message):
    NAME = "containerd.events.TaskCheckpointed"
    container_id: str = string(1)
    checkpoint: str = string(2)


class ForwardRequest(Message):
    NAME = "containerd.services.events.ttrpc.v1.ForwardRequest"
    envelope: Envelope | None = message(1, Envelope)


TOPICS: Mapping[type[Message], str] = {
    TaskCreate: "/tasks/create",
    TaskStart: "/tasks/start",
    TaskOOM: "/tasks/oom",
    TaskExit: "/tasks/exit",
    TaskDelete: "/tasks/delete",
    TaskExecAdded: "/tasks/exec-added",
    TaskExecStarted: "/tasks/exec-started",
    TaskPaused: "/tasks/paused",
    TaskResumed: "/tasks/resumed",
    TaskCheckpointed: "/tasks/checkpointed",
}

# Method: what it takes and what it answers.
METHODS: Mapping[str, tuple[type[Message], type[Message]]] = {"Forward": (ForwardRequest, Empty)}
