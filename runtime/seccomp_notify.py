"""The agent that answers for a process's system calls: it is told of the process and given its listener.

One connection a process, one message on it: the container process state as JSON, with the seccomp listener beside
it (config-linux.md, "The Container Process State"). The agent need not read it for the process to go on: a call
that it must answer waits in the kernel.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
import time

from runtime.errors import ManorError, describe
from runtime.spec.json import dump
from runtime.waiting import Sleep, Writable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.waiting import Operation

FD_NAME = "seccompFd"
TIMEOUT_S = 10.0  # for an agent that neither accepts nor reads

_RETRY_S = 0.02
_MOST_PATH = 107  # sun_path less the final NUL


class NotifyError(ManorError):
    """The agent could not be reached, or did not take the listener; names its socket."""


def process_state(pid: int, metadata: str, state: dict[str, Any]) -> bytes:
    """The container process state for `pid`, in JSON. `state` is the container's (runtime.md, "State")."""
    said: dict[str, Any] = {"ociVersion": state["ociVersion"], "fds": [FD_NAME], "pid": pid}
    if metadata:
        said["metadata"] = metadata
    return dump(said | {"state": state})


def send(path: str, message: bytes, listener: int, timeout_s: float = TIMEOUT_S) -> Operation[None]:
    """Connect to the agent at `path`, send `message` with the fd `listener`, and close.

    NotifyError with the path when there is no agent, or it has not taken all of it in `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        agent.setblocking(False)
        yield from _connect(agent, path, deadline)
        try:
            yield from _send_all(agent, message, listener, deadline)
        except TimeoutError:
            raise NotifyError(f"send seccomp listener to {path}: the agent does not read") from None
        except OSError as error:
            raise NotifyError(f"send seccomp listener to {path}: {describe(error)}") from error
    finally:
        agent.close()


def _connect(agent: _socket.socket, path: str, deadline: float) -> Operation[None]:
    """A unix socket connects at once, or its queue is full, for which the kernel has no event: so ask again."""
    while True:
        try:
            if len(os.fsencode(path)) > _MOST_PATH:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            agent.connect(path)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise NotifyError(f"{_unreachable(path)}: it does not accept") from None
        except OSError as error:
            raise NotifyError(f"{_unreachable(path)}: {describe(error)}") from error
        else:
            return
        yield Sleep(_RETRY_S)


def _unreachable(path: str) -> str:
    return f"failed to connect with seccomp agent at {path}"


def _send_all(agent: _socket.socket, message: bytes, listener: int, deadline: float) -> Operation[None]:
    rest = memoryview(message)
    # The fd goes with the first byte, and with no other.
    beside = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", listener))]
    while rest:
        try:
            sent = agent.sendmsg([rest], beside, _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            yield Writable(agent.fileno(), max(deadline - time.monotonic(), 0.0))
        else:
            rest, beside = rest[sent:], []
