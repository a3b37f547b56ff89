"""One process of a container as containerd sees it: init or an exec, from its request to its deletion.

Holds what is the same for both: state, streams, exit and who waits for it. How each comes into being and
what its end means for the others is `container`'s.
"""

from __future__ import annotations

import _signal
import os
import stat
import time

from runtime.errors import InvalidArgument
from shim.api.events import TaskExit
from shim.api.types import timestamp
from shim.console import open_console
from shim.errors import failed_precondition, not_found
from shim.journal import exit_of
from shim.logger import Owner
from shim.stdio import open_pipes
from shim.tasks import Mutex, Outcome, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.leaf import Leaf
    from runtime.container import Tenant
    from runtime.linux.fds import OwnedFd
    from runtime.spec.model import Process as ProcessSpec
    from runtime.trace import Timeline
    from runtime.waiting import Operation
    from shim.api.types import Timestamp
    from shim.exits import ExitWatch
    from shim.journal import Exit, Oom
    from shim.pod import Pod
    from shim.stdio import ProcessIo, Streams
    from shim.tasks import Steps

CREATED = "created"
RUNNING = "running"
STOPPED = "stopped"

# What containerd calls an exit status that nobody knows.
UNKNOWN_EXIT = 255
# How long the client of a stream may take to read what a process said before its end.
SETTLE_TIMEOUT_S = 10.0


class Process:
    """`exec_id` is "" for init. `spec` is an exec's own; init's is in the container's config.

    `io_owner`, a uid and a gid of the host's, shall own the pipes of its streams: in a user namespace it could open
    none of root's by /dev/stdout.
    """

    def __init__(
        self, pod: Pod, container_id: str, exec_id: str, streams: Streams, spec: ProcessSpec | None = None
    ) -> None:
        self.pod = pod
        self.container_id = container_id
        self.exec_id = exec_id
        self.streams = streams
        self.spec = spec
        self.status = CREATED
        self.pid = 0
        self.start_time = 0
        self.pidfd: OwnedFd | None = None
        self.io: ProcessIo | None = None
        self.exit_status = 0
        self.exited_at_ns = 0
        self.exit: Exit | None = None  # as it is in the journal
        self.exited = Outcome()
        self.asked_ns = time.monotonic_ns()
        self.starting: Timeline | None = None  # while it is
        self.mutex = Mutex()
        self.watch: ExitWatch | None = None
        self.io_owner = (0, 0)
        self._asked = False  # for its state, since its start
        self.leaf: Leaf | None = None  # an exec's own cgroup, until it has ended
        self.leaf_gone: Outcome | None = None
        self.released = False
        self.killed = False  # with all that came of it
        self.started_ns = 0  # CLOCK_MONOTONIC
        self.traceparent = ""  # of who has started it

    @property
    def id(self) -> str:
        """What events call it: an exec by its own id, init by its container's."""
        return self.exec_id or self.container_id

    def exited_at(self) -> Timestamp | None:
        """When it ended; None if it has not."""
        return timestamp(self.exited_at_ns) if self.exited_at_ns else None

    def open_io(self, terminal: bool) -> Operation[ProcessIo]:
        """Open its streams. StdioError, SinkError, LoggerError, Unsupported …"""
        open_streams = open_console if terminal else open_pipes
        owner = Owner(self.id, self.pod.namespace)
        pod = self.pod
        self.io = yield from open_streams(pod.loop, self.streams, owner, pod.log, pod.exchange)
        if any(self.io_owner):
            for number in self.io.child_fds():
                if number >= 0 and stat.S_ISFIFO(os.fstat(number).st_mode):
                    os.fchown(number, *self.io_owner)
        return self.io

    def started(self, tenant: Tenant) -> None:
        """It is the exec `tenant`, whose descriptors are ours from now on, but for the console."""
        self.pid, self.start_time, self.pidfd = tenant.pid, tenant.start_time, tenant.pidfd
        self.leaf = tenant.leaf
        self.started_ns = time.monotonic_ns()

    def note_exit(self, wait_status: int, when_ns: int, oom: Oom | None = None) -> Exit:
        """It has ended: put that on record, once, whenever it is that somebody is told."""
        if self.exit is None:
            self.exit = exit_of(
                self.container_id, self.exec_id, self.pid, self.start_time, wait_status, when_ns, oom
            )
            self.pod.journal.append(self.exit)
        return self.exit

    def ended(self, wait_status: int, when_ns: int, oom: Oom | None = None) -> None:
        """It has ended: say so to everybody who waits, and to containerd."""
        self.watch = None
        self.status = STOPPED
        self.exit_status = self.note_exit(wait_status, when_ns, oom).code
        self.exited_at_ns = when_ns
        if self.io is not None:
            self.io.process_ended()
        self.pod.events.publish(
            TaskExit(self.container_id, self.id, self.pid, self.exit_status, self.exited_at())
        )
        self.exited.set()

    def must_settle(self) -> bool:
        """True if it is an init that has ended, and a client of its streams has not taken everything yet.

        Not for who asks first: that is containerd's own Start, and its client may read only after that.
        """
        if self.exec_id or self.status == CREATED:
            return False
        asked_before, self._asked = self._asked, True
        return asked_before and self.status == STOPPED and self.io is not None and self.io.is_awaited()

    def settle(self, patience_s: float) -> Steps[None]:
        """Give that client time, but not more than `patience_s`.

        containerd asks for the state of a task before it deletes it, and lets go of its streams in between, whatever
        is still on its way in them.
        """
        if self.io is not None:
            yield from within(self.pod.loop, self.io.drained, min(SETTLE_TIMEOUT_S, patience_s))

    def never_started(self) -> None:
        """Its start has failed: there will be no exit, and whoever waits for one is told that it is unknown."""
        self.status = STOPPED
        self.exit_status = UNKNOWN_EXIT
        self.close()
        self.exited.set()

    def reopen_log(self) -> Steps[None]:
        """Go on in a new file, its log having been moved. FailedPrecondition where there is none, SinkError."""
        if self.io is None:
            raise failed_precondition(f"process {self.id} has no log: it is not running")
        yield from self.io.reopen()

    def require_running(self) -> OwnedFd:
        """Its pidfd. FailedPrecondition before its start, NotFound after its end."""
        if self.status == CREATED:
            raise failed_precondition(f"process {self.id} not created: failed precondition")
        if self.status == STOPPED or self.pidfd is None:
            raise not_found("process already finished")
        return self.pidfd

    def signal(self, number: int) -> None:
        """Send it signal `number`. FailedPrecondition before its start, NotFound after its end."""
        if not 1 <= number < _signal.NSIG:
            raise InvalidArgument(f"signal {number} does not exist")
        pidfd = self.require_running()
        try:
            _signal.pidfd_send_signal(pidfd.fileno(), number)
        except ProcessLookupError:
            raise not_found("process already finished") from None

    def close(self) -> None:
        """Give back what it holds."""
        if self.watch is not None:
            self.watch.cancel()
            self.watch = None
        if self.io is not None:
            self.io.close()
            self.io = None
        if self.pidfd is not None:
            self.pidfd.close()
            self.pidfd = None
        if self.leaf is not None:
            self.leaf.close()
            self.leaf = None
