"""What a container without a mount namespace of its own leaves on the host: the mounts at and below its root.

A mount namespace ends with its last process and takes its mounts along. These do not, so they are taken away when
the container is deleted, or could not be made.
"""

from __future__ import annotations

import errno

from runtime.linux import mount as m
from runtime.rootfs.pivot import mountinfo, unescape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def detach(root: str) -> None:
    """Take away the mount that `apply_mounts` has put on the directory `root`, with all that is below it.

    Whether there is one is read from /proc/self/mountinfo. A root that the caller had mounted stays. OSError of
    umount2(2).
    """
    if is_bound_to_itself(root, _mounted_on(root)):
        try:
            m.umount2(root, m.MNT_DETACH | m.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.EINVAL:  # gone meanwhile
                raise


def is_bound_to_itself(root: str, places: Sequence[tuple[str, str]]) -> bool:
    """Whether the uppermost mount on `root` is one of ours: it shows what it covers once more.

    `places` are the mounts on it as mountinfo has them, device and place in its file system, the uppermost last.
    """
    if len(places) > 1:
        return places[-1] == places[-2]
    # With nothing mounted below it, ours is a directory further down in the file system that `root` lies on.
    return bool(places) and places[0][1] != "/" and root.endswith(places[0][1].rstrip("/"))


def _mounted_on(root: str) -> list[tuple[str, str]]:
    """Device and place in its file system of every mount on `root`, the uppermost last."""
    found = []
    with mountinfo() as file:
        for line in file:
            fields = line.split(" ")
            if unescape(fields[4]) == root:
                found.append((fields[2], unescape(fields[3])))
    return found
