"""kill: a signal for init, or for every process of the container."""

from __future__ import annotations

import _signal

from runtime import state
from runtime.errors import InvalidArgument, ManorError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.container import Container


def is_for_everyone(container: Container, number: int) -> bool:
    """Whether signal `number` for init means all its processes: SIGKILL, where the kernel does not end them with it."""
    return number == _signal.SIGKILL and not container.terms.init_is_first


def kill(container: Container, number: int, everyone: bool = False) -> None:
    """Send signal `number` to init, or with `everyone` to all processes in the container's cgroups.

    SIGKILL goes to all of them where there is no PID namespace that would end with init, as with runc. It thaws the
    container, whoever has frozen it: a v1 freezer keeps even the killed. NotFound ("process already finished") when
    init has ended and nobody else is meant, InvalidArgument for a signal that is none.
    """
    if not 1 <= number < _signal.NSIG:
        raise InvalidArgument(f"signal {number} does not exist")
    # A container that was made without any cgroup has nobody else that could be found.
    if (everyone or is_for_everyone(container, number)) and container.cgroup.paths:
        container.cgroup.signal_all(number)
    else:
        _signal_init(container, number)
    if number == _signal.SIGKILL:
        try:
            container.cgroup.thaw_all()
        except (ManorError, OSError):
            pass  # the signal has been sent; who is not frozen dies of it


def _signal_init(container: Container, number: int) -> None:
    if container.status == state.STOPPED:
        raise NotFound("process already finished")
    try:
        # By pidfd: the pid may be somebody else's the moment init is reaped.
        _signal.pidfd_send_signal(container.pidfd.fileno(), number)
    except ProcessLookupError:
        raise NotFound("process already finished") from None
