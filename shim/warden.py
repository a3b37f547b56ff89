"""The warden: forks shims, so that no pod pays for Python's start and imports.

It has one thread and does two things, accept and fork; the child does all the rest, so that nobody can hold
it up. One that dies has another look after what it left that no `delete` will be asked for. A warden runs
from a sealed copy of the interpreter (`runtime/stages/seal.py`), is not dumpable, and so is everything that
it forks. There is one for each key (`shim/launcher.py`), and a lock sees to it. Killed, it leaves its shims
alone; the next launcher starts another.

    containerd         launcher                     warden                      shim
        │ exec, stdin     │                            │
        ├────────────────►│ connect                    │
        │                 ├───────────────────────────►│ accept, fork ───────────►│ own session, no fd but
        │                 │                            │                          │ the connection
        │                 │ + part … . last part       │                          │
        │                 │ (with cwd and stdin as fds)│                          │
        │                 ├──────────────────────────────────────────────────────►│ adopt the launcher's limits,
        │                 │                                            ! accepted │ cgroup, umask …
        │                 │◄──────────────────────────────────────────────────────┤
        │                 │                                                       │ daemon.run: start, delete,
        │ stdout, stderr, │                     o stdout   e stderr   x exit code │ -info, -v
        │ exit code       │◄──────────────────────────────────────────────────────┤
        │◄────────────────┤ exit                                                  │
        │                                                 ttrpc                   │
        ├────────────────────────────────────────────────────────────────────────►│ (after `start`)

Instead of "!" the child may say "- reason", and an end before it means that nothing was done: the launcher
then looks for another warden, or forks the shim itself ("alone"), where the same code answers it.
"""

from __future__ import annotations

import _signal
import _socket
import gc
import os
import select
import sys
import time

from runtime.cgroups.layout import detect_layout
from runtime.errors import CgroupError, ManorError, describe
from runtime.linux import image, packing, process, seccomp, sharing, title
from runtime.linux.fds import OwnedFd, send_with_fds
from runtime.stages import seal
from shim import spans, systemd
from shim.begin import last_words
from shim.hot import HOT
from shim.launcher import ACCEPTED
from shim.start_request import LauncherGone, Unfaithful, adopt, be_patient, peer_of, receive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import NoReturn

    from runtime.cgroups.layout import Layout
    from shim.start_request import StartRequest

IDLE_S = 600  # without a request; and without a shim, or with a successor
BACKLOG = 512
TEND_S = 60  # between looks after the scribe
# Forks, so as to be no child of the warden's: its children are the shims that keep it from being idle. Of our version,
# whatever Manor its Python has among its packages.
_SCRIBE = """
import os, sys
os.fork() and os._exit(0)
sys.path.insert(0, sys.argv.pop(1))
from shim.scribe import main
sys.exit(main())
"""
_LONGEST_ADDRESS = 107  # bytes, in sun_path (unix(7))
_PIPE_BYTES = 64 << 10
_STOPS = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)


# ---- the warden's process ----


class House:
    """What a warden holds ready and every shim inherits: our code, and what was found out about the machine."""

    __slots__ = ("daemon", "environ", "layout", "seal")

    def __init__(self, daemon: str, libraries: str = "") -> None:
        gc.disable()  # as long as we import: nothing of it will ever be garbage
        process.set_dumpable(False)
        self.seal = seal.arrive()
        for name in image.ENVIRONMENT:
            os.environ.pop(name, None)
        self.environ = dict(os.environ)  # ours; that of a shim is its launcher's
        os.environ.clear()
        self.layout = _layout()
        systemd.load(libraries)
        self.daemon = _import(daemon)
        _open_libseccomp()
        gc.collect()
        sharing.make_immortal()
        packing.move_code(HOT)
        packing.fill_gaps()
        gc.freeze()  # a collection in a shim must not write to the pages that it shares with us
        image.seal()


def _layout() -> Layout | None:
    try:
        return detect_layout()
    except (CgroupError, OSError):
        return None  # a shim that needs one will say so


def _open_libseccomp() -> None:
    """Before the fork, so that all shims share it, and none opens what an upgrade has put in its place."""
    try:
        seccomp.preload()
    except OSError:
        pass  # a container with a filter will hear of it


def _import(name: str) -> ModuleType:
    """The module that answers requests by `run(request)`, and may have something to `prepare` before the first fork."""
    __import__(name)
    module = sys.modules[name]
    prepare = getattr(module, "prepare", None)
    if prepare is not None:
        prepare()
    return module


def main(channel: OwnedFd, daemon: str, python: str, libraries: str, duty: str, *place: str) -> NoReturn:
    """Be a warden ("warden", with run directory and name) or one shim ("alone") that answers through module `daemon`.

    `channel` leads to the launcher that started us, `python` is for a scribe, `libraries` the directory of those that
    are not ours. Raises whatever is in the way.
    """
    if duty == "warden":
        run_dir, name = place[:2]
        _be_warden(channel, lambda: House(daemon, libraries), python, run_dir, name)
    _attend(channel, House(daemon, libraries))


def _be_warden(
    channel: OwnedFd, furnish: Callable[[], House], python: str, run_dir: str, name: str
) -> NoReturn:
    os.chdir(run_dir)  # its name may be longer than a socket address holds
    lock = _hold_lock(f"{name}.lock")
    house = furnish()
    scribe = ScribeKeeper(python, run_dir, house.environ)
    listener = _listen(run_dir, f"{name}.sock")
    title.set_title([b"manor-warden", os.fsencode(run_dir)])
    process.set_process_name("manor-warden")
    send_with_fds(channel.fileno(), ACCEPTED)
    channel.close()
    _serve(listener, house, scribe, Mourner(house.daemon, run_dir), name)
    # Whoever comes now finds no socket, or is hung up on, and starts another warden: the lock goes last.
    os.unlink(f"{name}.sock")
    os.unlink(f"{name}.lock")
    listener.close()
    lock.close()
    os._exit(0)


def _hold_lock(name: str) -> OwnedFd:
    """The lock that makes us the only warden of this name, until we end. ManorError if there is one already."""
    for _attempt in range(20):
        lock = OwnedFd(os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        try:
            # lockf, because it is the launcher's as well, and because a forked child does not inherit it.
            os.lockf(lock.fileno(), os.F_TLOCK, 1)
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(name)):
                return lock
        except (BlockingIOError, PermissionError, FileNotFoundError):
            pass
        lock.close()  # held by one that ends just now, perhaps, and takes the file's name with it
        time.sleep(0.01)
    raise ManorError(f"another warden holds {name}")


def _listen(run_dir: str, name: str) -> _socket.socket:
    """Listen in our working directory, by the full path where it fits: it is what `ss -x` shows."""
    try:
        os.unlink(name)  # left behind by one that was killed: we hold the lock
    except FileNotFoundError:
        pass
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    path = f"{run_dir}/{name}"
    listener.bind(path if len(os.fsencode(path)) <= _LONGEST_ADDRESS else name)
    listener.listen(BACKLOG)
    return listener


def _serve(listener: _socket.socket, house: House, scribe: ScribeKeeper, mourner: Mourner, name: str) -> None:
    """Accept and fork until told to stop, or until nobody has asked for IDLE_S and there is no reason to stay.

    Shims are one: those of one warden share most of their memory, also with those to come. After an upgrade none will
    come any more.
    """
    signals = _signal_pipe()
    poll = select.poll()
    poll.register(signals, select.POLLIN)
    poll.register(listener, select.POLLIN)
    while True:
        ready = [fd for fd, _event in poll.poll(IDLE_S * 1000)]
        if not ready and (mourner.childless() or _succeeded(name)):
            return
        if signals in ready:
            if any(number in _STOPS for number in os.read(signals, _PIPE_BYTES)):
                return
            mourner.attend()
        if listener.fileno() in ready:
            _accept(listener, house)
        scribe.tend()


def _signal_pipe() -> int:
    """A pipe that gives the numbers of the signals that come; open for as long as we live."""
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    _signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in (*_STOPS, _signal.SIGCHLD):
        _signal.signal(number, lambda _number, _frame: None)
    return readable


class Mourner:
    """Reaps our children, and has somebody look after what those left that did not end in order.

    That is a child, too, of the daemon's `bury`, so that nobody waits for us meanwhile.
    """

    __slots__ = ("_bury", "_burying", "_run_dir")

    def __init__(self, daemon: ModuleType, run_dir: str) -> None:
        self._bury: Callable[[str], None] | None = getattr(daemon, "bury", None)
        self._run_dir = run_dir
        self._burying = 0  # its pid, while there is one

    def childless(self) -> bool:
        """Whether there is no child that has not been reaped."""
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return False

    def attend(self) -> None:
        """Some may have ended."""
        died = False
        try:
            while (child := os.waitpid(-1, os.WNOHANG))[0]:
                died = died or (child[1] != 0 and child[0] != self._burying)
        except ChildProcessError:
            pass
        if died and self._bury is not None:
            try:
                self._burying = _fork()
            except OSError:
                return  # the next one will do
            if self._burying == 0:
                self._be_one_who_buries(self._bury)

    def _be_one_who_buries(self, bury: Callable[[str], None]) -> NoReturn:
        try:
            _leave_house()
            bury(self._run_dir)
        finally:
            os._exit(0)


def _succeeded(name: str) -> bool:
    """Whether a warden of another version has come, after us, for what is ours in the run directory, where we are."""
    try:
        since = os.stat(f"{name}.sock").st_mtime_ns
    except FileNotFoundError:
        return True  # nobody can find us
    like = name.rpartition("-")[0] + "-"
    for other in os.listdir("."):
        if other.startswith(like) and other.endswith(".sock") and other != f"{name}.sock":
            try:
                if os.stat(other).st_mtime_ns > since:
                    return True
            except FileNotFoundError:
                pass  # that one has just ended
    return False


def _accept(listener: _socket.socket, house: House) -> None:
    try:
        # What socket.accept() is made of.
        number, _address = listener._accept()  # type: ignore[attr-defined] # noqa: SLF001
    except OSError:  # it is gone already
        return
    with OwnedFd(number) as connection:
        if peer_of(number)[1] != os.geteuid():
            return
        try:
            child = _fork()
        except OSError as error:  # EAGAIN, ENOMEM: the launcher may have better luck
            last_words(connection, error)
            return
        if child == 0:
            _attend(connection, house)


def _fork() -> int:
    """os.fork(). A signal that is for the child must not reach it before `_leave_house`: it has our pipe. OSError."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _STOPS)
    child = -1
    try:
        child = os.fork()
    finally:
        if child != 0:
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _STOPS)
    return child


class ScribeKeeper:
    """Sees to it that there is a scribe, unless that is not wanted; looks after it at most once in TEND_S."""

    __slots__ = ("_command", "_environ", "_next_look", "_run_dir")

    def __init__(self, python: str, run_dir: str, environ: dict[str, str]) -> None:
        code = os.path.dirname(os.path.dirname(__file__))
        self._command = [python, "-IB", "-c", _SCRIBE, code, run_dir, str(os.getpid())]
        self._environ = environ
        self._run_dir = run_dir
        self._next_look = 0.0 if spans.enabled(environ) else float("inf")

    def tend(self) -> None:
        """Start it if nobody listens; another warden's will do."""
        if (now := time.monotonic()) < self._next_look:
            return
        self._next_look = now + TEND_S
        if connection := spans.connect(self._run_dir):
            connection.close()
            return
        try:
            os.posix_spawn(self._command[0], self._command, self._environ, setsid=True)
        except OSError:
            pass  # pods do without their times


# ---- the shim's process ----


def _attend(connection: OwnedFd, house: House) -> NoReturn:
    """Read the request, become like the launcher's child, and let the daemon answer. Never returns."""
    request: StartRequest | None = None
    try:
        _leave_house(connection)
        request = receive(connection, house.seal, house.layout)
        adopt(peer_of(connection.fileno())[0], house.layout)
        request.reply.accept()
        _show(request.argv)
        gc.enable()
        house.daemon.run(request)
    except LauncherGone:
        pass
    except BaseException as failure:
        _report(request, failure)
    os._exit(1)


def _leave_house(connection: OwnedFd | None = None) -> None:
    """Be a process of our own: no signal handler, session or descriptor of the warden's, but for `connection`."""
    _signal.set_wakeup_fd(-1)
    for number in (*_STOPS, _signal.SIGCHLD):
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    process.close_all_but(() if connection is None else (connection.fileno(),))
    if os.getsid(0) != os.getpid():
        os.setsid()
    os.chdir("/")
    if connection is not None:
        be_patient(connection.fileno())


def _show(argv: tuple[str, ...]) -> None:
    """Of one that stays show the command line that operators' scripts look for, of another what it was asked."""
    process.set_process_name("manor-shim")
    if "start" not in argv:
        title.set_title([os.fsencode(text) for text in argv])
        return
    shown = ["containerd-shim-manor-v2"]
    for flag, value in zip(argv, (*argv[1:], ""), strict=True):
        name, equals, _value = flag.lstrip("-").partition("=")
        if flag.startswith("-") and name in ("namespace", "id", "address"):
            shown += [flag] if equals else [flag, value]
    title.set_title([os.fsencode(text) for text in shown])


def _report(request: StartRequest | None, failure: BaseException) -> None:
    if request is None or request.reply.sent:
        return
    try:
        if isinstance(failure, Unfaithful):
            request.reply.refuse(str(failure))
        else:
            request.reply.send(
                1, b"", f"containerd-shim-manor-v2: {describe(failure)}\n".encode(errors="replace")
            )
    except LauncherGone:
        pass
