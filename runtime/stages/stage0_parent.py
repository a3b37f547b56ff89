"""Stage 0: the parent's side. Clone, answer what the stages ask, wait until one says it is ready.

We are in the shim or in the command line. Our job is whatever needs the host's view: id maps, limits,
hooks. Everything that waits is yielded (`runtime.waiting`), so no stage can block a pod. Who is cloned, and which of
the two shapes does stage 1's work, is decided by `landlord` and `tenant`; all hold the same conversation.
"""

from __future__ import annotations

import _signal
import os
import select

from runtime import trace
from runtime.cgroups.joining import OWN
from runtime.errors import ManorError, StageError
from runtime.linux.fds import close_all
from runtime.linux.process import pidfd_getfd
from runtime.stages.messages import (
    HostDone,
    HostRequest,
    InitPid,
    LimitsSet,
    Listener,
    ListenerAt,
    ListenerTaken,
    MappingRequest,
    MappingWritten,
    Ready,
    SourcesRequest,
    Start,
)
from runtime.waiting import Claim, Exit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.linux.fds import OwnedFd
    from runtime.record import Record
    from runtime.stages.channel import Channel
    from runtime.stages.direct import Channels
    from runtime.trace import Timeline
    from runtime.waiting import Operation

# A stage that neither answers nor ends in this time is stuck (a frozen cgroup, a dead file server).
STAGE_TIMEOUT_S = 120.0
BURIAL_TIMEOUT_S = 5.0


class HostSide:
    """What stage 0 does for a stage on its request; made by the operation, called with init's pid.

    `set_limits`: rlimits and oom_score_adj; returns warnings. `write_mapping`: the uid and gid maps. `attend`: what
    must be done while the mounts stand and the root is the host's (devices, hooks); gives the text of HostDone.
    `confine`: limits how many processes the container may have, once init is born and its stages have ended.
    `notify`: takes the notification descriptor of the process's seccomp filter. `timeline` takes everybody's marks.
    `patience_s` is how long a stage may be silent; None where it runs hooks, which have time limits of their own.
    `open_sources` clones the process that opens mount sources for init (`mount_sources`), `opener` once it exists.
    """

    __slots__ = (
        "attend",
        "confine",
        "notify",
        "open_sources",
        "opener",
        "patience_s",
        "set_limits",
        "timeline",
        "write_mapping",
    )

    def __init__(
        self,
        timeline: Timeline,
        set_limits: Callable[[int], tuple[str, ...]],
        write_mapping: Callable[[int], Operation[None]] | None = None,
        attend: Callable[[int], Operation[str]] | None = None,
        notify: Callable[[int, OwnedFd], Operation[None]] | None = None,
    ) -> None:
        self.timeline = timeline
        self.set_limits, self.write_mapping = set_limits, write_mapping
        self.attend, self.notify = attend, notify
        self.confine: Callable[[], Operation[None]] | None = None
        self.patience_s: float | None = STAGE_TIMEOUT_S
        self.open_sources: Callable[[OwnedFd, OwnedFd], tuple[int, OwnedFd]] | None = None
        self.opener: tuple[int, OwnedFd] | None = None


class Launched:
    """A stage 2 that is ready: behind the start gate (a landlord), or past its execve (a tenant)."""

    __slots__ = ("cgroup", "cgroup_why", "channel", "console", "pid", "pidfd", "warnings")

    def __init__(self, pid: int, pidfd: OwnedFd, channel: Channel) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.channel = channel
        self.console: OwnedFd | None = None
        self.warnings: tuple[str, ...] = ()
        self.cgroup, self.cgroup_why = OWN, ""

    def close(self) -> None:
        """Close everything that was not taken over; the process is not touched."""
        self.channel.close()
        self.pidfd.close()
        if self.console is not None:
            self.console.close()


def start_landlord(launched: Launched, patience_s: float | None = STAGE_TIMEOUT_S) -> Operation[None]:
    """Open the start gate and wait until execve has succeeded. StageError with the reason if it did not.

    `patience_s`: as that of HostSide.
    """
    try:
        launched.channel.send(Start())
    except BrokenPipeError:
        raise StageError("main", "start", f"process {launched.pid}", "it has ended already") from None
    yield from await_execve(launched, patience_s)


def await_execve(launched: Launched, patience_s: float | None = STAGE_TIMEOUT_S) -> Operation[None]:
    """Until the channel ends, which execve does (close-on-exec); a failed one says so before."""
    yield from launched.channel.ended(patience_s)


def clone_failure(error: OSError) -> StageError:
    """What the caller is told of a clone that failed."""
    return StageError("main", "clone", "", os.strerror(error.errno or 0), error.errno or 0)


def converse(channels: Channels, host: HostSide) -> Operation[Launched]:
    """Answer requests until Ready; on any failure, the stages are killed and waited for, and it is raised."""
    child, pidfd = channels.pid, channels.pidfd
    yield Claim(child)
    launched: Launched | None = None
    try:
        host.timeline.mark("clone")
        if channels.inter is not None:
            yield from _converse_with_intermediate(channels, host)
        launched = Launched(channels.pid, channels.pidfd, channels.init)
        if host.confine is not None:
            if child != channels.pid:
                yield Exit(child)  # until it is reaped it counts
                pidfd.close()
                child, pidfd = channels.pid, channels.pidfd
            yield from host.confine()
            trace.passed("limit processes")
        maps = channels.inter is None and host.write_mapping is not None
        yield from _converse_with_init(launched, host, maps)
    except BaseException as failure:
        channels.init.close()
        if channels.inter is not None:
            channels.inter.close()
        if launched is not None and launched.console is not None:
            launched.console.close()
        if not isinstance(failure, GeneratorExit):  # else nobody drives us any more
            yield from _bury_opener(host)
            yield from bury(channels.pid, channels.pidfd)
            if child != channels.pid:
                yield from bury(child, pidfd)
        channels.pidfd.close()
        pidfd.close()
        raise
    if child != channels.pid:
        yield Exit(child)
        pidfd.close()
    return launched


def _converse_with_intermediate(channels: Channels, host: HostSide) -> Operation[None]:
    inter = channels.inter
    assert inter is not None
    while True:
        message, fds = yield from inter.received(_INTER_REQUESTS, host.patience_s)
        if isinstance(message, InitPid):
            break
        if isinstance(message, MappingRequest):
            yield from _map(host, channels.pid)
            inter.send(MappingWritten())
        else:  # init's part, where init is not to be born before (`shared_pids`)
            yield from _answer(Launched(channels.pid, channels.pidfd, inter), host, message, fds)
    yield Claim(message.pid)
    if len(fds) != 1:
        close_all(fds)
        raise StageError("main", "read", "message of 1:INTER", "init's pid came without its pidfd")
    channels.pid, channels.pidfd = message.pid, fds[0]
    inter.close()


def _map(host: HostSide, pid: int) -> Operation[None]:
    if host.write_mapping is None:
        raise StageError("main", "map user namespace", f"of process {pid}", "no mappings are given")
    yield from host.write_mapping(pid)
    trace.passed("map user namespace")


def _converse_with_init(launched: Launched, host: HostSide, maps: bool) -> Operation[None]:
    """`maps`: this stage makes a user namespace by itself, and can go no step before that is mapped."""
    channel = launched.channel
    try:
        warnings = host.set_limits(launched.pid)
    except ManorError:
        if _has_ended(launched.pidfd):  # then that is what failed, and not the limits
            yield from channel.received((Ready,), STAGE_TIMEOUT_S)
        raise
    trace.passed("set limits")
    if maps:
        yield from channel.received((MappingRequest,), STAGE_TIMEOUT_S)
        yield from _map(host, launched.pid)
        channel.send(MappingWritten())
    if host.attend is None:  # else it waits for HostDone first
        _tell(channel, LimitsSet())
    while True:
        message, fds = yield from channel.received(_REQUESTS, host.patience_s)
        if isinstance(message, Ready):
            break
        yield from _answer(launched, host, message, fds)
        if isinstance(message, HostRequest):
            _tell(channel, LimitsSet())
    if fds:
        launched.console = fds[0]
    yield from _bury_opener(host)
    host.timeline.mark("hear that it is ready")
    host.timeline.add(message.marks)
    launched.warnings = warnings + message.warnings


def _tell(channel: Channel, message: Record) -> None:
    try:
        channel.send(message)
    except BrokenPipeError:
        pass  # it failed already; its report is in the channel and says more than we know


_INTER_REQUESTS = (MappingRequest, SourcesRequest, HostRequest, InitPid)
_REQUESTS = (SourcesRequest, HostRequest, ListenerAt, Listener, Ready)


def _answer(launched: Launched, host: HostSide, message: Record, fds: list[OwnedFd]) -> Operation[None]:
    if isinstance(message, HostRequest):
        said = "" if host.attend is None else (yield from host.attend(launched.pid))
        trace.passed("attend to the host's part")
        host.attend = None
        _tell(launched.channel, HostDone(said))
    elif isinstance(message, SourcesRequest) and len(fds) == 1 and host.open_sources and host.opener is None:
        with fds[0] as socket:
            host.opener = host.open_sources(launched.pidfd, socket)
        yield Claim(host.opener[0])
    elif isinstance(message, ListenerAt) and host.notify is not None and not fds:
        taken = _take(launched.pidfd, message.number)
        _tell(launched.channel, ListenerTaken(int(taken is not None)))
        if taken is not None:
            with taken as listener:
                yield from host.notify(launched.pid, listener)
    elif isinstance(message, Listener) and host.notify is not None and len(fds) == 1:
        with fds[0] as listener:
            yield from host.notify(launched.pid, listener)
    else:
        close_all(fds)
        raise StageError("main", "read", "message of 2:INIT", "a descriptor that nobody asked for")


def _take(pidfd: OwnedFd, number: int) -> OwnedFd | None:
    """Descriptor `number` of a process; None where that cannot be: rootless, without CAP_SYS_PTRACE, or it is gone."""
    try:
        return pidfd_getfd(pidfd.fileno(), number)
    except OSError:
        return None


def _bury_opener(host: HostSide) -> Operation[None]:
    """It has nothing more to do; if it hangs at a source, that must not keep us."""
    if host.opener is not None:
        (pid, pidfd), host.opener = host.opener, None
        with pidfd:
            yield from bury(pid, pidfd)


def _has_ended(pidfd: OwnedFd) -> bool:
    poll = select.poll()
    poll.register(pidfd.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def bury(pid: int, pidfd: OwnedFd) -> Operation[None]:
    """Kill a stage and wait for it, so that nothing of a failed start is left running.

    One that is stuck in the kernel, or frozen, cannot be waited for: after a while it is the reaper's.
    """
    try:
        _signal.pidfd_send_signal(pidfd.fileno(), _signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        yield Exit(pid, BURIAL_TIMEOUT_S)
    except TimeoutError:
        pass
