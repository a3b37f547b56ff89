"""create: a container up to its start gate; `start` opens that."""

from __future__ import annotations

from runtime.cli import logs
from runtime.cli.arguments import Verb
from runtime.cli.launch import OPTIONS, USAGE, WHERE, Launch, discard
from runtime.errors import ManorError
from runtime.stages.plan import Stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cli.arguments import Call


def create(call: Call) -> int:
    """Make the container and leave it waiting; it has our own descriptors, or a terminal by the console socket."""
    try:
        launch = Launch(call, detach=True)
        container = launch.create(Stdio(0, 1, 2), gate=True)
        try:
            launch.hand_over(container)
        except BaseException:
            discard(container)
            raise
    except (ManorError, OSError) as error:
        return logs.fatal(f"{call.program} create failed: {logs.explain(error)}")
    logs.tell(container.warnings, container.marks)
    return 0


VERBS = {
    "create": Verb(
        "create",
        USAGE,
        "create a container",
        OPTIONS,
        create,
        least=1,
        most=1,
        about=f"{WHERE}\n"
        "   Its bundle is a directory with a config.json and a root filesystem; the program that the config\n"
        "   names is run by start.",
    )
}
