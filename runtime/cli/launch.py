"""From the options of `create` and `run` to a container that stands at its start gate.

Everything that can be refused is refused before anything is made. What the caller wants to have of the container
(its pid, its terminal, its pidfd) is handed over before it is started.
"""

from __future__ import annotations

import fcntl
import os

from runtime.cli import handover, logs
from runtime.cli.arguments import Option
from runtime.cli.host import host
from runtime.cli.notify import DIRECTORY, Proxy
from runtime.container import CreateOptions, CreateRequest
from runtime.errors import InvalidArgument, ManorError, NotFound
from runtime.operations.apart import read_config
from runtime.operations.create import create
from runtime.operations.delete import delete_by_force
from runtime.operations.load import lock
from runtime.record import replace
from runtime.spec.load import load_spec
from runtime.waiting import run as drive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cli.arguments import Call
    from runtime.container import Container
    from runtime.linux.fds import OwnedFd
    from runtime.spec.model import Process, Spec
    from runtime.stages.plan import Stdio
    from runtime.trace import Marks

_MOST_DIGITS = 10
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
BUNDLE = Option(
    ("--bundle", "-b"), help="path to the root of the bundle directory, defaults to the current directory"
)
OPTIONS = (
    BUNDLE,
    CONSOLE_SOCKET,
    PIDFD_SOCKET,
    PID_FILE,
    Option(
        ("--no-pivot",),
        "flag",
        help="do not use pivot root to jail process inside rootfs.  This should be used whenever the rootfs is on "
        "top of a ramdisk",
    ),
    Option(
        ("--no-new-keyring",),
        "flag",
        help="do not create a new session keyring for the container.  This will cause the container to inherit "
        "the calling processes session key",
    ),
    PRESERVE_FDS,
)
USAGE = "<container-id>"
WHERE = """\
Where "<container-id>" is your name for the instance of the container that you
are starting. The name you provide for the container instance must be unique on
your host."""


class Handover:
    """What the caller wants to have of a process: connections are made before it is, and used once it stands."""

    __slots__ = ("_console", "_pid_file", "_pidfd")

    def __init__(self, call: Call, pid_file: str) -> None:
        self._pid_file = pid_file
        self._console = self._pidfd = None
        if path := call.options["console-socket"]:
            self._console = handover.connect("--console-socket", path)
        if path := call.options["pidfd-socket"]:
            self._pidfd = handover.connect("--pidfd-socket", path)

    def give(self, pid: int, pidfd: OwnedFd, console: OwnedFd | None, name: bytes) -> None:
        """Hand everything over; `name` comes with the pidfd."""
        if self._console is not None and console is not None:
            handover.hand_over("--console-socket", self._console, console.fileno(), handover.PTMX)
        if self._pidfd is not None:
            handover.hand_over("--pidfd-socket", self._pidfd, pidfd.fileno(), name)
        if self._pid_file:
            handover.write_pid_file(self._pid_file, pid)


def check_terminal(call: Call, process: Process, detach: bool) -> None:
    """InvalidArgument, in runc's words, unless a terminal has somebody to go to."""
    socket = call.options["console-socket"]
    if detach and process.terminal and not socket:
        raise InvalidArgument(
            f"cannot allocate tty if {call.program} will detach without setting console socket"
        )
    if socket and not (detach and process.terminal):
        raise InvalidArgument(f"cannot use console socket if {call.program} will not detach or allocate tty")


def passed_fds() -> int:
    """How many descriptors from 3 on a service manager has passed to us (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return 0
    count = os.environ.get("LISTEN_FDS", "")
    return int(count) if count.isascii() and count.isdecimal() and len(count) < _MOST_DIGITS else 0


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


def owner(spec: Spec) -> tuple[int, int]:
    """The host's ids of the container's root, whose the streams are."""
    linux = spec.linux
    found = []
    for mappings in (linux.uid_mappings, linux.gid_mappings):
        found.append(next((each.host_id for each in mappings if each.container_id == 0), 0))
    return found[0], found[1]


def enter_bundle(call: Call) -> tuple[str, str]:
    """Go into the bundle, as relative paths are to be taken from there; its absolute path, and the pid file's."""
    pid_file = call.options["pid-file"]
    pid_file = os.path.abspath(pid_file) if pid_file else ""
    if bundle := call.options["bundle"]:
        os.chdir(bundle)
    return os.getcwd(), pid_file


class Launch:
    """One `create` or `run`: what the options and the config come to."""

    __slots__ = ("_call", "_handover", "bundle", "preserved", "proxy", "spec")

    def __init__(self, call: Call, detach: bool) -> None:
        self._call = call
        self.bundle, pid_file = enter_bundle(call)
        spec = load_spec(read_config(self.bundle))
        check_terminal(call, spec.process, detach)
        passed = check_preserved(0, passed_fds())  # else descriptors of ours would be kept in their place
        self.preserved = check_preserved(passed, call.options["preserve-fds"])
        if passed:
            told = (f"LISTEN_FDS={passed}", "LISTEN_PID=1")
            spec = replace(spec, process=replace(spec.process, env=(*spec.process.env, *told)))
        self.proxy = Proxy.for_container(f"{call.globals.root}/{call.arguments[0]}")
        self.spec = spec if self.proxy is None else self.proxy.prepare(spec)
        self._handover = Handover(call, pid_file)

    def create(self, stdio: Stdio, gate: bool) -> Container:
        """Make the container. Errors as `operations.create`."""
        options = self._call.options
        request = CreateRequest(
            self._call.arguments[0],
            self.bundle,
            self.spec,
            stdio,
            options=CreateOptions(
                gate=gate,
                no_pivot=options["no-pivot"],
                keyring=not options["no-new-keyring"],
                preserved_fds=self.preserved,
                directories=() if self.proxy is None else (DIRECTORY,),
            ),
        )
        container = drive(create(host(self._call.globals), request))
        logs.debug(
            f"container {container.id} of bundle {self.bundle}: "
            f"init is process {container.pid}, in cgroup {container.cgroup.path}"
        )
        return container

    def hand_over(self, container: Container) -> None:
        """Give the caller what it wants of the container. OSError, InvalidArgument; then the container has to go."""
        self._handover.give(container.pid, container.pidfd, container.console, b"standard")


def discard(container: Container) -> None:
    """Delete a container whatever state it is in; what fails is logged, as there is an error, or an end, to tell."""
    try:
        with drive(lock(container.host, container.id)):
            drive(delete_by_force(container.host, container.id))
    except NotFound:
        pass  # somebody else has deleted it
    except (ManorError, OSError) as error:
        logs.warn(logs.explain(error))


def tell(warnings: tuple[str, ...], marks: Marks = ()) -> None:
    """Log the warnings of an operation, and for --debug its steps with the time that each has taken."""
    for warning in warnings:
        logs.warn(warning)
    before = marks[0][1] if marks else 0
    for step, when in marks:
        logs.debug(f"{step}: {(when - before) / 1e6:.2f} ms")
        before = when
