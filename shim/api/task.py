"""The Task service that a shim serves to containerd: its names, methods and messages.

Version 2 and version 3 differ in the package name only, so the classes here (named as in version 2)
serve both. Source: containerd api/runtime/task/v2 and v3.
"""

# ruff: noqa: D101 - the protocol says what a message is for, and repeating it would not explain it
from __future__ import annotations

from shim.api.message import Message, bool_, enum, message, messages, string, string_map, uint32
from shim.api.types import Any, Empty, Mount, ProcessInfo, Timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SERVICE_V2 = "containerd.task.v2.Task"
SERVICE_V3 = "containerd.task.v3.Task"


class CreateTaskRequest(Message):
    NAME = "containerd.task.v2.CreateTaskRequest"
    id: str = string(1)
    bundle: str = string(2)
    rootfs: Sequence[Mount] = messages(3, Mount)
    terminal: bool = bool_(4)
    stdin: str = string(5)
    stdout: str = string(6)
    stderr: str = string(7)
    checkpoint: str = string(8)
    parent_checkpoint: str = string(9)
    options: Any | None = message(10, Any)


class CreateTaskResponse(Message):
    NAME = "containerd.task.v2.CreateTaskResponse"
    pid: int = uint32(1)


class DeleteRequest(Message):
    NAME = "containerd.task.v2.DeleteRequest"
    id: str = string(1)
    exec_id: str = string(2)


class DeleteResponse(Message):
    NAME = "containerd.task.v2.DeleteResponse"
    pid: int = uint32(1)
    exit_status: int = uint32(2)
    exited_at: Timestamp | None = message(3, Timestamp)


class ExecProcessRequest(Message):
    NAME = "containerd.task.v2.ExecProcessRequest"
    id: str = string(1)
    exec_id: str = string(2)
    terminal: bool = bool_(3)
    stdin: str = string(4)
    stdout: str = string(5)
    stderr: str = string(6)
    spec: Any | None = message(7, Any)


class ExecProcessResponse(Message):
    NAME = "containerd.task.v2.ExecProcessResponse"


class ResizePtyRequest(Message):
    NAME = "containerd.task.v2.ResizePtyRequest"
    id: str = string(1)
    exec_id: str = string(2)
    width: int = uint32(3)
    height: int = uint32(4)


class StateRequest(Message):
    NAME = "containerd.task.v2.StateRequest"
    id: str = string(1)
    exec_id: str = string(2)


class StateResponse(Message):
    NAME = "containerd.task.v2.StateResponse"
    id: str = string(1)
    bundle: str = string(2)
    pid: int = uint32(3)
    status: int = enum(4)
    stdin: str = string(5)
    stdout: str = string(6)
    stderr: str = string(7)
    terminal: bool = bool_(8)
    exit_status: int = uint32(9)
    exited_at: Timestamp | None = message(10, Timestamp)
    exec_id: str = string(11)


class KillRequest(Message):
    NAME = "containerd.task.v2.KillRequest"
    id: str = string(1)
    exec_id: str = string(2)
    signal: int = uint32(3)
    all: bool = bool_(4)


class CloseIORequest(Message):
    NAME = "containerd.task.v2.CloseIORequest"
    id: str = string(1)
    exec_id: str = string(2)
    stdin: bool = bool_(3)


class PidsRequest(Message):
    NAME = "containerd.task.v2.PidsRequest"
    id: str = string(1)


class PidsResponse(Message):
    NAME = "containerd.task.v2.PidsResponse"
    processes: Sequence[ProcessInfo] = messages(1, ProcessInfo)


class CheckpointTaskRequest(Message):
    NAME = "containerd.task.v2.CheckpointTaskRequest"
    id: str = string(1)
    path: str = string(2)
    options: Any | None = message(3, Any)


class UpdateTaskRequest(Message):
    NAME = "containerd.task.v2.UpdateTaskRequest"
    id: str = string(1)
    resources: Any | None = message(2, Any)
    annotations: Mapping[str, str] = string_map(3)


class StartRequest(Message):
    NAME = "containerd.task.v2.StartRequest"
    id: str = string(1)
    exec_id: str = string(2)


class StartResponse(Message):
    NAME = "containerd.task.v2.StartResponse"
    pid: int = uint32(1)


class WaitRequest(Message):
    NAME = "containerd.task.v2.WaitRequest"
    id: str = string(1)
    exec_id: str = string(2)


class WaitResponse(Message):
    NAME = "containerd.task.v2.WaitResponse"
    exit_status: int = uint32(1)
    exited_at: Timestamp | None = message(2, Timestamp)


class StatsRequest(Message):
    NAME = "containerd.task.v2.StatsRequest"
    id: str = string(1)


class StatsResponse(Message):
    NAME = "containerd.task.v2.StatsResponse"
    stats: Any | None = message(1, Any)


class ConnectRequest(Message):
    NAME = "containerd.task.v2.ConnectRequest"
    id: str = string(1)


class ConnectResponse(Message):
    NAME = "containerd.task.v2.ConnectResponse"
    shim_pid: int = uint32(1)
    task_pid: int = uint32(2)
    version: str = string(3)


class ShutdownRequest(Message):
    NAME = "containerd.task.v2.ShutdownRequest"
    id: str = string(1)
    now: bool = bool_(2)


class PauseRequest(Message):
    NAME = "containerd.task.v2.PauseRequest"
    id: str = string(1)


class ResumeRequest(Message):
    NAME = "containerd.task.v2.ResumeRequest"
    id: str = string(1)


# Method: what it takes and what it answers.
METHODS: Mapping[str, tuple[type[Message], type[Message]]] = {
    "State": (StateRequest, StateResponse),
    "Create": (CreateTaskRequest, CreateTaskResponse),
    "Start": (StartRequest, StartResponse),
    "Delete": (DeleteRequest, DeleteResponse),
    "Pids": (PidsRequest, PidsResponse),
    "Pause": (PauseRequest, Empty),
    "Resume": (ResumeRequest, Empty),
    "Checkpoint": (CheckpointTaskRequest, Empty),
    "Kill": (KillRequest, Empty),
    "Exec": (ExecProcessRequest, Empty),
    "ResizePty": (ResizePtyRequest, Empty),
    "CloseIO": (CloseIORequest, Empty),
    "Update": (UpdateTaskRequest, Empty),
    "Wait": (WaitRequest, WaitResponse),
    "Stats": (StatsRequest, StatsResponse),
    "Connect": (ConnectRequest, ConnectResponse),
    "Shutdown": (ShutdownRequest, Empty),
}
