"""What containerd 2.3 and later write to `start` on stdin, and what they first try to read from its stdout.

Binary on both sides. Source: containerd api/runtime/bootstrap/v1, pkg/shim.
"""

# ruff: noqa: D101 - the protocol says what a message is for, and repeating it would not explain it
from __future__ import annotations

from shim.api.message import (
    Message,
    enum,
    enums,
    int32,
    message,
    messages,
    optional_string,
    string,
    string_map,
)
from shim.api.types import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# LogLevel
LOG_LEVEL_TRACE = -8
LOG_LEVEL_DEBUG = -4
LOG_LEVEL_INFO = 0
LOG_LEVEL_WARN = 4
LOG_LEVEL_ERROR = 8
LOG_LEVEL_FATAL = 10
LOG_LEVEL_PANIC = 12

# Capability
CAPABILITY_UNSPECIFIED = 0


class Extension(Message):
    NAME = "containerd.runtime.bootstrap.v1.Extension"
    value: Any | None = message(1, Any)


class BootstrapParams(Message):
    NAME = "containerd.runtime.bootstrap.v1.BootstrapParams"
    instance_id: str = string(1)
    namespace: str = string(2)
    log_level: int = enum(3)
    containerd_version: str = string(4)
    containerd_ttrpc_address: str = string(5)
    containerd_grpc_address: str = string(6)
    containerd_binary: str = string(7)
    extensions: Sequence[Extension] = messages(8, Extension)
    socket_dir: str | None = optional_string(9)


class BootstrapResult(Message):
    NAME = "containerd.runtime.bootstrap.v1.BootstrapResult"
    version: int = int32(1)
    address: str = string(2)
    protocol: str = string(3)
    capabilities: Sequence[int] = enums(4)
    metadata: Mapping[str, str] = string_map(5)
