"""From the options of `create` and `run` to a container that stands at its start gate.

Everything that can be refused is refused before anything is made. What the caller wants to have of the container
(its pid, its terminal, its pidfd) is handed over before it is started.
"""

from __future__ import annotations

import os

from runtime.bundle import read_config
from runtime.cli import logs
from runtime.cli.arguments import Option
from runtime.cli.handover import (
    CONSOLE_SOCKET,
    PID_FILE,
    PIDFD_SOCKET,
    PRESERVE_FDS,
    Handover,
    check_preserved,
    check_terminal,
)
from runtime.cli.host import host
from runtime.cli.notify import DIRECTORY, Proxy
from runtime.container import CreateOptions, CreateRequest
from runtime.errors import ManorError, NotFound
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
    from runtime.spec.model import Spec
    from runtime.stages.plan import Stdio

_MOST_DIGITS = 10

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


def passed_fds() -> int:
    """How many descriptors from 3 on a service manager has passed to us (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return 0
    count = os.environ.get("LISTEN_FDS", "")
    return int(count) if count.isascii() and count.isdecimal() and len(count) < _MOST_DIGITS else 0


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
