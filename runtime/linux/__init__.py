"""The only door to the kernel that Python's own modules do not open: calls of C are made in this package alone.

    ffi          the part of ctypes that we use
    libc         calling conventions: prototypes, errno, raw system calls
    constants    numbers from the kernel's headers, with the version that brought them
    process      clone3, setns, unshare, pidfds, prctl, prlimit, close_range
    procstat title    what /proc says of a process, and what ps shows of this one
    exe          the file that a process executes, exchanged while it runs
    fds          owned file descriptors, fds over sockets, sealed memfds
    image sharing packing    memory that a process shares with those it forks
    mount beneath    the new mount API, openat2
    trees aio    a directory removed with all that is in it; a sync that nobody has to wait for
    statx        which file a path leads to, without asking its server
    capability seccomp sched keyring bpf netlink    one kernel interface each

Wrappers keep the man page's name, are typed, and raise OSError with the call's name in its text.
"""
