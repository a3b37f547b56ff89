"""What a caller is given of a process that we have started: its pid in a file, its terminal and its pidfd by socket.

And what it gives to one: descriptors of its own. The options for both are those of create, run and exec.
"""

from __future__ import annotations

import _socket
import fcntl
import os

from runtime.cli.arguments import Option
from runtime.errors import InvalidArgument
from runtime.linux.fds import OwnedFd, send_with_fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cli.arguments import Call
    from runtime.spec.model import Process

PTMX = b"/dev/ptmx"
_FIRST_PASSED = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)

CONSOLE_SOCKET = Option(
    ("--console-socket",),
    help="path to an AF_UNIX socket which will receive a file descriptor referencing the master end of the "
    "console's pseudoterminal",
)
PIDFD_SOCKET = Option(
    ("--pidfd-socket",),
    help="path to an AF_UNIX socket which will receive a file descriptor referencing the init process",
)
PID_FILE = Option(("--pid-file",), help="specify the file to write the process id to")
DETACH = Option(("--detach", "-d"), "flag", help="detach from the container's process")
PRESERVE_FDS = Option(
    ("--preserve-fds",),
    "int",
    help="Pass N additional file descriptors to the container (stdio + $LISTEN_FDS + N in total)",
)


class Handover:
    """What the caller wants to have of a process: connections are made before it is, and used once it stands."""

    __slots__ = ("_console", "_pid_file", "_pidfd")

    def __init__(self, call: Call, pid_file: str) -> None:
        self._pid_file = pid_file
        self._console = self._pidfd = None
        if path := call.options["console-socket"]:
            self._console = connect("--console-socket", path)
        if path := call.options["pidfd-socket"]:
            self._pidfd = connect("--pidfd-socket", path)

    def give(self, pid: int, pidfd: OwnedFd, console: OwnedFd | None, name: bytes) -> None:
        """Hand everything over; `name` comes with the pidfd."""
        if self._console is not None and console is not None:
            hand_over("--console-socket", self._console, console.fileno(), PTMX)
        if self._pidfd is not None:
            hand_over("--pidfd-socket", self._pidfd, pidfd.fileno(), name)
        if self._pid_file:
            write_pid_file(self._pid_file, pid)


def check_terminal(call: Call, process: Process, detach: bool) -> None:
    """InvalidArgument, in runc's words, unless a terminal has somebody to go to."""
    socket = call.options["console-socket"]
    if detach and process.terminal and not socket:
        raise InvalidArgument(
            f"cannot allocate tty if {call.program} will detach without setting console socket"
        )
    if socket and not (detach and process.terminal):
        raise InvalidArgument(f"cannot use console socket if {call.program} will not detach or allocate tty")


def check_preserved(first: int, count: int) -> int:
    """`first` + `count`, if these descriptors from 3 + `first` on have come from our caller. InvalidArgument.

    Ours are close-on-exec, and an inherited one cannot be: so a number that was free is known even where one of
    ours has taken it meanwhile.
    """
    for index in range(max(count, 0)):
        number = _FIRST_PASSED + first + index
        try:
            ours = fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        except OSError:
            ours = 1
        if ours:
            raise InvalidArgument(
                f"unable to stat preserved-fd {index} (of {count}): descriptor {number} is not open"
            )
    return first + max(count, 0)


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
