"""0:MOUNT: opens on the host's side what a container's init may not, and gives it the mounts, made but not placed.

An id-mapped mount takes a right over the file system that is mounted, and in a user namespace root may not pass
every directory of the host's. So on init's request stage 0 clones a process with its own rights. That one enters the
container's mount namespace: a source may be a place below a mount that the container has been given before. It knows
the plan by birth, and init names the steps by number, so that nothing else can be asked of it. Nothing waits for it
but init, and that a minute at most: a source on a file server that is gone must not keep a container for ever.

    2:INIT                             main                              0:MOUNT
      │ ─ SourcesRequest (a socket) ────►│ clone, with that socket ─────────►│ make user namespaces, setns
      │ ─ SourceRequest(step) ──────────────────────────────────────────────►│
      │ ◄──────────────────────────────────────── Source (a mount's fd) ─────│
      │ end of file ────────────────────────────────────────────────────────►│ exit
"""

from __future__ import annotations

import os
import select
import time

from runtime.errors import MountError, StageError
from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd, close_all
from runtime.linux.process import setns
from runtime.rootfs.id_map import Sources
from runtime.stages.channel import Channel, ChannelClosed, channel_pair
from runtime.stages.clone import clone_stage
from runtime.stages.messages import Source, SourceRequest, SourcesRequest
from runtime.user_mapping import UserMapping, write_mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.rootfs.plan import RootfsPlan
    from runtime.stages.clone import Step

OPENER = "0:MOUNT"
HOLDER = "0:IDS"
TIMEOUT_S = 60.0


class HostsSources:
    """Init's side: asks for sources by the number of their step, all of them within TIMEOUT_S."""

    __slots__ = ("_channel", "_deadline", "_main")

    def __init__(self, main: Channel) -> None:
        self._main = main
        self._channel: Channel | None = None
        self._deadline = 0.0

    def open(self, number: int) -> OwnedFd:
        """The source of that step as a detached mount. StageError with what went wrong, MountError for no answer."""
        channel = self._channel or self._connect()
        try:
            channel.send(SourceRequest(number))
        except BrokenPipeError:
            pass  # it is gone, and has said why: that is to be read
        poll = select.poll()
        poll.register(channel.fileno(), select.POLLIN)
        if not poll.poll(max(self._deadline - time.monotonic(), 0) * 1000):
            raise MountError(f"the host did not open the sources of the mounts within {TIMEOUT_S:.0f} s")
        message, fds = channel.receive()
        if not isinstance(message, Source) or len(fds) != 1:
            close_all(fds)
            raise StageError("2:INIT", "read", f"message of {OPENER}", "a mount was expected")
        return fds[0]

    def _connect(self) -> Channel:
        near, far = channel_pair("2:INIT", OPENER)
        self._main.send(SourcesRequest(), (far.fileno(),))
        far.close()
        self._channel = near
        self._deadline = time.monotonic() + TIMEOUT_S
        return near

    def close(self) -> None:
        """No more will be asked."""
        if self._channel is not None:
            self._channel.close()


def launch_opener(plan: RootfsPlan, init_pidfd: OwnedFd, socket: OwnedFd) -> tuple[int, OwnedFd]:
    """Stage 0's side: clone the process that serves init on `socket`; (pid, pidfd). OSError of clone3(2)."""
    channel = Channel(socket, "2:INIT")
    keep = (init_pidfd.fileno(),)
    pid, pidfd = clone_stage(OPENER, lambda step: _serve(step, plan, init_pidfd, channel), channel, keep)
    return pid, OwnedFd(pidfd)


def _serve(step: Step, plan: RootfsPlan, init_pidfd: OwnedFd, init: Channel) -> None:
    step.begin("make user namespaces for id-mapped mounts")
    sources = Sources(plan.root, plan.steps, make_user_namespace)
    step.begin("join the mount namespace of the container")
    setns(init_pidfd.fileno(), c.CLONE_NEWNS)
    while True:
        step.begin("open mount source")
        try:
            request = init.expect(SourceRequest)
        except ChannelClosed:
            return
        with sources.open(request.step) as tree:
            init.send(Source(), (tree.fileno(),))


def make_user_namespace(uid_map: str, gid_map: str) -> OwnedFd:
    """A user namespace with these maps, in the kernel's format. OSError, MappingError.

    A child is born in it, hands it over and ends; the descriptor keeps it.
    """
    near, far = channel_pair(OPENER, HOLDER)
    try:
        pid, pidfd = clone_stage(HOLDER, lambda _step: _hold(far), far, (), c.CLONE_NEWUSER)
    finally:
        far.close()
    os.close(pidfd)
    try:
        _message, fds = near.receive()
        write_mapping(pid, UserMapping(uid_map, gid_map))
    finally:
        near.close()
        os.waitpid(pid, 0)
    return fds[0]


def _hold(main: Channel) -> None:
    with OwnedFd(os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)) as ours:
        main.send(Source(), (ours.fileno(),))
    try:
        main.receive()
    except ChannelClosed:
        pass  # the maps are written
