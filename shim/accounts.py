"""What a container has used and what it was killed for: asked while it runs, and kept when it has ended.

The last counters are read as soon as init is known to have ended, while the cgroup is still there: containerd
asks for them then, to find out whether the kernel has killed something for want of memory.
"""

from __future__ import annotations

import _signal

from runtime.errors import describe
from shim import stats
from shim.api.events import TaskOOM
from shim.exits import exit_code
from shim.log import DEBUG
from shim.oom import OomWatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.cgroup import Cgroup
    from shim.api import types
    from shim.journal import Oom
    from shim.pod import Pod

# The exit of a process that was killed by SIGKILL, and of a shell whose child was.
KILLED = 128 + _signal.SIGKILL


class Accounts:
    """Of one container. Whoever makes it calls `close`."""

    def __init__(self, pod: Pod, container_id: str, cgroup: Cgroup) -> None:
        self._pod = pod
        self._id = container_id
        self._cgroup = cgroup
        self._last: types.Any | None = None
        self._oom = OomWatch(pod.loop, pod.host.layout, cgroup, self._killed)

    def _killed(self) -> None:
        self._pod.events.publish(TaskOOM(self._id))

    def has_killed(self) -> bool:
        """Whether the kernel has killed something of it for want of memory, as far as is known."""
        return self._oom.kills > 0

    def counters(self) -> types.Any:
        """What it uses, in an Any of cgroups.v1.Metrics or cgroups.v2.Metrics; of an ended one the last. OSError."""
        return self._last or stats.read(self._cgroup)

    def count_up(self) -> None:
        """Init has ended: read the counters for the last time, before systemd removes the cgroup of an empty scope.

        Kills that nobody has heard of yet are told now, before the exit is.
        """
        self._oom.look()
        try:
            self._last = stats.read(self._cgroup)
        except Exception as error:  # whatever it is, it is no reason to keep an exit from being told
            self._pod.log.write(DEBUG, f"counters of container {self._id}: {describe(error)}")
            if self._oom.kills:
                self._last = stats.kills_only(self._pod.host.layout, self._oom.kills)

    def oom_of_exec(self, status: int) -> Oom | None:
        """The kill for want of memory that ended an exec with the wait status `status`, if that was it."""
        return self._oom.claim() if exit_code(status) == KILLED else None

    def oom_of_init(self, status: int) -> Oom | None:
        """The same for init, with which the container ends."""
        return self._oom.last if exit_code(status) == KILLED else None

    def close(self) -> None:
        """Stop watching."""
        self._oom.close()
