"""start: let the init of a created container run its program."""

from __future__ import annotations

from runtime import state
from runtime.cli.arguments import Verb
from runtime.cli.host import sole
from runtime.cli.notify import Proxy
from runtime.errors import InvalidState
from runtime.hooks import HookError
from runtime.operations.delete import delete_by_force
from runtime.operations.start import start as start_container
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
    lock, found = sole(call)
    with lock:
        _require_created(found.status)
        proxy = Proxy.for_container(found.directory())
        if proxy is not None:
            proxy.listen()
        try:
            run(start_container(found))
        except HookError:
            run(delete_by_force(found.host, found.id))  # runtime.md, "Lifecycle": as if it were deleted
            raise
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
