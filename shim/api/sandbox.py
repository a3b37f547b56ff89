"""The Sandbox service that a shim serves where containerd leaves the whole pod to it (`sandboxer = "shim"`).

Source: containerd api/runtime/sandbox/v1.
"""

# ruff: noqa: D101 - the protocol says what a message is for, and repeating it would not explain it
from __future__ import annotations

from shim.api.message import Message, bool_, message, messages, string, string_map, uint32
from shim.api.types import Any, Metric, Mount, Platform, Timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SERVICE = "containerd.runtime.sandbox.v1.Sandbox"


class CreateSandboxRequest(Message):
    NAME = "containerd.runtime.sandbox.v1.CreateSandboxRequest"
    sandbox_id: str = string(1)
    bundle_path: str = string(2)
    rootfs: Sequence[Mount] = messages(3, Mount)
    options: Any | None = message(4, Any)
    netns_path: str = string(5)
    annotations: Mapping[str, str] = string_map(6)


class CreateSandboxResponse(Message):
    NAME = "containerd.runtime.sandbox.v1.CreateSandboxResponse"


class StartSandboxRequest(Message):
    NAME = "containerd.runtime.sandbox.v1.StartSandboxRequest"
    sandbox_id: str = string(1)


class StartSandboxResponse(Message):
    NAME = "containerd.runtime.sandbox.v1.StartSandboxResponse"
    pid: int = uint32(1)
    created_at: Timestamp | None = message(2, Timestamp)
    spec: Any | None = message(3, Any)


class PlatformRequest(Message):
    NAME = "containerd.runtime.sandbox.v1.PlatformRequest"
    sandbox_id: str = string(1)


class PlatformResponse(Message):
    NAME = "containerd.runtime.sandbox.v1.PlatformResponse"
    platform: Platform | None = message(1, Platform)


class StopSandboxRequest(Message):
    NAME = "containerd.runtime.sandbox.v1.StopSandboxRequest"
    sandbox_id: str = string(1)
    timeout_secs: int = uint32(2)


class StopSandboxResponse(Message):
    NAME = "containerd.runtime.sandbox.v1.StopSandboxResponse"


class UpdateSandboxRequest(Message):
    NAME = "containerd.runtime.sandbox.v1.UpdateSandboxRequest"
    sandbox_id: str = string(1)
    resources: Any | None = message(2, Any)
    annotations: Mapping[str, str] = string_map(3)


class WaitSandboxRequest(Message):
    NAME = "containerd.runtime.sandbox.v1.WaitSandboxRequest"
    sandbox_id: str = string(1)


class WaitSandboxResponse(Message):
    NAME = "containerd.runtime.sandbox.v1.WaitSandboxResponse"
    exit_status: int = uint32(1)
    exited_at: Timestamp | None = message(2, Timestamp)


class UpdateSandboxResponse(Message):
    NAME = "containerd.runtime.sandbox.v1.UpdateSandboxResponse"


class SandboxStatusRequest(Message):
    NAME = "containerd.runtime.sandbox.v1.SandboxStatusRequest"
    sandbox_id: str = string(1)
    verbose: bool = bool_(2)


class SandboxStatusResponse(Message):
    NAME = "containerd.runtime.sandbox.v1.SandboxStatusResponse"
    sandbox_id: str = string(1)
    pid: int = uint32(2)
    state: str = string(3)
    info: Mapping[str, str] = string_map(4)
    created_at: Timestamp | None = message(5, Timestamp)
    exited_at: Timestamp | None = message(6, Timestamp)
    extra: Any | None = message(7, Any)


class PingRequest(Message):
    NAME = "containerd.runtime.sandbox.v1.PingRequest"
    sandbox_id: str = string(1)


class PingResponse(Message):
    NAME = "containerd.runtime.sandbox.v1.PingResponse"


class ShutdownSandboxRequest(Message):
    NAME = "containerd.runtime.sandbox.v1.ShutdownSandboxRequest"
    sandbox_id: str = string(1)


class ShutdownSandboxResponse(Message):
    NAME = "containerd.runtime.sandbox.v1.ShutdownSandboxResponse"


class SandboxMetricsRequest(Message):
    NAME = "containerd.runtime.sandbox.v1.SandboxMetricsRequest"
    sandbox_id: str = string(1)


class SandboxMetricsResponse(Message):
    NAME = "containerd.runtime.sandbox.v1.SandboxMetricsResponse"
    metrics: Metric | None = message(1, Metric)


# Method: what it takes and what it answers.
METHODS: Mapping[str, tuple[type[Message], type[Message]]] = {
    "CreateSandbox": (CreateSandboxRequest, CreateSandboxResponse),
    "StartSandbox": (StartSandboxRequest, StartSandboxResponse),
    "Platform": (PlatformRequest, PlatformResponse),
    "StopSandbox": (StopSandboxRequest, StopSandboxResponse),
    "WaitSandbox": (WaitSandboxRequest, WaitSandboxResponse),
    "SandboxStatus": (SandboxStatusRequest, SandboxStatusResponse),
    "PingSandbox": (PingRequest, PingResponse),
    "ShutdownSandbox": (ShutdownSandboxRequest, ShutdownSandboxResponse),
    "SandboxMetrics": (SandboxMetricsRequest, SandboxMetricsResponse),
}
