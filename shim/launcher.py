"""The launcher: the program that containerd runs as `containerd-shim-manor-v2`, once for every pod.

It hands its arguments, environment, working directory and stdin to the node's warden, prints what the
answer says and exits; what was asked it does not know. It is one file and loads nothing but built-in
modules and `_socket`, since every import would be paid for by every pod. Where no warden can be had it
forks the shim by itself. `python -m shim.install` writes it, with its first line and the constants below
filled in. The conversation is drawn in `shim/warden.py`.
"""

from __future__ import annotations

import _imp
import _socket
import posix
import sys
import time

CODE = ""  # the directory that holds our packages
VERSION = ""  # of everything in them: launcher and warden must be of one
DAEMON = "shim.daemon"  # what answers
PYTHON = sys.executable  # with the libraries that are not ours, for the scribe
LIBRARIES = ""  # and the directory that holds them

START_S = 10.0  # for a warden to come up, on a node that is busy
ACCEPT_S = 10.0  # for a warden to fork a child that has read the request
ALONE_S = 30.0  # for a shim without a warden to read its request

# First byte of every message, in both directions.
PART, LAST = b"+", b"."  # launcher: a part of the request, and the last one
ACCEPTED, REFUSED = b"!", b"-"  # shim: the request is mine; it is not, because …
STDOUT, STDERR, EXIT = b"o", b"e", b"x"

PART_BYTES = 65536  # a message must fit into a socket buffer of 208 KiB

# What a fork inherits from the warden and could not be told by the request, so a warden serves only its like.
NAMESPACES = ("mnt", "net", "pid", "pid_for_children", "user", "ipc", "uts", "cgroup", "time")
CREDENTIALS = (b"Uid", b"Gid", b"Groups", b"CapInh", b"CapPrm", b"CapEff", b"CapBnd", b"CapAmb")
CONFINEMENT = (b"NoNewPrivs", b"Seccomp", b"Seccomp_filters")

STARTING = 1  # the byte of the lock file that whoever starts a warden holds; the warden itself holds byte 0


class NoWarden(Exception):
    """No warden answers for us; the text says why."""


class HungUp(NoWarden):
    """The warden ended before the request was accepted: nothing was done, another may be asked."""


class Died(Exception):
    """The shim has taken the request, and has ended without an answer."""


def read(path: str) -> bytes:
    """All of a file of /proc; nothing where the kernel has no such file."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return b""
    data = b""
    try:
        while chunk := posix.read(fd, 1 << 20):
            data += chunk
    except OSError:
        pass  # attr/current of a kernel whose security module has no labels: EINVAL
    posix.close(fd)
    return data


def key() -> bytes:
    """Everything of this process that a pod could see of its shim; launchers of one version that have the same share
    a warden.
    """
    parts = [read("/proc/self/attr/current")]
    for name in NAMESPACES:
        try:
            parts.append(posix.readlink("/proc/self/ns/" + name).encode())
        except FileNotFoundError:  # time: before Linux 5.6
            parts.append(b"-")
    root = posix.stat("/")  # a chroot is no namespace
    parts.append(b"%d:%d" % (root.st_dev, root.st_ino))
    for line in read("/proc/self/status").splitlines():
        if line.partition(b":")[0] in CREDENTIALS + CONFINEMENT:
            parts.append(line)
    return b"\n".join(parts)


def warden_name(of: bytes, version: str) -> str:
    """The name that a warden for the key `of` has in the run directory: the socket's and the lock's stem.

    After an upgrade the first part tells whose successor a warden is.
    """
    # SipHash with a fixed key: the one hash that is always built in.
    return f"warden-{_imp.source_hash(0, of).hex()}-{_imp.source_hash(0, version.encode()).hex()[:8]}"


def enter_run_dir() -> str:
    """Make the run directory if need be and enter it, so that names in it are short (sun_path holds 107 bytes)."""
    path = posix.environ.get(b"MANOR_RUN_DIR", b"/run/manor")
    try:
        try:
            posix.mkdir(path, 0o700)
        except FileExistsError:
            pass
        posix.chdir(path)
        status = posix.stat(".")
    except OSError as error:
        raise NoWarden(f"run directory {path.decode(errors='replace')}: {error.strerror}") from None
    if status.st_uid != posix.geteuid() or status.st_mode & 0o022:
        raise NoWarden(f"run directory {path.decode(errors='replace')}: others may write to it")
    return posix.getcwd()


def connect(name: str) -> _socket.socket | None:
    """A connection to the warden `name`, or None if there is none. BlockingIOError: it has too many to answer."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    connection.settimeout(0)
    try:
        connection.connect(name + ".sock")
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    return connection


def reach_warden() -> _socket.socket:
    """A connection to our warden, started if there is none. NoWarden when that fails or takes longer than START_S."""
    run_dir = enter_run_dir()
    name = warden_name(key(), VERSION)
    lock = -1
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            if connection := connect(name):
                return connection
            if lock < 0:
                lock = open_lock(name)
            elif take_lock(lock):
                # Whoever had the lock before us may have brought a warden up since we looked.
                if connection := connect(name):
                    return connection
                start_warden(run_dir, name)
                continue
        except BlockingIOError:
            pass
        except OSError as error:
            raise NoWarden(f"{run_dir}/{name}: {error.strerror}") from None
        time.sleep(0.002)
    raise NoWarden(f"no warden came up within {START_S:g} s")


def open_lock(name: str) -> int:
    """The lock file, which is closed (and a lock given back) when the launcher ends."""
    flags = posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW
    return posix.open(name + ".lock", flags, 0o600)


def take_lock(lock: int) -> bool:
    """Try for the right to start a warden. A lockf(3) lock: `fcntl` with its flock is no built-in module."""
    posix.lseek(lock, STARTING, 0)  # SEEK_SET
    try:
        posix.lockf(lock, posix.F_TLOCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    return True


def start_warden(run_dir: str, name: str) -> None:
    """Start a warden and wait until it listens. NoWarden with its own words when it cannot."""
    child = fork_manor("warden", run_dir, name)
    child.settimeout(START_S)
    try:
        word = hear(child)
    except TimeoutError:
        word = b"-it did not come up in time"
    child.close()
    if word[:1] != ACCEPTED:
        raise NoWarden("the warden ended: " + word[1:].decode(errors="replace"))


def fork_manor(duty: str, *arguments: str) -> _socket.socket:
    """Fork a child that becomes a warden, or ("alone") one shim; our end of a connection to it."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    if posix.fork():
        theirs.close()
        return ours
    try:
        sys.path.append(CODE)
        from shim import begin  # the child is no launcher any more

        if duty == "warden":
            begin.check(CODE, VERSION)
        begin.begin(theirs.fileno(), CODE, DAEMON, PYTHON, LIBRARIES, duty, *arguments)
    except BaseException as error:
        theirs.send(REFUSED + repr(error).encode(errors="replace")[:PART_BYTES])
    posix._exit(1)  # noqa: SLF001 - os._exit


def request(alone_because: str) -> bytes:
    """What we were executed with, each text ended by NUL: how many arguments, the arguments, a note, the environment.

    The environment is the one in /proc: Python has put LC_CTYPE into its own.
    """
    coding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    texts = [str(len(sys.argv)), *sys.argv, alone_because]
    return b"".join(text.encode(coding, errors) + b"\0" for text in texts) + read("/proc/self/environ")


def send(connection: _socket.socket, data: bytes, fds: tuple[int, ...]) -> None:
    """Send the request in parts; the fds go with the first."""
    rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)]
    while len(data) > PART_BYTES:
        connection.sendmsg([PART, data[:PART_BYTES]], ancillary)
        data, ancillary = data[PART_BYTES:], []
    connection.sendmsg([LAST, data], ancillary)


def ask(
    connection: _socket.socket, data: bytes, fds: tuple[int, ...], limit_s: float, aloud: bool = True
) -> int:
    """Have the request answered and print what is said, if `aloud`; the exit code.

    NoWarden as long as nobody has accepted it, Died if who did is dead.
    """
    connection.settimeout(limit_s)
    try:
        try:
            send(connection, data, fds)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all of it was read
        word = hear(connection)
    except TimeoutError:
        # After the shutdown nobody can accept any more: a child that comes late sees EPIPE and goes.
        connection.shutdown(_socket.SHUT_RDWR)
        word = connection.recv(PART_BYTES) or b"-no answer in time"
    if not word:
        raise HungUp("the warden hung up")
    if word[:1] != ACCEPTED:
        raise NoWarden(word[1:].decode(errors="replace"))
    connection.settimeout(None)
    while word := connection.recv(PART_BYTES + 1):
        if word[:1] == EXIT:
            return int(word[1:])
        if aloud:
            write(1 if word[:1] == STDOUT else 2, word[1:])
    raise Died


def hear(connection: _socket.socket) -> bytes:
    """The next message; nothing if there is none to come."""
    for _attempt in range(2):
        try:
            return connection.recv(PART_BYTES)
        except ConnectionResetError:
            pass  # it ended without reading all we sent: that is told first, what it said before comes next
    return b""


def write(fd: int, data: bytes) -> None:
    """All of `data`; a reader that is gone is no concern of ours."""
    try:
        while data:
            data = data[posix.write(fd, data) :]
    except OSError:
        pass


def main() -> int:
    """Have done what we were executed for; the exit code."""
    stdin = 0
    try:
        posix.fstat(stdin)
    except OSError:
        stdin = posix.open("/dev/null", posix.O_RDONLY | posix.O_CLOEXEC)
    fds = posix.open(".", posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC), stdin
    try:
        return have_answered(fds)
    except Died:
        write(2, b"containerd-shim-manor-v2: the shim died before it had answered\n")
    if sys.argv[-1] == "start":
        # What it had made by then: containerd does not ask for the clean-up after a start that failed.
        sys.argv[-1] = "delete"
        try:
            have_answered(fds, aloud=False)
        except Died:
            pass
    return 1


def have_answered(fds: tuple[int, ...], aloud: bool = True) -> int:
    """Ask the warden; failing that, become the shim."""
    reason = ""
    for _attempt in range(3):
        try:
            return ask(reach_warden(), request(""), fds, ACCEPT_S, aloud)
        except HungUp as failure:
            reason = str(failure)
        except NoWarden as failure:
            reason = str(failure)
            break
    try:
        return ask(fork_manor("alone"), request(reason), fds, ALONE_S, aloud)
    except NoWarden as failure:
        write(2, f"containerd-shim-manor-v2: no warden ({reason}) and no shim ({failure})\n".encode())
        return 1


if __name__ == "__main__":
    posix._exit(main())  # noqa: SLF001 - os._exit; taking the interpreter down costs 1 ms
