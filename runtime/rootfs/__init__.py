"""The container's file system: decided first, then made, entered and closed off.

    plan      pure: RootfsPlan from Spec, bundle and CgroupView; mount options mean something here
    apply     in the new mount namespace, still on the host's root: propagation, root, mounts, devices
    filesystem  a new one, detached, however long its options are
    device_plan  pure: which nodes
    devices   nodes, symlinks and the console's place in /dev
    copy_up   what an image has where a tmpfs is going to be
    id_map    id-mapped mounts, and sources that only the host's side can open
    options   what the words in a mount's option list mean
    pivot     make it the root and drop the old one
    on_host   taking away what a container without a mount namespace leaves
    protect   on the new root: read-only and masked paths, deferred read-only mounts

Stage 2 calls, in this order:

    mounted = apply_mounts(plan)    # takes the umask away; MountedRoot owns the fds that the next steps need
    pivot_into(mounted)
    make_cwd(mounted)
    protect(mounted)                # sets the umask the process is to have, closes what is left

Every path below the root is resolved by openat2 inside it and used as a file descriptor; mounts are made
detached and moved onto such a descriptor. A symlink in the image can therefore choose a place inside the
root, never one outside, and nobody can swap a directory between our check and our mount.
"""
