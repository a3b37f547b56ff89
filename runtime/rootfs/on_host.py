"""What a container without a mount namespace of its own leaves on the host: the mounts at and below its root.

A mount namespace ends with its last process and takes its mounts along. These do not, so they are taken away when
the container is deleted, or could not be made.
"""

from __future__ import annotations

import errno

from runtime.linux import mount as m
from runtime.rootfs.pivot import unescape


def detach(root: str) -> None:
    """Take away the mount that `apply_mounts` has put on the directory `root`, with all that is below it.

    Whether there is one is read from /proc/self/mountinfo: ours shows what it covers once more. A root that the
    caller had mounted stays. OSError of umount2(2).
    """
    places = _mounted_on(root)
    if not places:
        return
    covered = places[-2] if len(places) > 1 else None
    _device, inside = places[-1]
    # With nothing mounted below it, ours is a directory further down in the file system that `root` lies on.
    ours = (
        places[-1] == covered if covered is not None else inside != "/" and root.endswith(inside.rstrip("/"))
    )
    if ours:
        try:
            m.umount2(root, m.MNT_DETACH | m.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.EINVAL:  # gone meanwhile
                raise


def _mounted_on(root: str) -> list[tuple[str, str]]:
    """Device and place in its file system of every mount on `root`, the uppermost last."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ")
            if unescape(fields[4]) == root:
                found.append((fields[2], unescape(fields[3])))
    return found
