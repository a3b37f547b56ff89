"""The filter that a container lives under, read back from the kernel: ours, runc's, and what the profile says."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime import seccomp
from runtime.spec.load import load_spec
from tests.unit.runtime.bpf import I386, X86_64, verdict

if TYPE_CHECKING:
    from tests.e2e.credentials.conftest import Runc, Runner

PTRACE_CONT, PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_SECCOMP_GET_FILTER = (
    7,
    17,
    0x4206,
    0x4207,
    0x420C,
)
WALL = 0x40000000
X32 = 1 << 30

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="call numbers of x86_64")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, address: int | None = None, data: Any = None) -> int:
    got: int = _libc.ptrace(request, pid, address, data)
    if got < 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    return got


def filter_of(pid: int) -> bytes:
    """The newest filter of process `pid`, as the kernel keeps it (CONFIG_CHECKPOINT_RESTORE)."""
    ptrace(PTRACE_SEIZE, pid)
    try:
        ptrace(PTRACE_INTERRUPT, pid)
        os.waitpid(pid, WALL)
        count = ptrace(PTRACE_SECCOMP_GET_FILTER, pid, 0)
        buffer = ctypes.create_string_buffer(8 * count)
        ptrace(PTRACE_SECCOMP_GET_FILTER, pid, 0, buffer)
        return buffer.raw
    finally:
        ptrace(PTRACE_DETACH, pid)


def argument(index: int, value: int, op: str, two: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "op": op, "valueTwo": two}


# What runc, Python, a C library and a shell need to get as far as sleeping.
LIFE = (
    "statx open_tree fsopen fsconfig fsmount read write close execve exit_group brk mmap munmap mprotect "
    "nanosleep clock_nanosleep rt_sigaction rt_sigprocmask futex getpid gettid fstat newfstatat openat "
    "stat lstat prctl getuid geteuid getgid setuid setgid setgroups setresuid setresgid capset capget "
    "access faccessat faccessat2 chdir fchdir getcwd close_range arch_prctl set_tid_address fcntl dup2 "
    "dup3 lseek statfs fstatfs open readlinkat readlink epoll_ctl epoll_pwait epoll_create1 poll ppoll "
    "clone tgkill getrandom pread64 umask eventfd2 pipe2 sched_yield sched_getaffinity sigaltstack "
    "rt_sigreturn madvise getdents64 ioctl uname getppid openat2 sendmsg recvmsg rseq set_robust_list "
    "prlimit64 sysinfo kill getsockname getsockopt"
).split()
PROFILES: dict[str, dict[str, Any]] = {
    "default": json.loads(Path("tests/unit/runtime/seccomp_default.json").read_text()),
    "few calls, no architecture": {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": LIFE, "action": "SCMP_ACT_ALLOW"}],
    },
    "errno and trace": {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {"names": ["acct", "swapon"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77},
            {"names": ["swapoff"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
            {"names": ["reboot"], "action": "SCMP_ACT_KILL"},
        ],
    },
    "comparisons": {
        "defaultAction": "SCMP_ACT_TRAP",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "flags": [],
        "syscalls": [
            {"names": LIFE, "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["socket"],
                "action": "SCMP_ACT_ALLOW",
                "args": [argument(0, 1, "SCMP_CMP_EQ"), argument(1, 2, "SCMP_CMP_GE")],
            },
            {
                "names": ["mount"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 5,
                "args": [argument(3, 0xF0, "SCMP_CMP_MASKED_EQ", 0x10)],
            },
            {
                "names": ["setpriority"],
                "action": "SCMP_ACT_ALLOW",
                "args": [argument(0, 0, "SCMP_CMP_EQ"), argument(0, 2, "SCMP_CMP_EQ")],
            },
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "args": [argument(0, 3, "SCMP_CMP_NE")]},
            {
                "names": ["kcmp"],
                "action": "SCMP_ACT_ALLOW",
                "args": [argument(2, 1 << 33, "SCMP_CMP_GT"), argument(4, 7, "SCMP_CMP_LE")],
            },
            {"names": ["a_call_of_tomorrow"], "action": "SCMP_ACT_ALLOW"},
        ],
    },
}


@functools.cache
def disagreements(ours: bytes, theirs: bytes) -> list[tuple[int, int, tuple[int, ...]]]:
    """System calls (architecture, number, arguments) that the two filters answer differently.

    The same are tried for the same filters, which are those of every way that a container is made in: asked once.
    """
    generator = random.Random(1)
    interesting = [
        0,
        1,
        2,
        3,
        5,
        7,
        8,
        0x10,
        0x20,
        0x1F,
        38,
        40,
        1 << 32,
        (1 << 33) + 1,
        0x10000000,
        2**64 - 1,
    ]
    found = []
    for architecture in (X86_64, I386, 0xC00000B7, 0x40000028):
        numbers = [*range(600), 0x3FFFFFFF, 2**32 - 1, *(X32 | number for number in range(600))]
        for number in numbers:
            for _ in range(6):
                arguments = tuple(generator.choice(interesting) for _ in range(6))
                if verdict(ours, architecture, number, *arguments) != verdict(
                    theirs, architecture, number, *arguments
                ):
                    found.append((architecture, number, arguments))
    return found


@pytest.mark.parametrize("privileged", [False, True], ids=["no_new_privs", "may gain privileges"])
@pytest.mark.parametrize("name", PROFILES)
def test_the_kernel_has_the_filter_that_runc_would_have_given_it(
    runner: Runner, runc: Runc, name: str, privileged: bool
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["seccomp"] = PROFILES[name]
        config["process"]["noNewPrivileges"] = not privileged

    bundle = runner.bundle("sleep", "1000")
    change(bundle.config)
    theirs = filter_of(runc.started(bundle)[1])
    ours = filter_of(runner.started(change=change).pid)
    profile = load_spec(bundle.write()).linux.seccomp
    assert profile is not None
    assert ours == seccomp.compile_profile(profile).program
    assert disagreements(ours, theirs) == []


def test_an_exec_has_the_filter_of_its_container_and_compiles_nothing(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = runner.started(change=lambda config: config["linux"].update(seccomp=PROFILES["default"]))
    monkeypatch.setattr(seccomp, "compile_profile", lambda _profile: pytest.fail("compiled for an exec"))
    tenant = runner.exec_tenant(container, "sleep", "1000")
    try:
        assert filter_of(tenant.pid) == filter_of(container.pid)
    finally:
        os.kill(tenant.pid, 9)
        os.waitpid(tenant.pid, WALL)
        tenant.pidfd.close()
