"""What the stages may say to each other: one record a message, and their form on the wire.

A message is a name and its fields, joined by NUL, in one SEQPACKET datagram. The peer may be a process
that already lives in the container, so decoding trusts nothing: unknown names, missing fields and
numbers that are none are errors. No pickle, no marshal.
"""

from __future__ import annotations

from runtime.errors import StageError
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_MESSAGE = 32 * 1024


class InitPid(Record):
    """1:INTER → main: the pid of stage 2, as main's PID namespace sees it; its pidfd comes along."""

    pid: int


class MappingRequest(Record):
    """A stage in a new user namespace → main: write my uid and gid maps."""


class MappingWritten(Record):
    """Main → that stage: the maps are in force."""


class LimitsSet(Record):
    """Main → 2:INIT: rlimits and oom_score_adj are set on your pid."""


class HostRequest(Record):
    """2:INIT → main: the mounts stand, the root is the host's: move devices in, run prestart and createRuntime."""


class HostDone(Record):
    """Main → 2:INIT: all that has succeeded; `net_devices` are those that are now yours to set up."""

    net_devices: str


class SourcesRequest(Record):
    """2:INIT → main: have the process that opens mount sources listen to me on the socket that comes along."""


class SourceRequest(Record):
    """2:INIT → 0:MOUNT: open the source of the step with this number in the plan of the root file system."""

    step: int


class Source(Record):
    """0:MOUNT → 2:INIT: the mount, detached; its descriptor comes along."""


class ListenerAt(Record):
    """2:INIT → main: the filter is loaded, and my descriptor `number` is its listener. Take it (`Channel.write`)."""

    number: int


class ListenerTaken(Record):
    """Main → 2:INIT: I have it; or, with `taken` 0, I may not take it: send it."""

    taken: int


class Listener(Record):
    """2:INIT → main: here it is; the descriptor comes along."""


class Ready(Record):
    """2:INIT → main: nothing but the start gate and execve is left.

    `fds` names the descriptors that come with it, in order ("console"); `marks` are the steps
    done since the clone, as runtime.trace keeps them; `warnings` are for the caller's log.
    """

    fds: tuple[str, ...] = ()
    marks: tuple[tuple[str, int], ...] = ()
    warnings: tuple[str, ...] = ()


class Start(Record):
    """Main → 2:INIT of a landlord: run the program now."""


class Knock(Record):
    """Who comes to the start gate → 2:INIT: what for (`start_gate`)."""

    purpose: str


class Namespaces(Record):
    """2:INIT → who came to enter: its namespaces, which come along; `kinds` are their CLONE_NEW* flags, by spaces."""

    kinds: str


class Created(Record):
    """0:CREATE → main: the container is behind its start gate; `fds` names what comes along, by spaces."""

    pid: int
    fds: str


class Failed(Record):
    """Any stage → main: what StageError needs to be raised there as if it had happened there."""

    stage: str
    operation: str
    subject: str
    message: str
    number: int = 0
    kind: str = ""


KINDS = {
    kind.__name__: kind
    for kind in (
        InitPid,
        MappingRequest,
        MappingWritten,
        LimitsSet,
        HostRequest,
        HostDone,
        SourcesRequest,
        SourceRequest,
        Source,
        ListenerAt,
        ListenerTaken,
        Listener,
        Ready,
        Start,
        Knock,
        Namespaces,
        Created,
        Failed,
    )
}
_NUMBERS = {
    *(("InitPid", "pid"), ("SourceRequest", "step"), ("Created", "pid"), ("Failed", "number")),
    *(("ListenerAt", "number"), ("ListenerTaken", "taken")),
}


def encode(message: Record) -> bytes:
    """The datagram for `message`; texts are cut so that it always fits."""
    name = type(message).__name__
    parts = [name]
    if isinstance(message, Ready):
        parts.append(" ".join(message.fds))
        parts.append(",".join(f"{step}:{when}" for step, when in message.marks))
        parts += [warning.replace("\0", "?")[:512] for warning in message.warnings[:16]]
    else:
        most = 7 * 4096 if isinstance(message, HostDone) else 4096
        parts += [str(getattr(message, field)).replace("\0", "?")[:most] for field in message.FIELD_NAMES]
    return "\0".join(parts).encode("utf-8", "surrogateescape")


def decode(data: bytes) -> Record:
    """The message in `data`. StageError when it is none of ours."""
    name, *fields = data.decode("utf-8", "surrogateescape").split("\0")
    kind = KINDS.get(name)
    if kind is Ready and len(fields) >= 2:
        return Ready(tuple(fields[0].split()), _parse_marks(fields[1]), tuple(fields[2:]))
    if kind is None or kind is Ready or len(fields) != len(kind.FIELD_NAMES):
        raise StageError("main", "read", "message", f"not a message of the stages: {name[:40]!r}")
    values: list[Any] = []
    for field, text in zip(kind.FIELD_NAMES, fields, strict=True):
        values.append(_parse_number(text) if (name, field) in _NUMBERS else text)
    return kind(*values)


def _parse_number(text: str) -> int:
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20):
        raise StageError("main", "read", "message", f"not a number: {text[:40]!r}")
    return int(text)


def _parse_marks(text: str) -> tuple[tuple[str, int], ...]:
    marks = []
    for item in text.split(",")[:64] if text else ():
        step, _, when = item.rpartition(":")
        marks.append((step, _parse_number(when)))
    return tuple(marks)
