"""Streams over ttrpc: a client names one, and bytes go one way and room for more the other.

Every message is in an Any. Source: containerd api/services/streaming/v1, api/types/transfer.
"""

# ruff: noqa: D101 - the protocol says what a message is for, and repeating it would not explain it
from __future__ import annotations

from shim.api.message import Message, bytes_, int32, string
from shim.api.types import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICE = "containerd.services.streaming.v1.Streaming"

METHODS: Mapping[str, tuple[type[Message], type[Message]]] = {"Stream": (Any, Any)}


class StreamInit(Message):
    NAME = "containerd.services.streaming.v1.StreamInit"
    id: str = string(1)


class Data(Message):
    NAME = "containerd.types.transfer.Data"
    data: bytes = bytes_(1)


class WindowUpdate(Message):
    NAME = "containerd.types.transfer.WindowUpdate"
    update: int = int32(1)
