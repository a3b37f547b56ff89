"""start: open the start gate of a created container."""

from __future__ import annotations

from runtime import state, trace
from runtime.errors import StageError
from runtime.stages.stage0_parent import start_landlord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.container import Container
    from runtime.waiting import Operation


def start(container: Container) -> Operation[None]:
    """Let init execve (runtime.md, "start"). InvalidState unless created; StageError when the program can't be run."""
    container.require("start", state.CREATED)
    launched = container.start_gate
    if launched is None:
        raise StageError("main", "start", f"container {container.id}", "its start gate is closed")
    trace.take()
    trace.mark("start asked")
    container.become(state.RUNNING)
    container.start_gate = None
    try:
        yield from start_landlord(launched)
    finally:
        launched.channel.close()
    container.marks += tuple(trace.take())
