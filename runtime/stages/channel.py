"""One end of the conversation between two stages: whole messages over a SEQPACKET socket, fds beside them.

The stages block in `receive`; stage 0 never does: it waits with `received`, a generator, for the loop.
A wrong message is an error that names both; a Failed one is raised here as the StageError it carries.
"""

from __future__ import annotations

import _socket
import os

from runtime.errors import ManorError, StageError, describe
from runtime.linux.fds import OwnedFd, close_all, receive_with_fds, send_with_fds, socketpair
from runtime.stages.messages import MAX_MESSAGE, Failed, decode, encode
from runtime.waiting import Readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeVar

    from runtime.record import Record
    from runtime.waiting import Operation

    M = TypeVar("M", bound=Record)


class ChannelClosed(ManorError):
    """The other end is gone: its process ended, or its execve succeeded."""


class Channel:
    """Owns one end; `peer` names who is at the other one, for errors."""

    __slots__ = ("_fd", "peer")

    def __init__(self, fd: OwnedFd, peer: str) -> None:
        self._fd = fd
        self.peer = peer

    def fileno(self) -> int:
        """The socket's number, for keep lists and for waiting."""
        return self._fd.fileno()

    def close(self) -> None:
        """Close this end; a second call does nothing."""
        self._fd.close()

    @property
    def closed(self) -> bool:
        """True once this end was closed."""
        return self._fd.closed

    def continue_with(self, fd: OwnedFd) -> None:
        """Close this end and go on with `fd`: what is said from now on, a failure too, goes there."""
        self._fd.close()
        self._fd = fd

    def send(self, message: Record, fds: Iterable[int] = ()) -> None:
        """Send one message. BrokenPipeError when the peer is gone."""
        send_with_fds(self._fd.fileno(), encode(message), fds)

    def write(self, message: Record) -> None:
        """`send` by write(2): for who is under a filter that may stop sendmsg(2)."""
        os.write(self._fd.fileno(), encode(message))

    def receive(self, flags: int = 0) -> tuple[Record, list[OwnedFd]]:
        """The next message and its fds. ChannelClosed at the end, StageError for a Failed one."""
        try:
            data, fds = receive_with_fds(self._fd.fileno(), MAX_MESSAGE, flags=flags)
        except ConnectionResetError:
            # The peer went with a message of ours unread. That is told once, and before its own last words.
            data, fds = receive_with_fds(self._fd.fileno(), MAX_MESSAGE, flags=flags)
        if not data:
            raise ChannelClosed(f"{self.peer} ended without a word")
        message = decode(data)
        if isinstance(message, Failed):
            close_all(fds)
            raise StageError(
                message.stage,
                message.operation,
                message.subject,
                message.message,
                message.number,
                message.kind,
            )
        return message, fds

    def expect(self, kind: type[M]) -> M:
        """Block until the next message, which must be a `kind` without fds."""
        message, fds = self.receive()
        close_all(fds)
        if not isinstance(message, kind):
            raise self._unexpected(message, kind.__name__)
        return message

    def received(
        self, kinds: tuple[type[M], ...], timeout_s: float | None
    ) -> Operation[tuple[M, list[OwnedFd]]]:
        """Wait, without blocking the caller's thread, for a message of one of `kinds`."""
        yield Readable(self._fd.fileno(), timeout_s)
        message, fds = self.receive(_socket.MSG_DONTWAIT)
        if not isinstance(message, kinds):
            close_all(fds)
            raise self._unexpected(message, " or ".join(kind.__name__ for kind in kinds))
        return message, fds

    def ended(self, timeout_s: float | None) -> Operation[None]:
        """Wait, without blocking the caller's thread, until the peer closes its end with nothing more to say."""
        yield Readable(self._fd.fileno(), timeout_s)
        try:
            message, fds = self.receive(_socket.MSG_DONTWAIT)
        except ChannelClosed:
            self.close()
            return
        close_all(fds)
        raise self._unexpected(message, "the end")

    def _unexpected(self, message: Record, wanted: str) -> StageError:
        got = type(message).__name__
        return StageError("main", "read", f"message of {self.peer}", f"expected {wanted}, got {got}")

    def send_failure(self, stage: str, step: tuple[str, str], failure: BaseException) -> None:
        """Report `failure` of `step` (operation, subject) in `stage`; never raises, as it is a child's last word."""
        operation, subject = step
        if isinstance(failure, StageError):
            failed = Failed(
                failure.stage,
                failure.operation,
                failure.subject,
                failure.message,
                failure.number,
                failure.kind,
            )
        else:
            number = failure.errno or 0 if isinstance(failure, OSError) else 0
            kind = failure.kind if isinstance(failure, ManorError) else ""
            failed = Failed(stage, operation, subject, describe(failure), number, kind)
        try:
            self.send(failed)
        except OSError:
            pass  # nobody listens any more: the exit status has to do


def channel_pair(near: str, far: str) -> tuple[Channel, Channel]:
    """A connected pair: the end for `near` (its peer is `far`) and the end for `far`."""
    left, right = socketpair()
    return Channel(left, far), Channel(right, near)
