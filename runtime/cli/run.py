"""run: create a container, start it, and, unless it is to be left alone, wait for its end and delete it."""

from __future__ import annotations

from runtime.cli import logs
from runtime.cli.arguments import Option, Verb
from runtime.cli.foreground import Foreground, hold_signals_back
from runtime.cli.handover import DETACH
from runtime.cli.launch import OPTIONS, USAGE, WHERE, Launch, discard, owner
from runtime.errors import ManorError
from runtime.linux.process import set_child_subreaper
from runtime.operations.start import start
from runtime.stages.plan import Stdio
from runtime.waiting import run as drive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cli.arguments import Call
    from runtime.container import Container


def run(call: Call) -> int:
    """The exit code of the container's program; 0 where we do not wait for it."""
    try:
        if call.options["detach"]:
            return _detached(call)
        return _foreground(call)
    except (ManorError, OSError) as error:
        return logs.fatal_in(f"{call.program} run", error)


def _detached(call: Call) -> int:
    launch = Launch(call, detach=True)
    container = launch.create(Stdio(0, 1, 2), gate=False)
    try:
        _start(launch, container)
    except BaseException:
        discard(container)
        raise
    if launch.proxy is not None:
        launch.proxy.await_ready(container.pid, container.pidfd.fileno())
    return 0


def _foreground(call: Call) -> int:
    launch = Launch(call, detach=False)
    if not call.options["no-subreaper"]:
        set_child_subreaper()
    hold_signals_back()
    front = Foreground(launch.spec.process.terminal, owner(launch.spec))
    try:
        container = launch.create(front.stdio(), gate=False)
        try:
            front.attach(container.console)
            _start(launch, container)
            code = front.wait(container.pid, container.pidfd.fileno(), launch.proxy)
        except BaseException:
            discard(container)
            raise
        container.ended()
        if not call.options["keep"]:
            discard(container)
        front.drain()
    finally:
        front.close()
    return code


def _start(launch: Launch, container: Container) -> None:
    """Hand over what the caller wants and start it; where that fails it has to go."""
    logs.tell(container.warnings)
    launch.hand_over(container)
    if launch.proxy is not None:
        launch.proxy.listen()
    drive(start(container))
    logs.tell((), container.marks)


VERBS = {
    "run": Verb(
        "run",
        USAGE,
        "create and run a container",
        (
            *OPTIONS,
            DETACH,
            Option(("--keep",), "flag", help="do not delete the container after it exits"),
            Option(
                ("--no-subreaper",),
                "flag",
                help="disable the use of the subreaper used to reap reparented processes",
            ),
        ),
        run,
        least=1,
        most=1,
        about=f"{WHERE}\n   Its bundle is a directory with a config.json and a root filesystem.",
    )
}
