"""start: open the start gate of a created container."""

from __future__ import annotations

from runtime import state
from runtime.errors import StageError
from runtime.stages.stage0_parent import start_landlord
from runtime.trace import Timeline

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
    timeline = Timeline()
    timeline.mark("ask to start")
    container.become(state.RUNNING)
    container.start_gate = None
    try:
        yield from start_landlord(launched)
    finally:
        launched.channel.close()
    timeline.mark("execute")
    container.marks += timeline.marks()
