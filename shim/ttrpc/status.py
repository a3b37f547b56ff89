"""Status codes of ttrpc, which are gRPC's, and what they look like as an error.

Which of our failures gets which code is decided where the failures are known, not here; this has only
what the protocol itself says: the numbers, and the texts for calls that nobody serves.
Source: https://grpc.io/docs/guides/status-codes/
"""

from __future__ import annotations

from shim.api.ttrpc import Status

OK = 0
CANCELED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
ABORTED = 10
OUT_OF_RANGE = 11
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
DATA_LOSS = 15
UNAUTHENTICATED = 16

NAMES = (
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
)

# What a failure without a code of its own becomes, first match first.
_CODES = (
    (EOFError, OUT_OF_RANGE),
    (TimeoutError, DEADLINE_EXCEEDED),
    (FileNotFoundError, NOT_FOUND),
    (FileExistsError, ALREADY_EXISTS),
    (PermissionError, PERMISSION_DENIED),
)


class RpcError(Exception):
    """A call was answered with a status other than OK, or could not be answered: code, and text for people."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code_name(code)}: {message}")
        self.code = code
        self.message = message


def code_name(code: int) -> str:
    """The name of `code` as gRPC writes it; its number if it has none."""
    return NAMES[code] if 0 <= code < len(NAMES) else f"code {code}"


def code_of(error: BaseException) -> int:
    """The code for a failure that brings none: by its class, else Unknown."""
    if isinstance(error, RpcError):
        return error.code
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    return UNKNOWN


def unknown_service(service: str) -> Status:
    """What a call to a service gets that is not served; containerd tries an older one on this code."""
    return Status(UNIMPLEMENTED, f"service {service}")


def unknown_method(method: str) -> Status:
    """What a call to a method gets that its service does not have."""
    return Status(UNIMPLEMENTED, f"method {method}")
