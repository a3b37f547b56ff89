"""File descriptors with one owner each, and their way from one process to another over a socket.

Everything made here is close-on-exec. Python's own `socket.recv_fds` ignores MSG_CMSG_CLOEXEC (seen on
3.11.7), so receiving is done with recvmsg here.
"""

from __future__ import annotations

import _socket
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType


class OwnedFd:
    """A file descriptor that is closed once, by the one who owns it; `release` passes ownership on."""

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> OwnedFd:
        return self

    def __exit__(self, *_failure: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"OwnedFd({self._number})"

    def fileno(self) -> int:
        """The number, for use in a call; ValueError if it was closed or released."""
        if self._number < 0:
            raise ValueError("the file descriptor is closed or was given away")
        return self._number

    @property
    def closed(self) -> bool:
        """True once it was closed or released."""
        return self._number < 0

    def release(self) -> int:
        """Give the number away: the caller closes it from now on."""
        number, self._number = self._number, -1
        return number

    def close(self) -> None:
        """Close it; a second call does nothing."""
        if (number := self.release()) >= 0:  # forgotten first: the number may be reused at once
            os.close(number)


def read_whole(path: str) -> bytes:
    """All that is in the file `path`, which may be one of procfs. OSError."""
    with OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        data = b""
        while chunk := os.read(fd.fileno(), 1 << 16):
            data += chunk
        return data


def close_all(owned: Iterable[OwnedFd]) -> None:
    """Close every one of `owned`."""
    for fd in owned:
        fd.close()


def socketpair(kind: int = _socket.SOCK_SEQPACKET) -> tuple[OwnedFd, OwnedFd]:
    """A connected pair of unix sockets, close-on-exec: by default SEQPACKET, one message a read (unix(7))."""
    left, right = _socket.socketpair(_socket.AF_UNIX, kind | _socket.SOCK_CLOEXEC)
    return OwnedFd(left.detach()), OwnedFd(right.detach())


def _borrow(fd: int) -> _socket.socket:
    """`fd` as a socket object, to be detached. Told its kind it does not ask the kernel: a filter may forbid that."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd)


def send_with_fds(fd: int, data: bytes, fds: Iterable[int] = ()) -> int:
    """sendmsg(2) of `data` and `fds` (SCM_RIGHTS) on the socket `fd`; a vanished peer is BrokenPipeError."""
    numbers = tuple(fds)
    ancillary = []
    if numbers:
        rights = struct.pack(f"{len(numbers)}i", *numbers)
        ancillary.append((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights))
    sock = _borrow(fd)
    try:
        return sock.sendmsg([data], ancillary, _socket.MSG_NOSIGNAL)
    finally:
        sock.detach()


def receive_with_fds(fd: int, size: int, most_fds: int = 8, flags: int = 0) -> tuple[bytes, list[OwnedFd]]:
    """recvmsg(2) of up to `size` bytes and `most_fds` fds, all close-on-exec. b"" means the peer is gone.

    Raises OSError when the message or its fds were cut off: half a message is none. BlockingIOError
    when `flags` hold MSG_DONTWAIT and nothing is there.
    """
    sock = _borrow(fd)
    try:
        space = _socket.CMSG_SPACE(4 * most_fds)
        data, ancillary, got_flags, _peer = sock.recvmsg(size, space, flags | _socket.MSG_CMSG_CLOEXEC)
    finally:
        sock.detach()
    owned = []
    for level, kind, rights in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            count = len(rights) // 4
            owned += [OwnedFd(number) for number in struct.unpack(f"{count}i", rights[: 4 * count])]
    if got_flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
        close_all(owned)
        raise OSError(f"recvmsg: a message of more than {size} bytes or {most_fds} fds was cut off")
    return data, owned


def pipe() -> tuple[OwnedFd, OwnedFd]:
    """pipe2(2) with O_CLOEXEC: (read end, write end)."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    return OwnedFd(read_end), OwnedFd(write_end)
