"""Numbers from the kernel's headers (include/uapi/linux), under their own names.

System call numbers from 424 on are the same on every architecture; older ones are looked up by machine.
"""

from __future__ import annotations

import os

_MACHINE = os.uname().machine
_OLD_SYSCALLS = {  # name: (x86_64, asm-generic: aarch64, riscv64, loongarch64)
    "clone": (56, 220),
    "rt_sigaction": (13, 134),
    "pivot_root": (155, 41),
    "seccomp": (317, 277),
    "bpf": (321, 280),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "set_mempolicy": (238, 237),
    "setgroups": (116, 159),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "capset": (126, 91),
    "capget": (125, 90),
    "io_setup": (206, 0),
    "io_destroy": (207, 1),
    "io_submit": (209, 2),
    "io_getevents": (208, 4),
}


def syscall_number(name: str) -> int:
    """The number of an older system call on this machine. KeyError for one that is not listed."""
    return _OLD_SYSCALLS[name][0 if _MACHINE == "x86_64" else 1]


SYS_open_tree = 428
SYS_move_mount = 429
SYS_fsopen = 430
SYS_fsconfig = 431
SYS_fsmount = 432
SYS_clone3 = 435  # Linux 5.3
SYS_close_range = 436  # Linux 5.9
SYS_openat2 = 437  # Linux 5.6
SYS_pidfd_getfd = 438  # Linux 5.6
SYS_mount_setattr = 442  # Linux 5.12

# sched.h
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWTIME = 0x00000080  # Linux 5.6
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000  # Linux 5.7, clone3 only

# prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_MM = 35
PR_SET_MM_MAP = 14
PR_SET_MM_MAP_SIZE = 15
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47

# close_range.h
CLOSE_RANGE_CLOEXEC = 4  # Linux 5.11

# wait.h
WALL = 0x40000000

# magic.h
PROC_SUPER_MAGIC = 0x9FA0
DEVPTS_SUPER_MAGIC = 0x1CD1
TMPFS_MAGIC = 0x01021994
RAMFS_MAGIC = 0x858458F6
