"""Messages that several services share: protobuf's well-known types and containerd's own.

With them the two conversions everybody needs: any message to and from `Any`, and nanoseconds to and from
`Timestamp`. Source: google/protobuf, containerd api/types, api/types/task and
core/runtime/typeurl.go.
"""

# ruff: noqa: D101 - the protocol says what a message is for, and repeating it would not explain it
from __future__ import annotations

from shim.api.codec import CodecError, decode, encode
from shim.api.message import Message, bytes_, int32, int64, message, string, strings, uint32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeVar

    M = TypeVar("M", bound=Message)

# Type URLs of Anys that hold JSON of the OCI runtime specification, and no protobuf.
SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RESOURCES_URL = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

# containerd.v1.types.Status
STATUS_UNKNOWN = 0
STATUS_CREATED = 1
STATUS_RUNNING = 2
STATUS_STOPPED = 3
STATUS_PAUSED = 4
STATUS_PAUSING = 5


class Any(Message):
    NAME = "google.protobuf.Any"
    type_url: str = string(1)
    value: bytes = bytes_(2)


class Timestamp(Message):
    NAME = "google.protobuf.Timestamp"
    seconds: int = int64(1)
    nanos: int = int32(2)


class Empty(Message):
    NAME = "google.protobuf.Empty"


class Mount(Message):
    NAME = "containerd.types.Mount"
    type: str = string(1)
    source: str = string(2)
    target: str = string(3)
    options: Sequence[str] = strings(4)


class Metric(Message):
    NAME = "containerd.types.Metric"
    timestamp: Timestamp | None = message(1, Timestamp)
    id: str = string(2)
    data: Any | None = message(3, Any)


class Platform(Message):
    NAME = "containerd.types.Platform"
    os: str = string(1)
    architecture: str = string(2)
    variant: str = string(3)
    os_version: str = string(4)
    os_features: Sequence[str] = strings(5)


class Envelope(Message):
    NAME = "containerd.types.Envelope"
    timestamp: Timestamp | None = message(1, Timestamp)
    namespace: str = string(2)
    topic: str = string(3)
    event: Any | None = message(4, Any)


class ProcessInfo(Message):
    NAME = "containerd.v1.types.ProcessInfo"
    pid: int = uint32(1)
    info: Any | None = message(2, Any)


def pack(message: Message) -> Any:
    """`message` in an Any; the type URL is its bare name, without a host part, as containerd has it."""
    return Any(message.NAME, encode(message))


def unpack(packed: Any, kind_of_message: type[M]) -> M:
    """The message of that class in `packed`. CodecError if it holds another, or none.

    A host part in the type URL (`type.googleapis.com/`) is allowed.
    """
    name = packed.type_url.rpartition("/")[2]
    if name != kind_of_message.NAME:
        raise CodecError(f"expected {kind_of_message.NAME}, got {packed.type_url!r}")
    return decode(kind_of_message, packed.value)


def timestamp(time_ns: int) -> Timestamp:
    """Nanoseconds since the epoch as a Timestamp."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return Timestamp(seconds, nanos)


def nanoseconds(moment: Timestamp | None) -> int:
    """A Timestamp in nanoseconds since the epoch; 0 if there is none."""
    return moment.seconds * 1_000_000_000 + moment.nanos if moment else 0
