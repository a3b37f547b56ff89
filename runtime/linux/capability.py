"""Capability sets as bit masks (bit n is capability n), read and set for the calling thread.

capget(2) and capset(2) in their version 3, the bounding and the ambient set through prctl(2), and the
names. Which sets a container gets is `runtime/credentials.py`'s business.
"""

from __future__ import annotations

import errno
import os
import struct

from runtime.linux import constants as c
from runtime.linux.ffi import create_string_buffer
from runtime.linux.libc import syscall
from runtime.linux.process import prctl

_VERSION_3 = 0x20080522  # 64 bits a set; Linux 2.6.26
_HEADER = struct.Struct("Ii")
_DATA = struct.Struct("6I")  # effective, permitted, inheritable: low halves, then high halves
_LOW = 0xFFFFFFFF

_PR_CAPBSET_READ = 23
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4

# linux/capability.h, in the order of their numbers.
NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",  # Linux 5.9
)
NUMBERS = {name: number for number, name in enumerate(NAMES)}

_SYS_capget = c.syscall_number("capget")
_SYS_capset = c.syscall_number("capset")

_last: int | None = None


def last_capability() -> int:
    """The highest capability this kernel knows, from /proc/sys/kernel/cap_last_cap, read once in a process.

    Asked for first before any fork: in a container that file is not ours. Without it the kernel is probed.
    """
    global _last
    if _last is None:
        try:
            fd = os.open("/proc/sys/kernel/cap_last_cap", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _last = int(os.read(fd, 16))
            finally:
                os.close(fd)
        except (OSError, ValueError):
            _last = max(number for number in range(64) if in_bounding_set(number) is not None)
    return _last


def describe(mask: int) -> str:
    """The names in `mask`, for messages; a capability without a name by its number."""
    numbers = [number for number in range(64) if mask >> number & 1]
    return " ".join(NAMES[number] if number < len(NAMES) else str(number) for number in numbers)


def capget() -> tuple[int, int, int]:
    """capget(2) of the calling thread: (effective, permitted, inheritable)."""
    data = create_string_buffer(_DATA.size)
    syscall("capget", _SYS_capget, _HEADER.pack(_VERSION_3, 0), data)
    low_e, low_p, low_i, high_e, high_p, high_i = _DATA.unpack(data.raw)
    return low_e | high_e << 32, low_p | high_p << 32, low_i | high_i << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of the calling thread; EPERM for sets that are larger than capabilities(7) allows.

    It takes away ambient capabilities that are not both permitted and inheritable afterwards.
    """
    masks = (effective, permitted, inheritable)
    data = _DATA.pack(*(mask & _LOW for mask in masks), *(mask >> 32 for mask in masks))
    syscall("capset", _SYS_capset, _HEADER.pack(_VERSION_3, 0), data)


def in_bounding_set(number: int) -> bool | None:
    """PR_CAPBSET_READ: whether an execve can still gain capability `number`; None if there is no such one."""
    try:
        return bool(prctl(_PR_CAPBSET_READ, number))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise


def drop_bounding(number: int) -> None:
    """PR_CAPBSET_DROP for capability `number`, for good; EPERM without CAP_SETPCAP."""
    prctl(c.PR_CAPBSET_DROP, number)


def clear_ambient() -> None:
    """PR_CAP_AMBIENT_CLEAR_ALL (Linux 4.3)."""
    prctl(c.PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def raise_ambient(number: int) -> None:
    """PR_CAP_AMBIENT_RAISE for capability `number`; EPERM unless it is permitted and inheritable."""
    prctl(c.PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)


def set_keep_capabilities(keep: bool) -> None:
    """PR_SET_KEEPCAPS: whether the permitted set survives a change from uid 0 to another uid."""
    prctl(c.PR_SET_KEEPCAPS, 1 if keep else 0)
