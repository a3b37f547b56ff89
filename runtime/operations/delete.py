"""delete: remove what create made."""

from __future__ import annotations

import _signal

from runtime import state
from runtime.errors import CgroupError
from runtime.waiting import Sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups import Cgroup
    from runtime.container import Container
    from runtime.waiting import Operation

# A killed process leaves its cgroup a little after its exit is seen. Together these are 3.2 s.
_RETRIES_S = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


def delete(container: Container) -> Operation[None]:
    """Remove a stopped container's cgroups and state (runtime.md, "delete").

    Processes that outlived init (it had no PID namespace of its own) are killed. InvalidState unless
    stopped or never started; CgroupError naming who holds a cgroup that will not go.
    """
    container.require("delete", state.STOPPED, state.CREATED)
    container.close()
    yield from remove_cgroup(container.cgroup)
    state.remove_directory(container.host.root, container.id)


def remove_cgroup(cgroup: Cgroup) -> Operation[None]:
    """Kill what is left in `cgroup` and remove it. CgroupError naming the holders if it stays busy."""
    for delay_s in _RETRIES_S:
        if delay_s:
            yield Sleep(delay_s)
        if cgroup.try_delete():
            return
        cgroup.signal_all(_signal.SIGKILL)
    holders = " ".join(map(str, cgroup.holders()[:16])) or "nobody that can be seen"
    raise CgroupError(f"remove cgroup {next(iter(cgroup.paths.values()), '')}: busy, held by pids {holders}")
