"""The only door to the kernel that Python's own modules do not open: calls of C are made in this package alone.

    ffi          the part of ctypes that we use
    libc         calling conventions: prototypes, errno, raw system calls
    constants    numbers from the kernel's headers, with the version that brought them
    process      clone3, setns, unshare, pidfds, prctl, prlimit, close_range
    fds          owned file descriptors, fds over sockets, sealed memfds
    image sharing packing    memory that a process shares with those it forks
    mount beneath    the new mount API, openat2
    capability seccomp sched keyring bpf netlink    one kernel interface each

Wrappers keep the man page's name, are typed, and raise OSError with the call's name in its text.
"""
