"""start: let the init of a created container run its program."""

from __future__ import annotations

from runtime import operations, state
from runtime.cli.arguments import Verb
from runtime.cli.host import container
from runtime.cli.notify import Proxy
from runtime.errors import InvalidState
from runtime.waiting import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cli.arguments import Call

_REFUSED = {
    state.STOPPED: "cannot start a container that has stopped",
    state.RUNNING: "cannot start an already running container",
}


def start(call: Call) -> int:
    """Open the container's start gate; with NOTIFY_SOCKET, wait until it says that it is ready."""
    found = container(call)
    _require_created(found.status)
    with run(operations.lock(found.host, found.id)):
        found = operations.load(found.host, found.id)  # as it is now that nobody else works on it
        _require_created(found.status)
        proxy = Proxy.for_container(found.directory())
        if proxy is not None:
            proxy.listen()
        run(operations.start(found))
    if proxy is not None:
        proxy.await_ready(found.pid, found.pidfd.fileno())
    return 0


def _require_created(status: str) -> None:
    if status != state.CREATED:
        raise InvalidState(_REFUSED.get(status, f"cannot start a container in the {status} state"))


VERBS = {
    "start": Verb(
        "start",
        "<container-id>",
        "executes the user defined process in a created container",
        (),
        start,
        least=1,
        most=1,
        about="The start command executes the user defined process in a created container.",
    )
}
