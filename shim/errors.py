"""From what went wrong to what a ttrpc caller is told: one table, used in one place of the server.

containerd acts on few codes: NotFound means that a process has ended already or never was, AlreadyExists
that an id is taken, Unimplemented on Create that it should try an older API, so that code is kept for
calls we do not have. Everything else is for people: the text says what failed.
"""

from __future__ import annotations

from runtime import errors as runtime_errors
from runtime.errors import ManorError, describe
from shim.api.codec import CodecError
from shim.api.ttrpc import Status
from shim.tasks import Cancelled
from shim.ttrpc import status as codes
from shim.ttrpc.status import RpcError

_CODES_BY_KIND = {
    runtime_errors.INVALID_CONFIG: codes.INVALID_ARGUMENT,
    runtime_errors.INVALID_ARGUMENT: codes.INVALID_ARGUMENT,
    runtime_errors.NOT_FOUND: codes.NOT_FOUND,
    runtime_errors.ALREADY_EXISTS: codes.ALREADY_EXISTS,
    runtime_errors.FAILED_PRECONDITION: codes.FAILED_PRECONDITION,
    runtime_errors.UNSUPPORTED: codes.FAILED_PRECONDITION,
    runtime_errors.INTERNAL: codes.UNKNOWN,
}


def status_of(error: Exception) -> Status:
    """The status that answers a call which ended in `error`."""
    if isinstance(error, RpcError):
        return Status(error.code, error.message)
    if isinstance(error, ManorError):
        return Status(_CODES_BY_KIND[error.kind], str(error))
    if isinstance(error, CodecError):
        return Status(codes.INVALID_ARGUMENT, str(error))
    if isinstance(error, TimeoutError):
        return Status(codes.DEADLINE_EXCEEDED, str(error))
    if isinstance(error, Cancelled):
        return Status(codes.CANCELED, "the call was called off")
    return Status(codes.UNKNOWN, describe(error))


def is_a_bug(error: Exception) -> bool:
    """True for what none of us meant to raise: it belongs into the log as well as into the answer."""
    return not isinstance(error, (RpcError, ManorError, CodecError, TimeoutError, Cancelled, OSError))


def not_found(what: str) -> RpcError:
    """No such container or process; the text ends as containerd's own do, since clients look for that."""
    return RpcError(codes.NOT_FOUND, f"{what}: not found")


def already_exists(what: str) -> RpcError:
    """An id that is taken."""
    return RpcError(codes.ALREADY_EXISTS, f"{what}: already exists")


def failed_precondition(what: str) -> RpcError:
    """A call that the state of things does not allow."""
    return RpcError(codes.FAILED_PRECONDITION, what)


def unimplemented(what: str) -> RpcError:
    """A call that this shim does not have."""
    return RpcError(codes.UNIMPLEMENTED, f"{what}: not implemented")
