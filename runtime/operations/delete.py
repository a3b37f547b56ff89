"""delete: remove what create made."""

from __future__ import annotations

import _signal
import os

from runtime import rdt, state, trace
from runtime.errors import CgroupError, InvalidState, NotFound
from runtime.operations.kill import kill
from runtime.operations.lifecycle_hooks import run_poststop
from runtime.operations.load import cgroup_of, load, open_init
from runtime.rootfs.on_host import detach
from runtime.waiting import Readable, Sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.cgroup import Cgroup
    from runtime.container import Container, Host
    from runtime.waiting import Operation

_END_TIMEOUT_S = 10.0
# A killed process leaves its cgroup a little after its exit is seen. Together these are 3.2 s.
_RETRIES_S = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


def delete(container: Container) -> Operation[None]:
    """Remove a stopped container's cgroups and state (runtime.md, "delete").

    Processes that outlived init (it had no PID namespace of its own) are killed. InvalidState unless
    stopped or never started; CgroupError naming who holds a cgroup that will not go.
    """
    container.require("delete", state.STOPPED, state.CREATED)
    if container.status == state.CREATED:
        _end(container)  # its gate may be open to others than us
    container.close()
    trace.passed("end container")
    yield from remove_cgroup(container.cgroup)
    trace.passed("remove cgroup")
    if container.terms.hooks is not None:
        container.warnings += yield from run_poststop(container)
        trace.passed("run poststop hooks")
    if container.terms.root_on_host:
        detach(container.terms.root_on_host)
        trace.passed("take mounts away")
    if container.terms.rdt is not None:
        rdt.remove(*container.terms.rdt)
        trace.passed("remove resctrl group")
    state.remove_directory(container.host.root, container.id)
    trace.passed("remove state")


def delete_by_force(host: Host, container_id: str) -> Operation[tuple[str, ...]]:
    """Remove a container whatever state it is in, a damaged one too; warnings. NotFound if there is nothing at all.

    CgroupError when its cgroup stays busy: then its state is kept, for another try.
    """
    if not os.path.isdir(f"{host.root}/{state.check_id(container_id)}"):
        raise NotFound(f"container {container_id} does not exist")
    try:
        container = load(host, container_id)
    except NotFound as error:
        state.remove_directory(host.root, container_id)  # half made: that is all there is
        return (str(error),)
    except InvalidState as error:
        known = state.salvage(host.root, container_id)
        if known is not None:
            yield from _clear(host, known)
        state.remove_directory(host.root, container_id)
        return (str(error),)
    _end(container)
    try:
        yield Readable(container.pidfd.fileno(), _END_TIMEOUT_S) if not container.pidfd.closed else Sleep(0)
    except TimeoutError:
        pass  # stuck in the kernel: whether its cgroup goes will tell
    container.ended()
    yield from delete(container)
    return container.warnings


def _clear(host: Host, known: state.State) -> Operation[None]:
    """End init and all that is in its cgroups, and remove those, by what could be made out of a damaged state."""
    pidfd = open_init(known)
    if pidfd is not None:
        with pidfd:
            _signal.pidfd_send_signal(pidfd.fileno(), _signal.SIGKILL)
            try:
                yield Readable(pidfd.fileno(), _END_TIMEOUT_S)
            except TimeoutError:
                pass  # stuck in the kernel: whether its cgroup goes will tell
    yield from remove_cgroup(cgroup_of(host, known))


def _end(container: Container) -> None:
    """SIGKILL for init; it may have ended."""
    try:
        kill(container, _signal.SIGKILL)
    except NotFound:
        pass


def remove_cgroup(cgroup: Cgroup) -> Operation[None]:
    """Kill what is left in `cgroup` and remove it. CgroupError naming the holders if it stays busy."""
    for delay_s in _RETRIES_S:
        if delay_s:
            yield Sleep(delay_s)
        if (yield from cgroup.deleting()):
            return
        cgroup.signal_all(_signal.SIGKILL)
    holders = " ".join(map(str, cgroup.holders()[:16])) or "nobody that can be seen"
    raise CgroupError(f"remove cgroup {next(iter(cgroup.paths.values()), '')}: busy, held by pids {holders}")
