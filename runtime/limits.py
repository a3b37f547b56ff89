"""What a process may use and how it is scheduled: rlimits, OOM score, priorities, personality, memory policy.

Plans are made from config.json and checked before the clone; applying them is a call each. Rlimits are
set from outside, by prlimit on the child's pid, before its user namespace or its credentials could take
the right to. Cgroup limits are `runtime/cgroups`' business, CPU affinity is `runtime/affinity.py`'s.
"""

from __future__ import annotations

import errno
import os

from runtime.affinity import parse_cpu_list
from runtime.errors import ConfigError, ManorError
from runtime.linux import sched
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec.model import IoPriority, MemoryPolicy, Personality, Rlimit, Scheduler

# asm-generic/resource.h: the same numbers on x86_64, arm64, riscv64, s390x, ppc64le and loongarch64.
RLIMITS = {
    "RLIMIT_CPU": 0,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_DATA": 2,
    "RLIMIT_STACK": 3,
    "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "RLIMIT_MEMLOCK": 8,
    "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
}
INFINITY = 2**64 - 1

_POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
_SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_DOMAINS = {"LINUX": 0x0000, "LINUX32": 0x0008}
_MEMORY_MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
_MEMORY_FLAGS = {
    "MPOL_F_STATIC_NODES": 1 << 15,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_NUMA_BALANCING": 1 << 13,
}


class LimitError(ManorError):
    """A limit could not be set; names it with the value asked for."""


class Limit(Record):
    """One rlimit, by name and by number."""

    name: str
    resource: int
    soft: int
    hard: int


class SchedulerPlan(Record):
    """The arguments of sched_setattr(2)."""

    policy: int
    flags: int
    nice: int
    priority: int
    times_ns: tuple[int, int, int]


class MemoryPlan(Record):
    """The arguments of set_mempolicy(2)."""

    mode: int
    nodes: bytes


# ---- rlimits -----------------------------------------------------------------------------------


def plan_rlimits(rlimits: tuple[Rlimit, ...]) -> tuple[Limit, ...]:
    """`process.rlimits` by number. ConfigError for an unknown type, one given twice, or soft above hard."""
    limits: dict[str, Limit] = {}
    for index, rlimit in enumerate(rlimits):
        path = f"process.rlimits[{index}]"
        if rlimit.type not in RLIMITS:
            raise ConfigError(f"{path}.type", f"unknown resource limit {rlimit.type!r}")
        if rlimit.type in limits:
            raise ConfigError(f"{path}.type", f"{rlimit.type} is given twice")
        if rlimit.soft > rlimit.hard:
            raise ConfigError(f"{path}.soft", f"{rlimit.type}: {rlimit.soft} is above hard, {rlimit.hard}")
        limits[rlimit.type] = Limit(rlimit.type, RLIMITS[rlimit.type], rlimit.soft, rlimit.hard)
    return tuple(limits.values())


def apply(pid: int, limits: tuple[Limit, ...]) -> None:
    """Set `limits` on process `pid`, 0 for the caller; LimitError for the first that cannot be set."""
    for limit in limits:
        try:
            sched.prlimit(pid, limit.resource, limit.soft, limit.hard)
        except OSError as error:
            wanted = f"soft {_shown(limit.soft)}, hard {_shown(limit.hard)}"
            raise LimitError(f"set {limit.name} ({wanted}): {_limit_cause(error)}") from error


def apply_what_is_allowed(pid: int, limits: tuple[Limit, ...]) -> tuple[str, ...]:
    """Like `apply`, but lower what may not be raised to the hard limit in force; a warning for each."""
    warnings = []
    for limit in limits:
        try:
            sched.prlimit(pid, limit.resource, limit.soft, limit.hard)
        except PermissionError:
            hard = min(limit.hard, sched.prlimit_read(pid, limit.resource)[1])
            apply(pid, (Limit(limit.name, limit.resource, min(limit.soft, hard), hard),))
            warnings.append(f"{limit.name} lowered to {_shown(hard)}: no right to raise it")
        except OSError as error:
            raise LimitError(f"set {limit.name}: {_limit_cause(error)}") from error
    return tuple(warnings)


def _shown(value: int) -> str:
    return "unlimited" if value == INFINITY else str(value)


def _limit_cause(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "above the hard limit in force, or above fs.nr_open, and without the right to raise it"
    return os.strerror(error.errno or 0)


# ---- the OOM killer ----------------------------------------------------------------------------


def set_oom_score_adj(procfs: int, pid: int, value: int) -> None:
    """Write `value` (-1000 to 1000) as the oom_score_adj of `pid` below the procfs directory `procfs`, an fd.

    LimitError when the kernel refuses: lowering it below what the process was born with takes
    CAP_SYS_RESOURCE. The child of this pid must not have been reaped, so that the pid is still its own.
    """
    try:
        fd = os.open(f"{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=procfs)
        try:
            os.write(fd, b"%d" % value)
        finally:
            os.close(fd)
    except OSError as error:
        raise LimitError(
            f"set oom_score_adj {value} on pid {pid}: {os.strerror(error.errno or 0)}"
        ) from error


# ---- scheduling --------------------------------------------------------------------------------


def plan_scheduler(scheduler: Scheduler) -> SchedulerPlan:
    """The arguments for `process.scheduler`. ConfigError for what sched_setattr(2) does not define."""
    path, policy = "process.scheduler", scheduler.policy
    if policy not in _POLICIES:
        raise ConfigError(f"{path}.policy", f"unknown scheduling policy {policy!r}")
    if policy in ("SCHED_OTHER", "SCHED_BATCH") and not -20 <= scheduler.nice <= 19:
        raise ConfigError(f"{path}.nice", f"{scheduler.nice} is not between -20 and 19")
    if scheduler.priority and policy not in ("SCHED_FIFO", "SCHED_RR"):
        raise ConfigError(f"{path}.priority", f"is for SCHED_FIFO and SCHED_RR only, not for {policy}")
    times_ns = (scheduler.runtime, scheduler.deadline, scheduler.period)
    if policy != "SCHED_DEADLINE" and any(times_ns):
        raise ConfigError(path, f"runtime, deadline and period are for SCHED_DEADLINE only, not for {policy}")
    flags = 0
    for flag in scheduler.flags:
        if flag not in _SCHEDULER_FLAGS:
            raise ConfigError(f"{path}.flags", f"unknown scheduling flag {flag!r}")
        flags |= _SCHEDULER_FLAGS[flag]
    return SchedulerPlan(_POLICIES[policy], flags, scheduler.nice, scheduler.priority, times_ns)


def apply_scheduler(pid: int, plan: SchedulerPlan) -> None:
    """sched_setattr(2) on `pid`, 0 for the caller; LimitError says why not.

    A deadline task may not be confined to some CPUs, so SCHED_DEADLINE and a cpuset exclude each other.
    """
    try:
        sched.sched_setattr(pid, plan.policy, plan.flags, plan.nice, plan.priority, plan.times_ns)
    except OSError as error:
        hint = ""
        if error.errno == errno.EPERM and plan.policy == _POLICIES["SCHED_DEADLINE"]:
            hint = " (process scheduler can't be used together with AllowedCPUs, as SCHED_DEADLINE)"
        raise LimitError(f"set scheduler: {os.strerror(error.errno or 0)}{hint}") from error


def plan_io_priority(priority: IoPriority) -> tuple[int, int]:
    """(class, level) for `process.ioPriority`. ConfigError for an unknown class or a level outside 0 to 7."""
    if priority.io_class not in _IO_CLASSES:
        raise ConfigError("process.ioPriority.class", f"unknown I/O priority class {priority.io_class!r}")
    if not 0 <= priority.priority <= 7:
        raise ConfigError("process.ioPriority.priority", f"{priority.priority} is not between 0 and 7")
    return _IO_CLASSES[priority.io_class], priority.priority


def apply_io_priority(pid: int, plan: tuple[int, int]) -> None:
    """ioprio_set(2) on `pid`, 0 for the caller."""
    io_class, level = plan
    try:
        sched.ioprio_set(pid, io_class, level)
    except OSError as error:
        message = f"set I/O priority, class {io_class} level {level}: {os.strerror(error.errno or 0)}"
        raise LimitError(message) from error


# ---- personality and memory --------------------------------------------------------------------


def plan_personality(personality: Personality) -> tuple[int, tuple[str, ...]]:
    """(execution domain, warnings) for `linux.personality`. The specification defines no flag yet."""
    if personality.domain not in _DOMAINS:
        raise ConfigError("linux.personality.domain", f"unknown domain {personality.domain!r}")
    warnings: tuple[str, ...] = ()
    if personality.flags:
        warnings = (f"ignoring personality flags {' '.join(personality.flags)}: none is defined",)
    return _DOMAINS[personality.domain], warnings


def plan_memory_policy(policy: MemoryPolicy) -> MemoryPlan:
    """The arguments for `linux.memoryPolicy`. ConfigError for what set_mempolicy(2) would refuse."""
    path = "linux.memoryPolicy"
    if policy.mode not in _MEMORY_MODES:
        raise ConfigError(f"{path}.mode", f"invalid memory policy mode {policy.mode or ''!r}")
    try:
        nodes = parse_cpu_list(policy.nodes or "")
    except ValueError as error:
        raise ConfigError(f"{path}.nodes", f"invalid memory policy nodes: {error}") from error
    if nodes and policy.mode in ("MPOL_DEFAULT", "MPOL_LOCAL"):
        raise ConfigError(f"{path}.nodes", f"{policy.mode} mode requires 0 nodes but got {len(nodes)}")
    if not nodes and policy.mode not in ("MPOL_DEFAULT", "MPOL_LOCAL", "MPOL_PREFERRED"):
        raise ConfigError(f"{path}.nodes", f"{policy.mode} needs at least one node")
    mode = _MEMORY_MODES[policy.mode]
    for flag in policy.flags:
        if flag not in _MEMORY_FLAGS:
            raise ConfigError(f"{path}.flags", f"invalid memory policy flag {flag!r}")
        mode |= _MEMORY_FLAGS[flag]
    return MemoryPlan(mode, sched.bit_mask(nodes) if nodes else b"")


def apply_memory_policy(plan: MemoryPlan) -> None:
    """set_mempolicy(2) of the caller; its children inherit it, also through execve."""
    try:
        sched.set_mempolicy(plan.mode, plan.nodes)
    except OSError as error:
        raise LimitError(f"set memory policy: {os.strerror(error.errno or 0)}") from error
