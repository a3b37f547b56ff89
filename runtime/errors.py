"""Everything that can go wrong in the runtime, as types that callers tell apart.

Messages say operation, object and cause, in lower case and without a full stop, and are built once,
where the failure is known best. Mapping to exit codes or RPC codes is the caller's business: it goes
by `kind`. Nothing here logs.
"""

from __future__ import annotations

import os

# What a caller may do about it; `shim/errors.py` and the command line map these in one table each.
INVALID_CONFIG = "invalid-config"
INVALID_ARGUMENT = "invalid-argument"
NOT_FOUND = "not-found"
ALREADY_EXISTS = "already-exists"
FAILED_PRECONDITION = "failed-precondition"
UNSUPPORTED = "unsupported"
INTERNAL = "internal"

_LONGEST = 600


class ManorError(Exception):
    """Base of all errors that are ours to report; anything else that escapes is a bug."""

    kind = INTERNAL


class ConfigError(ManorError):
    """config.json (or a process.json, or resources) is not what the OCI spec allows; `path` is the JSON path."""

    kind = INVALID_CONFIG

    def __init__(self, path: str, message: str) -> None:
        message = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…"  # it may quote the config
        super().__init__(f"config invalid: {path}: {message}" if path else f"config invalid: {message}")
        self.path = path


class InvalidArgument(ManorError):
    """A caller's argument that is no part of a config: a signal, an annotation's value, an option."""

    kind = INVALID_ARGUMENT


class InvalidId(InvalidArgument):
    """A container or exec id that is not `[A-Za-z0-9_+.-]{1,255}`, or is `.` or `..`."""

    def __init__(self, value: str) -> None:
        super().__init__(
            f"invalid id {value[:300]!r}: it must match [A-Za-z0-9_+.-]{{1,255}} and not be . or .."
        )


class IdInUse(ManorError):
    """A container with this id exists already."""

    kind = ALREADY_EXISTS


class NotFound(ManorError):
    """No such container, exec or process."""

    kind = NOT_FOUND


class InvalidState(ManorError):
    """The operation is not allowed in the state the container is in."""

    kind = FAILED_PRECONDITION


class Unsupported(ManorError):
    """The kernel, the machine or this version cannot do what was asked."""

    kind = UNSUPPORTED


class CgroupError(ManorError):
    """A cgroup could not be made, joined, configured or removed; names field, file and value."""


class MountError(ManorError):
    """A mount of the container could not be made; names source and target."""


class StageError(ManorError):
    """A step in one of the clone stages failed.

    `stage` is main, 1:INTER or 2:INIT, `operation` the step, `subject` the object it was about, and
    `number` the errno (0 if there is none). `command_missing` marks a program that the image does not hold.
    """

    def __init__(
        self, stage: str, operation: str, subject: str, message: str, number: int = 0, kind: str = ""
    ) -> None:
        where = f"{operation} {subject}".strip()
        super().__init__(": ".join(part for part in (stage, where, message) if part))
        self.stage = stage
        self.operation = operation
        self.subject = subject
        self.number = number
        self.message = message
        if kind:
            self.kind = kind


def describe(error: BaseException) -> str:
    """One line for `error`, as ours read: the strerror and the file of an OSError, the text of the rest."""
    if isinstance(error, OSError) and error.errno is not None:
        text = error.strerror or os.strerror(error.errno)
        return f"{error.filename}: {text}" if error.filename else text
    text = str(error)
    if isinstance(error, ManorError):
        return text
    name = type(error).__name__
    return f"{name}: {text}" if text else name
