"""The start gate of a container that another process will start: a listening socket in its state directory.

Init holds it and waits there (`stages.start_gate`). Who starts the container connects, says so, then Start, and hears
by the end of the connection that execve succeeded, or why it did not. Its name is gone as soon as somebody has come to
start it: that a gate is there says that the container is created and not started (runc's exec.fifo tells the same).
"""

from __future__ import annotations

import _socket
import os

from runtime import state
from runtime.errors import InvalidState
from runtime.linux.fds import OwnedFd
from runtime.stages.channel import Channel, ChannelClosed
from runtime.stages.messages import Knock, Namespaces
from runtime.stages.stage0_parent import STAGE_TIMEOUT_S
from runtime.stages.start_gate import ENTER, START

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.stages.start_gate import Door
    from runtime.waiting import Operation

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


def knock_to_start(directory: str, container_id: str) -> Channel:
    """A channel to the init that waits in `directory`; its gate is then closed to others. InvalidState without one."""
    try:
        with _opened(directory) as place:
            channel = _knock(place, START)
            try:
                os.unlink(f"/proc/self/fd/{place.fileno()}/{state.GATE}")
            except BaseException:
                channel.close()
                raise
    except (FileNotFoundError, ConnectionRefusedError, BrokenPipeError):
        raise InvalidState(f"cannot start container {container_id}: nobody waits at its start gate") from None
    return channel


def knock_to_enter(directory: str) -> Operation[tuple[Door, ...]]:
    """The namespaces of the init that waits in `directory`, which are ours to close.

    None where it does not give any, or does not wait any more.
    """
    try:
        with _opened(directory) as place:
            channel = _knock(place, ENTER)
    except (FileNotFoundError, ConnectionRefusedError, BrokenPipeError):
        return ()
    try:
        message, fds = yield from channel.received((Namespaces,), STAGE_TIMEOUT_S)
    except (ChannelClosed, ConnectionResetError):
        return ()
    finally:
        channel.close()
    return tuple(zip(map(int, message.kinds.split()), fds, strict=True))


def _knock(place: OwnedFd, purpose: str) -> Channel:
    caller = _socket.socket(_socket.AF_UNIX, _KIND)
    try:
        caller.connect(f"/proc/self/fd/{place.fileno()}/{state.GATE}")
        channel = Channel(OwnedFd(caller.detach()), "2:INIT")
    except BaseException:
        caller.close()
        raise
    try:
        channel.send(Knock(purpose))
    except BaseException:
        channel.close()
        raise
    return channel


def _opened(directory: str) -> OwnedFd:
    """A socket's name may have 107 bytes: the directory goes by its descriptor."""
    return OwnedFd(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW))
