"""The staged shape: main, 1:INTER and 2:INIT as three processes, as runc and youki do it.

It is needed where a user namespace stands between what stage 1 and stage 2 may do, and for a caller
who is not root; elsewhere it is the reference that the direct shape is tested against.
"""

from __future__ import annotations

from runtime.stages.channel import channel_pair
from runtime.stages.clone import INIT, INTER, clone_stage
from runtime.stages.direct import Channels

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.linux.fds import OwnedFd
    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step


def clone_in_stages(
    run_inter: Callable[[Step, Channel, Callable[[], tuple[int, int]]], None],
    run_init: Callable[[Step, Channel], None],
    keep: tuple[int, ...],
    init_keep: Sequence[int],
    born_in: OwnedFd | None,
    sibling: bool = False,
) -> Channels:
    """Clone the intermediate process, which clones init. OSError of clone3(2), with nothing left open."""
    near_inter, far_inter = channel_pair("main", INTER)
    near_init, far_init = channel_pair("main", INIT)

    def clone_init() -> tuple[int, int]:
        # A sibling: stage 0, not the intermediate process, must be able to wait for it.
        pid, pidfd = clone_stage(
            INIT, lambda step: run_init(step, far_init), far_init, tuple(init_keep), sibling=True
        )
        far_init.close()
        return pid, pidfd

    try:
        pid, pidfd = clone_stage(
            INTER,
            lambda step: run_inter(step, far_inter, clone_init),
            far_inter,
            (*keep, far_init.fileno()),
            sibling=sibling,
            cgroup_fd=born_in.fileno() if born_in else -1,
        )
    except OSError:
        near_inter.close()
        near_init.close()
        raise
    finally:
        far_inter.close()
        far_init.close()
    return Channels(pid, pidfd, near_init, near_inter)
