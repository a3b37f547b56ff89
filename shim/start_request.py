"""One launcher's request as its shim sees it: what was asked, where to answer, and becoming its like.

Read in the forked child, so that a launcher which says nothing keeps nobody else waiting. The messages
are `shim/launcher.py`'s; what the answer is, `shim/daemon.py` decides.
"""

from __future__ import annotations

import _socket
import os
import resource
import select
import struct
import time

from runtime.errors import InvalidArgument, ManorError
from runtime.linux.fds import OwnedFd, close_all, read_whole, receive_with_fds, send_with_fds
from runtime.record import Record
from shim.launcher import ACCEPTED, EXIT, LAST, PART, PART_BYTES, REFUSED, STDERR, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.layout import Layout
    from runtime.stages.seal import Seal

PATIENCE_S = 10  # for a launcher to send its request, and for whoever writes its stdin
LIMIT_BYTES = 16 << 20  # of arguments and environment: more than execve(2) allows
STDIN_LIMIT_BYTES = 10 << 20  # as in containerd's own shims

_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid uid gid
_TIME = struct.Struct("@ll")  # struct timeval
_HIGHEST_OOM_SCORE = 1000
_LIMITS = range(16)  # RLIMIT_CPU to RLIMIT_RTTIME, all that Linux has


class LauncherGone(ManorError):
    """Nobody waits for an answer any more: whatever was begun is to be undone."""


class Unfaithful(ManorError):
    """This process cannot become what a child of the launcher would be; says which attribute and why."""


class Origin(Record):
    """How this shim came to be, for `-info` and the log."""

    seal: Seal
    alone_because: str = ""  # why the launcher had to do without a warden; "" if it had one

    def notes(self) -> tuple[str, ...]:
        """What of it is not as it should be: nothing fails for it, so that nobody would notice."""
        found = []
        if self.alone_because:
            found.append(f"no warden ({self.alone_because}): the shim was started by itself")
        if not self.seal.sealed:
            found.append(f"the interpreter is {self.seal}")
        return tuple(found)


class Stdin:
    """What containerd writes to the launcher's stdin; read when it is known to be wanted."""

    __slots__ = ("_fd",)

    def __init__(self, fd: OwnedFd) -> None:
        self._fd = fd

    def read(self, limit_bytes: int = STDIN_LIMIT_BYTES) -> bytes:
        """Everything up to its end, and close it; nothing from a terminal, where a person would have to type it.

        InvalidArgument for more than `limit_bytes`, TimeoutError when the end does not come within PATIENCE_S.
        """
        with self._fd as fd:
            if os.isatty(fd.fileno()):
                return b""
            return _read_to_end(fd.fileno(), limit_bytes)

    def close(self) -> None:
        """Do without it."""
        self._fd.close()


def _read_to_end(fd: int, limit_bytes: int) -> bytes:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + PATIENCE_S
    data = bytearray()
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            return bytes(data)
        data += chunk
        if len(data) > limit_bytes:
            raise InvalidArgument(f"stdin holds more than {limit_bytes} bytes")
    raise TimeoutError(f"stdin did not end within {PATIENCE_S} s")


class Reply:
    """The way back to the launcher, which prints what it is sent and exits; for one answer."""

    __slots__ = ("_connection",)

    def __init__(self, connection: OwnedFd) -> None:
        self._connection = connection

    def accept(self) -> None:
        """Tell the launcher that the request will be answered. LauncherGone if it has given up waiting."""
        self._send(ACCEPTED)

    def refuse(self, reason: str) -> None:
        """Tell the launcher to look elsewhere, instead of `accept`."""
        self._send(REFUSED + reason.encode(errors="replace")[: PART_BYTES - 1])
        self._connection.close()

    def send(self, exit_code: int, stdout: bytes = b"", stderr: bytes = b"") -> None:
        """Have the launcher print and exit. LauncherGone if it was killed meanwhile: nobody knows of this shim then."""
        for kind, data in ((STDOUT, stdout), (STDERR, stderr)):
            for start in range(0, len(data), PART_BYTES):
                self._send(kind + data[start : start + PART_BYTES])
        self._send(EXIT + str(exit_code).encode())
        self._connection.close()

    @property
    def sent(self) -> bool:
        """Whether there is nothing more to be said."""
        return self._connection.closed

    def _send(self, message: bytes) -> None:
        try:
            send_with_fds(self._connection.fileno(), message)
        except OSError as error:
            raise LauncherGone(f"the launcher has gone: {error.strerror}") from None


class StartRequest(Record):
    """What a launcher was executed with, and the two ways to it.

    Text is decoded as file names are (os.fsencode restores the bytes). `cwd_fd` is an O_PATH descriptor of
    its working directory, which is the bundle. `environ` is the launcher's: os.environ says nothing here.
    `layout` is None where the warden found no cgroups.
    """

    argv: tuple[str, ...]
    environ: dict[str, str]
    cwd_fd: OwnedFd
    stdin: Stdin
    reply: Reply
    origin: Origin
    layout: Layout | None = None


def peer_of(connection: int) -> tuple[int, int]:
    """(pid, uid) of who opened the connection, as the kernel noted them (SO_PEERCRED)."""
    sock = _borrow(connection)
    try:
        data = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
    finally:
        sock.detach()
    pid, uid, _gid = _CREDENTIALS.unpack(data)
    return pid, uid


def be_patient(connection: int, limit_s: int = PATIENCE_S) -> None:
    """Let no read from or write to the other end take longer than `limit_s`; EAGAIN then."""
    sock = _borrow(connection)
    limit = _TIME.pack(limit_s, 0)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, limit)
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, limit)
    sock.detach()


def _borrow(connection: int) -> _socket.socket:
    """The descriptor as a socket object, to be detached. Told what it is, it need not ask the kernel thrice."""
    return _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, connection)


def receive(connection: OwnedFd, seal: Seal, layout: Layout | None = None) -> StartRequest:
    """Read the request; `layout` is what the warden knows of the machine's cgroups.

    LauncherGone if it ends early, or has not come within the connection's time limit.
    """
    data, fds = _receive_parts(connection.fileno())
    try:
        texts = data.split(b"\0")
        count = int(texts[0])
        cwd_fd, stdin = fds
        argv = tuple([os.fsdecode(text) for text in texts[1 : 1 + count]])
        origin = Origin(seal, os.fsdecode(texts[1 + count]))
    except (ValueError, IndexError):
        close_all(fds)
        raise LauncherGone("a request that is none") from None
    environ: dict[str, str] = {}
    for text in texts[2 + count :]:
        name, equals, value = text.partition(b"=")
        if equals:  # of two the first counts, as for getenv(3)
            environ.setdefault(os.fsdecode(name), os.fsdecode(value))
    return StartRequest(argv, environ, cwd_fd, Stdin(stdin), Reply(connection), origin, layout)


def _receive_parts(connection: int) -> tuple[bytes, list[OwnedFd]]:
    data = bytearray()
    fds: list[OwnedFd] = []
    try:
        while True:
            message, more = receive_with_fds(connection, PART_BYTES + 1)
            fds += more
            kind = message[:1]
            if kind not in (PART, LAST) or len(data) + len(message) > LIMIT_BYTES:
                break
            data += memoryview(message)[1:]
            if kind == LAST:
                return bytes(data), fds
    except OSError:
        pass
    close_all(fds)
    raise LauncherGone("the request did not arrive whole")


def adopt(peer: int, layout: Layout | None) -> None:
    """Take on what a child of the process `peer` would have from it: cgroup, CPUs, limits, priority, umask.

    And its OOM score plus one, so that in need the shim goes before containerd. Written by this process
    itself: moving another one takes a global lock. Unfaithful when something cannot be had.
    """
    try:
        if layout is not None:
            _join_cgroups(peer, layout)
        if (cpus := os.sched_getaffinity(peer)) != os.sched_getaffinity(0):
            os.sched_setaffinity(0, cpus)
        for number in _LIMITS:
            _take_limit(peer, number)
        if (nice := os.getpriority(os.PRIO_PROCESS, peer)) != os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        _take_oom_score(peer)
        os.umask(_umask(peer))
    except (FileNotFoundError, ProcessLookupError):
        raise LauncherGone("the launcher has gone") from None
    except (OSError, ValueError) as error:
        raise Unfaithful(f"adopt what process {peer} is: {error}") from None


def _take_limit(peer: int, number: int) -> None:
    theirs = resource.prlimit(peer, number)
    if theirs != resource.prlimit(0, number):
        resource.prlimit(0, number, theirs)


def _take_oom_score(peer: int) -> None:
    wanted = min(int(read_whole(f"/proc/{peer}/oom_score_adj")) + 1, _HIGHEST_OOM_SCORE)
    if wanted == int(read_whole("/proc/self/oom_score_adj")):
        return
    try:
        _write("/proc/self/oom_score_adj", str(wanted))
    except PermissionError:
        # Nobody but root may write to the files of a process that is not dumpable; it protects no less so.
        if os.geteuid() == 0:
            raise


def _umask(peer: int) -> int:
    for line in read_whole(f"/proc/{peer}/status").splitlines():
        if line.startswith(b"Umask:"):
            return int(line.split()[1], 8)
    raise ValueError("the kernel does not tell its umask")  # Linux 4.7 and later do


def _join_cgroups(peer: int, layout: Layout) -> None:
    theirs = read_whole(f"/proc/{peer}/cgroup")
    ours = read_whole("/proc/self/cgroup")
    if theirs == ours:  # as a rule: the warden was started from where the launchers are
        return
    wanted, present = _cgroup_paths(theirs), _cgroup_paths(ours)
    for hierarchy in layout.hierarchies:
        controllers = frozenset(hierarchy.controllers) if hierarchy.version == 1 else frozenset(("",))
        path = wanted.get(controllers)
        if path is None or path == present.get(controllers):
            continue
        root = hierarchy.root.rstrip("/")
        if not f"{path}/".startswith(root + "/") or path.startswith("/.."):
            raise ValueError(f"cgroup {path} is not below {hierarchy.mountpoint}")
        # A single thread may join by `tasks`, which is quicker; v2 has that only for threaded cgroups.
        member_file = "tasks" if hierarchy.version == 1 else "cgroup.procs"
        _write(f"{hierarchy.mountpoint}{path[len(root) :]}/{member_file}", "0")


def _cgroup_paths(text: bytes) -> dict[frozenset[str], str]:
    """The paths of cgroups(7)'s /proc/PID/cgroup by the set of controllers, which is {""} for v2."""
    paths = {}
    for line in text.splitlines():
        _number, controllers, path = os.fsdecode(line).split(":", 2)
        paths[frozenset(controllers.split(","))] = path
    return paths


def _write(path: str, text: str) -> None:
    with OwnedFd(os.open(path, os.O_WRONLY | os.O_CLOEXEC)) as fd:
        os.write(fd.fileno(), text.encode())
