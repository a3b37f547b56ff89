"""The container's file system: decided first, then made, entered and closed off.

    plan      pure: RootfsPlan from Spec, bundle and CgroupView; mount options mean something here
    apply     in the new mount namespace, still on the host's root: propagation, root, mounts, devices
    devices   nodes, symlinks and the console's place in /dev
    pivot     make it the root and drop the old one
    protect   on the new root: read-only and masked paths, deferred read-only mounts

Stage 2 calls, in this order:

    mounted = apply_mounts(plan)    # takes the umask away; MountedRoot owns the fds that the next steps need
    pivot_into(mounted)
    protect(mounted)                # sets the umask the process is to have, closes what is left
    bind_console(slave_fd)          # only with a terminal: the slave comes from the container's own devpts

Every path below the root is resolved by openat2 inside it and used as a file descriptor; mounts are made
detached and moved onto such a descriptor. A symlink in the image can therefore choose a place inside the
root, never one outside, and nobody can swap a directory between our check and our mount.
"""

from runtime.rootfs.apply import MountedRoot, apply_mounts
from runtime.rootfs.devices import bind_console
from runtime.rootfs.pivot import pivot_into
from runtime.rootfs.plan import RootfsPlan, plan_rootfs
from runtime.rootfs.protect import protect

__all__ = [
    "MountedRoot",
    "RootfsPlan",
    "apply_mounts",
    "bind_console",
    "pivot_into",
    "plan_rootfs",
    "protect",
]
