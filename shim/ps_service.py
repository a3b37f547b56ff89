"""What a shim says to `manor ps`: its containers and execs, also those that are in the middle of a start."""

from __future__ import annotations

import os
import time

from runtime import state
from shim.api import ps
from shim.open_calls import Method
from shim.process import CREATED
from shim.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.api.types import Empty
    from shim.container import Container
    from shim.pod import Pod
    from shim.process import Process
    from shim.ttrpc.connection import Call

STARTING = "starting"


class PsService:
    """One per shim."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod

    def methods(self) -> dict[str, Method]:
        """All of them, for the server."""
        return {"List": Method(ps.METHODS["List"][0], self.list)}

    def list(self, _request: Empty, _call: Call) -> ps.ListResponse:
        """Everything that there is now. Nothing is waited for, and no file is read."""
        now_ns = time.monotonic_ns()
        found = [
            ps.ProcessShown(
                container=container_id,
                status=state.CREATING,
                step=timeline.latest()[0],
                age_ms=_milliseconds(now_ns - timeline.began_ns()),
            )
            for container_id, timeline in self._pod.creating.items()
        ]
        for container in self._pod.containers():
            for process in (container.init, *container.execs.values()):
                found.append(_show(container, process, now_ns))
        sandbox = self._pod.sandbox
        return ps.ListResponse(os.getpid(), VERSION, "" if sandbox is None else sandbox.status, found)


def _show(container: Container, process: Process, now_ns: int) -> ps.ProcessShown:
    status, step = container.status(process), ""
    if process.starting is not None and status == CREATED:
        status, step = STARTING, process.starting.latest()[0]
    return ps.ProcessShown(
        container.id,
        process.exec_id,
        process.pid,
        process.start_time,
        status,
        step,
        _milliseconds(now_ns - process.asked_ns),
        process.exit_status,
    )


def _milliseconds(nanoseconds: int) -> int:
    return max(0, nanoseconds // 1_000_000)
