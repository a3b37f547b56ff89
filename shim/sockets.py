"""A pod's socket: listening at it, finding out whether its shim lives, and the note of where it is.

The socket lies where containerd wants it; the note lies in the pod's state directory, because `delete` is
not told where containerd wanted it. Directories are 0700 and belong to us, files are 0600.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os

from runtime.errors import ManorError
from runtime.linux.fds import OwnedFd
from shim.api import task
from shim.api.codec import encode
from shim.ttrpc.connection import ClientConnection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# A note's name begins so, as no container id does: the state directories of the containers lie beside it.
NOTE_MARK = "@"
SOCKET_NOTE = "@socket"
_MAX_SOCKET_PATH = 107  # sun_path (unix(7))
_BACKLOG = 1024  # where it is full, a client in Go is refused at once
# A shim answers at once; one that is stopped, by a debugger say, is not dead.
ANSWER_TIMEOUT_S = 2.0


class SocketError(ManorError):
    """No socket could be had; says where and why."""


def listen(path: str, claim: Callable[[], object] | None = None) -> OwnedFd | None:
    """A listening socket at `path` (0600, in a directory 0700), or None if a shim listens there already.

    One that nobody listens on is replaced. `claim` is called before there is a socket, by the one who is going to
    have it. SocketError, and what `claim` raises. Two starts at once take turns by a lock on
    the directory, so that neither takes the other's socket for a dead one; a shim that is stopped is
    waited for before that, so that it keeps no other pod's start waiting.
    """
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise SocketError(f"socket path {path} is longer than {_MAX_SOCKET_PATH} bytes")
    directory = os.path.dirname(path)
    make_directory(directory)
    try:
        if is_served(path):
            return None
        with OwnedFd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as lock:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
            if is_served(path):
                return None
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            if claim is not None:
                claim()
            return _bind(path)
    except OSError as error:
        raise SocketError(f"listen on {path}: {error.strerror}") from error


def is_served(path: str) -> bool:
    """True if a shim at `path` answers, or is too busy to. OSError where that can't be found out.

    That it can be connected to is not enough: the kernel closes what a killed process had open one by one,
    the listening socket after the connections whose end made containerd run us.
    """
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    probe.setblocking(False)
    try:
        probe.connect(path)
    except BlockingIOError:  # others wait in front of us
        return True
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTSOCK, errno.EPROTOTYPE):
            return False
        raise
    else:
        return _answers(probe)
    finally:
        probe.close()


def _answers(probe: _socket.socket) -> bool:
    probe.settimeout(ANSWER_TIMEOUT_S)
    _stream_id, call = ClientConnection().call(task.SERVICE_V2, "Connect", encode(task.ConnectRequest()))
    try:
        probe.sendall(call)
        return bool(probe.recv(1))
    except TimeoutError:
        return True  # stopped, perhaps, but there
    except (BrokenPipeError, ConnectionResetError):
        return False


def _bind(path: str) -> OwnedFd:
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(mask)
    listener.listen(_BACKLOG)
    return OwnedFd(listener.detach())


def make_directory(path: str) -> None:
    """Make what is missing of `path`, 0700 each. SocketError where others could put something in our place."""
    if not os.path.isdir(path):
        made = ""
        for part in path.strip("/").split("/"):
            made += f"/{part}"
            try:
                os.mkdir(made, 0o700)
            except FileExistsError:
                continue
            except OSError as error:
                raise SocketError(f"create directory {made}: {error.strerror}") from error
    status = os.stat(path)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise SocketError(f"directory {path}: others may write to it")


def place_pod(pod_directory: str, root: str) -> None:
    """Have the state of a pod lie below the directory `root`, and a link to it where it is looked for.

    One that is there already stays where it is. SocketError, OSError.
    """
    place = f"{root}/{os.path.basename(pod_directory)}"
    make_directory(place)
    make_directory(os.path.dirname(pod_directory))
    try:
        os.symlink(place, pod_directory)
    except FileExistsError:
        if os.path.realpath(pod_directory) != os.path.realpath(place) and not os.listdir(place):
            os.rmdir(place)


def record_socket(pod_directory: str, path: str) -> None:
    """Note where the pod's shim listens, for `delete`, which is not told. SocketError, OSError."""
    make_directory(pod_directory)
    with OwnedFd(os.open(pod_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
        write_whole(directory.fileno(), SOCKET_NOTE, path)


def write_whole(directory: int, name: str, text: str) -> None:
    """Make or replace a small file in the directory behind a descriptor, 0600, so that nobody sees half of it.

    SocketError.
    """
    temporary = f"{NOTE_MARK}{name}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with OwnedFd(os.open(temporary, flags, 0o600, dir_fd=directory)) as fd:
            os.write(fd.fileno(), text.encode())
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        place = os.readlink(f"/proc/self/fd/{directory}")
        raise SocketError(f"write {place}/{name}: {error.strerror}") from error


def recorded_socket(pod_directory: str) -> str:
    """Where the pod's shim listens, or did; "" for a pod that never had one, or whose shim ended in order."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with OwnedFd(os.open(f"{pod_directory}/{SOCKET_NOTE}", flags)) as fd:
            path = os.fsdecode(os.read(fd.fileno(), 4096))
    except OSError:
        return ""
    could_be = path.startswith("/") and "\0" not in path and len(os.fsencode(path)) <= _MAX_SOCKET_PATH
    return path if could_be else ""


def forget_pod(pod_directory: str) -> None:
    """Remove the pod's state directory, if it has no containers any more; else leave it as it is."""
    try:
        names = os.listdir(pod_directory)
        if all(name.startswith(NOTE_MARK) for name in names):
            for name in names:
                os.unlink(f"{pod_directory}/{name}")
            os.rmdir(os.path.realpath(pod_directory))
            if os.path.islink(pod_directory):  # `place_pod`
                os.unlink(pod_directory)
    except OSError:
        pass  # it was never made, or a container comes in this moment, of a shim that is not ours


def remove_socket(path: str) -> None:
    """Take the name away, so that nobody finds a shim that ends, or has ended."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
