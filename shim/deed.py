"""The deed of a pod: whose its state directory is, by a lock that ends with its holders, and by a note.

The lock is a shared flock(2) of the directory, by a descriptor that a shim has from before its socket is made until it
ends, and that every process inherits which makes something for the pod. So it is free when the last of them has
ended: who takes it for himself knows that nothing more is being made, and keeps a new shim waiting meanwhile. A socket
that closes says less, for a killed process is parted from its descriptors one by one, and from its children last.

The note says what the directory's name, a hash, does not: `manor ps` and `manor leaks` read it. It is the first line
of the pod's ledger (`manor/ledger.py`), and as the rest of it it is not synced: what it tells of ends with the kernel.
"""

from __future__ import annotations

import fcntl
import os
import time

from runtime.linux.fds import OwnedFd
from runtime.record import Record, as_dict
from runtime.spec.json import JsonError, dump, parse
from shim.sockets import SocketError, forget_pod, make_directory, write_whole

NOTE = "@shim"
# How long a start waits for whoever removes what an earlier shim of the pod has left.
PATIENCE_S = 10.0
_RETRY_S = 0.005
_MOST_BYTES = 64 << 10
_READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Deed(Record):
    """A shim: its process, whose pod it holds, and where. `start_time` is in clock ticks after boot, `began` in
    nanoseconds since 1970; `bundle` is the one that it was started in, `containerd` the socket of who started it.
    """

    pid: int
    start_time: int
    namespace: str
    id: str
    socket: str
    bundle: str
    containerd: str
    began: int


def hold(directory: str) -> OwnedFd:
    """The pod's directory, made if need be, locked against who would remove it. SocketError after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            make_directory(directory)
            lock = _lock(directory, fcntl.LOCK_SH)
        except FileNotFoundError:  # removed as soon as it was made, or seen to be there
            lock = None
        if lock is not None:
            return lock
        if time.monotonic() >= deadline:
            raise SocketError(f"state of the pod in {directory}: it is being removed, and that does not end")
        time.sleep(_RETRY_S)


def take(directory: str, patience_s: float) -> OwnedFd | None:
    """The pod's directory, locked for oneself; None where there is none. TimeoutError while somebody holds it."""
    deadline = time.monotonic() + patience_s
    while os.path.isdir(directory):
        lock = _lock(directory, fcntl.LOCK_EX)
        if lock is not None:
            return lock
        if time.monotonic() >= deadline:
            raise TimeoutError(f"the shim of {directory}, or what it has begun, has not ended")
        time.sleep(_RETRY_S)
    return None


def give_up(directory: str, held: OwnedFd) -> None:
    """Of a shim that ends: remove the directory if it is empty and nobody else's by now, and let go of it."""
    with held:
        try:
            fcntl.flock(held.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return  # the next shim of this pod has it
        forget_pod(directory)


def _lock(directory: str, kind: int) -> OwnedFd | None:
    """None where it is locked otherwise, or was removed meanwhile."""
    try:
        fd = OwnedFd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd.fileno(), kind | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd.fileno()), os.stat(directory)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    fd.close()
    return None


def write(held: OwnedFd, deed: Deed) -> None:
    """Put the note into the directory behind `held`. SocketError."""
    write_whole(held.fileno(), NOTE, dump(as_dict(deed)).decode())


def read(directory: str) -> Deed | None:
    """The note in a pod's directory; None where there is none that could be understood."""
    try:
        with OwnedFd(os.open(f"{directory}/{NOTE}", _READING)) as fd:
            value = parse(os.read(fd.fileno(), _MOST_BYTES))
        deed = Deed(**{name: value[name] for name in Deed.FIELD_NAMES})
    except (OSError, JsonError, KeyError, TypeError):
        return None
    numbers = (deed.pid, deed.start_time, deed.began)
    texts = (deed.namespace, deed.id, deed.socket, deed.bundle, deed.containerd)
    if all(type(each) is int and 0 < each < 1 << 63 for each in numbers) and all(
        type(each) is str for each in texts
    ):
        return deed
    return None
