"""What the kernel keeps for a task beside its credentials: CPUs, priorities, limits, domain, memory policy.

Masks of CPUs and of memory nodes are bytes in the kernel's format and as wide as they need to be:
Python's own os.sched_setaffinity cannot express a CPU that is not there yet.
"""

from __future__ import annotations

import errno
import os
import struct

from runtime.linux import constants as c
from runtime.linux.ffi import c_int, c_long, c_size_t, c_ulong, c_void_p, create_string_buffer, sizeof
from runtime.linux.libc import function, syscall

_sched_setaffinity = function("sched_setaffinity", c_int, c_int, c_size_t, c_void_p)
_personality = function("personality", c_int, c_ulong)
_prlimit = function("prlimit64", c_int, c_int, c_int, c_void_p, c_void_p)

_SYS_sched_setattr = c.syscall_number("sched_setattr")
_SYS_ioprio_set = c.syscall_number("ioprio_set")
_SYS_set_mempolicy = c.syscall_number("set_mempolicy")

_SCHED_ATTR = struct.Struct("IIQiIQQQ")  # struct sched_attr, SCHED_ATTR_SIZE_VER0; Linux 3.14
_RLIMIT = struct.Struct("QQ")
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_SHIFT = 13
_WORD_BYTES = sizeof(c_long)

MAX_CPUS = 8192  # the largest CONFIG_NR_CPUS there is: x86_64 with MAXSMP
_ALL_CPUS = b"\xff" * (MAX_CPUS // 8)


def bit_mask(numbers: tuple[int, ...]) -> bytes:
    """The kernel's bit map for `numbers`: little-endian, whole words of a long."""
    bits = 0
    for number in numbers:
        bits |= 1 << number
    words = bits.bit_length() // (8 * _WORD_BYTES) + 1
    return bits.to_bytes(words * _WORD_BYTES, "little")


def sched_setaffinity(pid: int, cpus: tuple[int, ...]) -> None:
    """sched_setaffinity(2): allow task `pid`, 0 for the caller, on `cpus` alone.

    The kernel takes those that exist and that the task's cpuset allows; EINVAL if none is left. From
    Linux 6.2 on it remembers what was asked for and applies it again when the cpuset changes.
    """
    mask = bit_mask(cpus)
    try:
        _sched_setaffinity(pid, len(mask), mask)
    except OSError as error:
        cause = os.strerror(error.errno or 0)
        if error.errno == errno.EINVAL:
            cause = "none of them exists and is in the cpuset"
        shown = " ".join(map(str, cpus[:16]))
        raise OSError(error.errno, f"sched_setaffinity: {cause}", f"CPUs {shown}") from error


def sched_getaffinity(pid: int) -> tuple[int, ...]:
    """sched_getaffinity(2): the CPUs that task `pid`, 0 for the caller, may run on now, in order.

    What was asked for and is not to be had at the moment does not show.
    """
    return tuple(sorted(os.sched_getaffinity(pid)))


def reset_affinity(pid: int = 0) -> None:
    """Allow task `pid`, 0 for the caller, on all possible CPUs.

    All ones, not the CPUs of the cpuset as it is now: the kernel clamps the mask to the cpuset but remembers
    the whole, so that the task follows when the cpuset is widened or a CPU is plugged in later.
    """
    _sched_setaffinity(pid, len(_ALL_CPUS), _ALL_CPUS)


def restore_affinity(cpus: tuple[int, ...]) -> None:
    """Give the caller back what sched_getaffinity had said.

    If that was all its cpuset allows it gets all possible CPUs: a list would tie it to the cpuset of now.
    """
    reset_affinity()
    if sched_getaffinity(0) != cpus:
        sched_setaffinity(0, cpus)


def sched_setattr(
    pid: int, policy: int, flags: int, nice: int, priority: int, times_ns: tuple[int, int, int]
) -> None:
    """sched_setattr(2) of task `pid`, 0 for the caller; `times_ns` are runtime, deadline and period."""
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, policy, flags, nice, priority, *times_ns)
    syscall("sched_setattr", _SYS_sched_setattr, c_int(pid), attributes, c_int(0))


def ioprio_set(pid: int, io_class: int, level: int) -> None:
    """ioprio_set(2) of task `pid`, 0 for the caller."""
    value = io_class << _IOPRIO_CLASS_SHIFT | level
    syscall("ioprio_set", _SYS_ioprio_set, c_int(_IOPRIO_WHO_PROCESS), c_int(pid), c_int(value))


def prlimit(pid: int, resource: int, soft: int, hard: int) -> None:
    """prlimit(2) of process `pid`: set one limit; 2**64-1 is none. EPERM to raise `hard` unprivileged."""
    _prlimit(pid, resource, _RLIMIT.pack(soft, hard), None)


def prlimit_read(pid: int, resource: int) -> tuple[int, int]:
    """prlimit(2) of process `pid`: the limit in force, (soft, hard)."""
    limit = create_string_buffer(_RLIMIT.size)
    _prlimit(pid, resource, None, limit)
    soft, hard = _RLIMIT.unpack(limit.raw)
    return soft, hard


def personality(domain: int) -> None:
    """personality(2) of the caller: the execution domain that uname(2) and mmap(2) go by."""
    _personality(domain)


def set_mempolicy(mode: int, nodes: bytes) -> None:
    """set_mempolicy(2) of the caller; `nodes` as `bit_mask` makes it, b"" for none."""
    # The kernel reads maxnode - 1 bits (get_nodes in mm/mempolicy.c).
    bits = c_ulong(8 * len(nodes) + 1) if nodes else c_ulong(0)
    syscall("set_mempolicy", _SYS_set_mempolicy, c_int(mode), nodes or None, bits)
