"""The start gate of a container that another process will start: a listening socket in its state directory.

Init holds it and waits there. Who starts the container connects, says Start, and hears by the end of the
connection that execve succeeded, or why it did not. Its name is gone as soon as somebody has come: that a gate
is there says that the container is created and not started (runc's exec.fifo tells the same).
"""

from __future__ import annotations

import _socket
import os

from runtime import state
from runtime.errors import InvalidState
from runtime.linux.fds import OwnedFd
from runtime.stages.channel import Channel

_KIND = _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC


def make_gate(directory: str) -> OwnedFd:
    """The listening socket in the state directory `directory`. OSError."""
    gate = _socket.socket(_socket.AF_UNIX, _KIND)
    try:
        os.fchmod(gate.fileno(), 0o600)  # bind(2) takes the socket's own mode for the name that it makes
        with _opened(directory) as place:
            gate.bind(f"/proc/self/fd/{place.fileno()}/{state.GATE}")
        gate.listen(1)
    except BaseException:
        gate.close()
        raise
    return OwnedFd(gate.detach())


def knock(directory: str, container_id: str) -> Channel:
    """A channel to the init that waits in `directory`; its gate is then closed to others. InvalidState without one."""
    caller = _socket.socket(_socket.AF_UNIX, _KIND)
    try:
        with _opened(directory) as place:
            name = f"/proc/self/fd/{place.fileno()}/{state.GATE}"
            caller.connect(name)
            os.unlink(name)
    except (FileNotFoundError, ConnectionRefusedError):
        caller.close()
        raise InvalidState(f"cannot start container {container_id}: nobody waits at its start gate") from None
    except BaseException:
        caller.close()
        raise
    return Channel(OwnedFd(caller.detach()), "2:INIT")


def _opened(directory: str) -> OwnedFd:
    """A socket's name may have 107 bytes: the directory goes by its descriptor."""
    return OwnedFd(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW))
