"""What `-info` reads and prints: which runtime this is, and what it can do.

Source: containerd api/types/introspection.proto.
"""

# ruff: noqa: D101 - the protocol says what a message is for, and repeating it would not explain it
from __future__ import annotations

from shim.api.message import Message, message, string, string_map
from shim.api.types import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class RuntimeRequest(Message):
    NAME = "containerd.types.RuntimeRequest"
    runtime_path: str = string(1)
    options: Any | None = message(2, Any)


class RuntimeVersion(Message):
    NAME = "containerd.types.RuntimeVersion"
    version: str = string(1)
    revision: str = string(2)


class RuntimeInfo(Message):
    NAME = "containerd.types.RuntimeInfo"
    name: str = string(1)
    version: RuntimeVersion | None = message(2, RuntimeVersion)
    options: Any | None = message(3, Any)
    features: Any | None = message(4, Any)
    annotations: Mapping[str, str] = string_map(5)
