"""The calls about container logs that this shim writes itself; the messages are `api.logs`'."""

from __future__ import annotations

from shim.api import logs
from shim.api.types import Empty
from shim.open_calls import Method

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.api.task import StateRequest
    from shim.pod import Pod
    from shim.tasks import Steps
    from shim.ttrpc.connection import Call


class LogService:
    """One per shim."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod

    def methods(self) -> dict[str, Method]:
        """All of them, for the server."""
        return {"Reopen": Method(logs.METHODS["Reopen"][0], self.reopen)}

    def reopen(self, request: StateRequest, _call: Call) -> Steps[Empty]:
        """Have a process's log go on in a new file."""
        yield from self._pod.find(request.id).process(request.exec_id).reopen_log()
        return Empty()
