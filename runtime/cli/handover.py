"""What a caller is given of a process that we have started: its pid in a file, its terminal and its pidfd by socket."""

from __future__ import annotations

import _socket
import os

from runtime.errors import InvalidArgument
from runtime.linux.fds import OwnedFd, send_with_fds

PTMX = b"/dev/ptmx"


def connect(option: str, path: str) -> OwnedFd:
    """A connection to the AF_UNIX stream socket `path` that `option` names. InvalidArgument where nobody listens."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        reason = (error.strerror or str(error)).lower()
        raise InvalidArgument(f"{option}: connect to {path}: {reason}") from None
    return OwnedFd(connection.detach())


def hand_over(option: str, connection: OwnedFd, fd: int, name: bytes) -> None:
    """Send `fd` as SCM_RIGHTS beside its `name`. InvalidArgument where the other end has gone."""
    try:
        send_with_fds(connection.fileno(), name, (fd,))
    except OSError as error:
        raise InvalidArgument(f"{option}: send {name.decode()}: {(error.strerror or '').lower()}") from None


def write_pid_file(path: str, pid: int) -> None:
    """Write `pid` to the file `path` so that a reader sees all of it or nothing. OSError with the file's name."""
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o666)
    try:
        os.write(fd, str(pid).encode())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
