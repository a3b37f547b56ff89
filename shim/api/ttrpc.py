"""What the payload of a ttrpc request or response frame holds.

Source: github.com/containerd/ttrpc request.proto; Status is google.rpc.Status.
"""

# ruff: noqa: D101 - the protocol says what a message is for, and repeating it would not explain it
from __future__ import annotations

from shim.api.message import Message, bytes_, int32, int64, message, messages, string
from shim.api.types import Any

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Status(Message):
    NAME = "google.rpc.Status"
    code: int = int32(1)
    message: str = string(2)
    details: Sequence[Any] = messages(3, Any)


class KeyValue(Message):
    NAME = "ttrpc.KeyValue"
    key: str = string(1)
    value: str = string(2)


class Request(Message):
    NAME = "ttrpc.Request"
    service: str = string(1)
    method: str = string(2)
    payload: bytes = bytes_(3)
    timeout_nano: int = int64(4)
    metadata: Sequence[KeyValue] = messages(5, KeyValue)


class Response(Message):
    NAME = "ttrpc.Response"
    status: Status | None = message(1, Status)
    payload: bytes = bytes_(2)
