"""Processes: how they are cloned, which namespaces they enter, what prctl tells them.

`clone3` and `clone` return in the child as well, as fork(2) does; who calls them must never let the
child out into the parent's code. Only `runtime/stages/clone.py` and the warden do.
"""

from __future__ import annotations

import gc
import os
import struct

from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd
from runtime.linux.ffi import (
    addressof,
    byref,
    c_char_p,
    c_int,
    c_size_t,
    c_uint,
    c_ulong,
    create_string_buffer,
    pythonapi,
)
from runtime.linux.libc import function, syscall
from runtime.linux.procstat import start_time as start_time  # noqa: PLC0414 -- of processes, and for their users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# CPython's own fork hooks. Before/parent/child always go together: with the child's alone 3.13 aborts.
_before_fork = pythonapi.PyOS_BeforeFork
_after_fork_parent = pythonapi.PyOS_AfterFork_Parent
_after_fork_child = pythonapi.PyOS_AfterFork_Child
for _hook in (_before_fork, _after_fork_parent, _after_fork_child):
    _hook.restype = None
    _hook.argtypes = ()

_setns = function("setns", c_int, c_int, c_int)
_unshare = function("unshare", c_int, c_int)
_setdomainname = function("setdomainname", c_int, c_char_p, c_size_t)
_prctl = function("prctl", c_int, c_int, c_ulong, c_ulong, c_ulong, c_ulong)

_CLONE_ARGS = struct.Struct("<11Q")  # struct clone_args up to cgroup: CLONE_ARGS_SIZE_VER2
_KEPT = (
    create_string_buffer(_CLONE_ARGS.size),
    create_string_buffer(16),
)  # so that there are classes of their sizes
_SYS_clone = c.syscall_number("clone")
_SYS_rt_sigaction = c.syscall_number("rt_sigaction")
_DEFAULT_ACTION = bytes(32)  # struct kernel_sigaction: SIG_DFL, no flags, no restorer, empty mask


def clone3(flags: int, exit_signal: int, cgroup_fd: int = -1) -> tuple[int, int]:
    """clone3(2) with a pidfd: (pid, pidfd) in the parent, (0, -1) in the child.

    With `cgroup_fd`, a directory of a cgroup v2 hierarchy, the child is born in that cgroup (Linux 5.7).
    OSError: EBUSY where that cgroup has controllers enabled for its children, ENOSYS before Linux 5.3
    or where a seccomp filter says so, EINVAL for CLONE_PARENT with an exit signal.
    """
    pidfd = c_int(-1)
    flags |= c.CLONE_PIDFD
    cgroup = 0
    if cgroup_fd >= 0:
        flags |= c.CLONE_INTO_CGROUP
        cgroup = cgroup_fd
    arguments = create_string_buffer(
        _CLONE_ARGS.pack(flags, addressof(pidfd), 0, 0, exit_signal, 0, 0, 0, 0, 0, cgroup),
        _CLONE_ARGS.size,
    )
    pid = _as_fork(lambda: syscall("clone3", c.SYS_clone3, arguments, c_ulong(_CLONE_ARGS.size)))
    return (pid, pidfd.value) if pid else (0, -1)


def clone(flags: int, exit_signal: int) -> tuple[int, int]:
    """clone(2), for kernels and filters without clone3: same result. It cannot place the child in a cgroup.

    The stack pointer is NULL, which without CLONE_VM means: go on with a copy of the caller's, as fork does.
    """
    pidfd = c_int(-1)
    pid = _as_fork(
        lambda: syscall(
            "clone",
            _SYS_clone,
            c_ulong(flags | c.CLONE_PIDFD | exit_signal),
            None,
            byref(pidfd),
            c_ulong(0),
            c_ulong(0),
        )
    )
    return (pid, pidfd.value) if pid else (0, -1)


def _as_fork(clone_now: Callable[[], int]) -> int:
    # CPython holds a lock of its own from one hook to the next: a collection in between that ends what needs it, such
    # as the remains of a thread, would wait for itself.
    collects = gc.isenabled()
    gc.disable()
    _before_fork()
    try:
        pid = clone_now()
    except OSError:
        _after_fork_parent()
        raise
    else:
        if pid:
            _after_fork_parent()
        else:
            _after_fork_child()
    finally:
        if collects:
            gc.enable()
    return pid


def pidfd_getfd(pidfd: int, number: int) -> OwnedFd:
    """pidfd_getfd(2): a duplicate of descriptor `number` of that process. EPERM for who may not ptrace it."""
    return OwnedFd(syscall("pidfd_getfd", c.SYS_pidfd_getfd, c_int(pidfd), c_int(number), c_uint(0)))


def setns(fd: int, kinds: int) -> None:
    """setns(2): enter the namespace behind `fd`, or with a pidfd all `kinds` of that process at once (Linux 5.8)."""
    _setns(fd, kinds)


def unshare(kinds: int) -> None:
    """unshare(2): leave the shared namespaces of `kinds` for new ones."""
    _unshare(kinds)


def setdomainname(name: str) -> None:
    """setdomainname(2): the NIS domain name of our UTS namespace. /proc/sys would want root on the host."""
    encoded = os.fsencode(name)
    _setdomainname(encoded, len(encoded))


def prctl(option: int, argument: int = 0, argument3: int = 0, argument4: int = 0, argument5: int = 0) -> int:
    """prctl(2); its result where it has one."""
    return _prctl(option, argument, argument3, argument4, argument5)


def set_process_name(name: str) -> None:
    """PR_SET_NAME: what ps and /proc/PID/comm show; the kernel keeps 15 bytes."""
    text = create_string_buffer(name.encode()[:15], 16)
    _prctl(c.PR_SET_NAME, addressof(text), 0, 0, 0)


def set_dumpable(dumpable: bool) -> None:
    """PR_SET_DUMPABLE: without it nobody but a privileged process of the same user namespace can ptrace us."""
    _prctl(c.PR_SET_DUMPABLE, 1 if dumpable else 0, 0, 0, 0)


def reset_hidden_signals() -> None:
    """Give the two signals that glibc keeps to itself (32, 33) their default action; sigaction(3) refuses them.

    Somebody above us may ignore them, and what is ignored stays so through execve.
    """
    for number in (32, 33):
        syscall("rt_sigaction", _SYS_rt_sigaction, c_int(number), _DEFAULT_ACTION, None, c_size_t(8))


def set_parent_death_signal(number: int) -> None:
    """PR_SET_PDEATHSIG (Linux 2.1.57): the signal that we get when the thread that made us ends."""
    _prctl(c.PR_SET_PDEATHSIG, number, 0, 0, 0)


def set_child_subreaper() -> None:
    """PR_SET_CHILD_SUBREAPER: orphans below this process become its children (Linux 3.4)."""
    _prctl(c.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def set_no_new_privs() -> None:
    """PR_SET_NO_NEW_PRIVS: no execve gives more rights from here on (Linux 3.5)."""
    _prctl(c.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def close_range(first: int, last: int, flags: int = 0) -> None:
    """close_range(2) (Linux 5.9), both ends included; with CLOSE_RANGE_CLOEXEC they are only marked."""
    syscall("close_range", c.SYS_close_range, c_uint(first), c_uint(last), c_uint(flags))


def close_all_but(keep: tuple[int, ...]) -> None:
    """Close every descriptor from 3 on that is not in `keep`."""
    first = 3
    for number in sorted(keep):
        if number > first:
            close_range(first, number - 1)
        first = max(first, number + 1)
    close_range(first, 0xFFFFFFFF)
