"""pause, resume and update: what changes a container from outside."""

from __future__ import annotations

from runtime import state
from runtime.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.container import Container
    from runtime.spec.model import Resources
    from runtime.waiting import Operation

FREEZE_TIMEOUT_S = 10.0


def pause(container: Container) -> Operation[None]:
    """Freeze every process of the container; returns when the kernel says that it is done.

    Or the init of one that is not started yet, which cannot be started then.
    """
    container.require("pause", state.CREATED, state.RUNNING)
    container.cgroup.freeze()
    try:
        yield from container.cgroup.wait_frozen(FREEZE_TIMEOUT_S)
    except BaseException:
        container.cgroup.thaw()  # half frozen is worse than running
        raise
    container.become(state.PAUSED)


def resume(container: Container) -> None:
    """Thaw the container."""
    container.require("resume", state.PAUSED)
    container.cgroup.thaw()
    container.become(state.RUNNING if container.start_gate is None else state.CREATED)


def update(container: Container, resources: Resources) -> Operation[None]:
    """Change the limits that `resources` names. CgroupError naming field, file and value."""
    container.require("update", state.CREATED, state.RUNNING, state.PAUSED)
    yield from container.cgroup.changing(resources)
    if resources.cpu is not None and resources.cpu.cpus is not None:
        container.terms = replace(container.terms, cpuset=resources.cpu.cpus)
