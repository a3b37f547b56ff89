"""Who answers for the system calls of a container's processes: the agent that its seccomp profile names."""

from __future__ import annotations

from runtime import seccomp_notify, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.container import Terms
    from runtime.linux.fds import OwnedFd
    from runtime.waiting import Operation


def notify(
    said: Terms, container_id: str, bundle: str, status: str, landlord: int = 0
) -> Callable[[int, OwnedFd], Operation[None]] | None:
    """Hand the seccomp listener over to the agent that the profile names; None for a filter without one.

    `landlord` is the pid of init where it is a tenant's: the state is that of the container.
    """
    if said.listener is None:
        return None
    agent, metadata = said.listener

    def hand_over(pid: int, listener: OwnedFd) -> Operation[None]:
        shown = state.shown(said.oci_version, container_id, status, landlord or pid, bundle, said.annotations)
        message = seccomp_notify.process_state(pid, metadata, shown)
        yield from seccomp_notify.send(agent, message, listener.fileno())

    return hand_over
