"""start: open the start gate of a created container."""

from __future__ import annotations

import _signal

from runtime import state
from runtime.errors import ManorError, NotFound
from runtime.operations.gate import knock_to_start
from runtime.operations.kill import kill
from runtime.operations.lifecycle_hooks import run_poststart
from runtime.stages.stage0_parent import STAGE_TIMEOUT_S, Launched, start_landlord
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
        # Made by another process: we come to the gate from outside.
        launched = Launched(
            container.pid, container.pidfd, knock_to_start(container.directory(), container.id)
        )
    timeline = Timeline()
    container.become(state.RUNNING)
    container.start_gate = None
    kept = container.terms.hooks
    patience_s = None if kept is not None and kept.start_container else STAGE_TIMEOUT_S
    try:
        timeline.mark("ask to start")
        yield from start_landlord(launched, patience_s)
    finally:
        launched.channel.close()
    timeline.mark("execute")
    if kept is not None and kept.poststart:
        yield from _run_poststart(container)
        timeline.mark("run poststart hooks")
    container.marks += timeline.marks()


def _run_poststart(container: Container) -> Operation[None]:
    try:
        yield from run_poststart(container)
    except ManorError:
        # runtime.md, "Lifecycle": the container is stopped, and the error told.
        try:
            kill(container, _signal.SIGKILL)
        except NotFound:
            pass  # it has ended by itself meanwhile
        raise
