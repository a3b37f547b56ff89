"""Rlimits, OOM score, scheduling, I/O priority, personality and memory policy of a process."""

from __future__ import annotations

import errno
import os
import resource
import struct
from typing import TYPE_CHECKING, Any

import pytest

from runtime import limits
from runtime.errors import ConfigError
from runtime.limits import INFINITY, Limit, LimitError, MemoryPlan, SchedulerPlan
from runtime.linux import sched
from runtime.linux.ffi import c_int
from runtime.linux.libc import syscall
from runtime.spec.model import IoPriority, MemoryPolicy, Personality, Rlimit, Scheduler
from tests.unit.runtime.forked import in_child

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def other() -> Iterator[int]:
    """The pid of a process that does nothing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    yield pid
    os.close(writer)
    os.close(reader)
    os.waitpid(pid, 0)


# ---- rlimits -----------------------------------------------------------------------------------


def test_the_numbers_are_this_machines() -> None:
    known = {name: number for name, number in limits.RLIMITS.items() if hasattr(resource, name)}
    assert known == {name: getattr(resource, name) for name in known}
    assert len(known) >= 15


def test_limits_are_planned_by_number_and_in_order() -> None:
    plan = limits.plan_rlimits((Rlimit("RLIMIT_NOFILE", 1, 2), Rlimit("RLIMIT_CORE", 0, INFINITY)))
    assert plan == (Limit("RLIMIT_NOFILE", 7, 1, 2), Limit("RLIMIT_CORE", 4, 0, INFINITY))


@pytest.mark.parametrize(
    ("rlimits", "message"),
    [
        (
            (Rlimit("RLIMIT_FILES", 1, 1),),
            r"process\.rlimits\[0\]\.type: unknown resource limit 'RLIMIT_FILES'",
        ),
        (
            (Rlimit("RLIMIT_CPU", 1, 1), Rlimit("RLIMIT_CPU", 1, 1)),
            r"rlimits\[1\]\.type: RLIMIT_CPU is given twice",
        ),
        ((Rlimit("RLIMIT_CPU", 2, 1),), r"rlimits\[0\]\.soft: RLIMIT_CPU: 2 is above hard, 1"),
    ],
)
def test_what_is_no_limit_is_refused(rlimits: tuple[Rlimit, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        limits.plan_rlimits(rlimits)


def test_limits_are_set_on_another_process(other: int) -> None:
    limits.apply(other, (Limit("RLIMIT_NOFILE", 7, 10, 20), Limit("RLIMIT_STACK", 3, 1 << 20, 1 << 21)))
    assert sched.prlimit_read(other, 7) == (10, 20)
    assert resource.prlimit(other, resource.RLIMIT_STACK) == (1 << 20, 1 << 21)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) != (10, 20)


def test_no_limit_is_a_limit_of_its_own(other: int) -> None:
    if resource.prlimit(other, resource.RLIMIT_CPU)[1] != resource.RLIM_INFINITY:
        pytest.skip("CPU time is limited here")
    limits.apply(other, (Limit("RLIMIT_CPU", 0, INFINITY, INFINITY),))
    assert resource.prlimit(other, resource.RLIMIT_CPU) == (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def test_a_limit_that_cannot_be_set_is_named_with_its_value(other: int) -> None:
    beyond = 1 << 60  # fs.nr_open binds root as well
    with pytest.raises(
        LimitError, match=rf"set RLIMIT_NOFILE \(soft 5, hard {beyond}\): above the hard limit"
    ):
        limits.apply(other, (Limit("RLIMIT_NOFILE", 7, 5, beyond),))


def test_a_host_that_degrades_lowers_the_limit_and_tells(other: int) -> None:
    before = sched.prlimit_read(other, 7)
    sched.prlimit(other, 7, 3, before[1])
    wanted = (Limit("RLIMIT_NOFILE", 7, 5, 1 << 60), Limit("RLIMIT_CORE", 4, 0, 0))
    warnings = limits.apply_what_is_allowed(other, wanted)
    assert warnings == (f"RLIMIT_NOFILE lowered to {before[1]}: no right to raise it",)
    assert sched.prlimit_read(other, 7) == (5, before[1])
    assert sched.prlimit_read(other, 4) == (0, 0)


# ---- the OOM killer ----------------------------------------------------------------------------


@pytest.fixture
def procfs() -> Iterator[int]:
    fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_the_oom_score_is_written_for_another_process(procfs: int, other: int) -> None:
    limits.set_oom_score_adj(procfs, other, 321)
    with open(f"/proc/{other}/oom_score_adj", encoding="ascii") as stream:
        assert stream.read() == "321\n"


def test_an_oom_score_the_kernel_refuses_names_value_and_process(procfs: int, other: int) -> None:
    with pytest.raises(LimitError, match=rf"set oom_score_adj 1001 on pid {other}: Invalid argument"):
        limits.set_oom_score_adj(procfs, other, 1001)


# ---- scheduling --------------------------------------------------------------------------------


def test_a_scheduler_is_set_on_another_process(other: int) -> None:
    nice = max(7, os.getpriority(os.PRIO_PROCESS, 0))  # not even ours could be taken back by who is not root
    plan = limits.plan_scheduler(Scheduler("SCHED_BATCH", nice=nice, flags=("SCHED_FLAG_RESET_ON_FORK",)))
    assert plan == SchedulerPlan(3, 1, nice, 0, (0, 0, 0))
    limits.apply_scheduler(other, plan)
    assert os.sched_getscheduler(other) & ~os.SCHED_RESET_ON_FORK == os.SCHED_BATCH
    assert os.getpriority(os.PRIO_PROCESS, other) == nice


@pytest.mark.skipif(os.geteuid() != 0, reason="a real-time priority takes CAP_SYS_NICE")
def test_a_real_time_priority_reaches_the_kernel(other: int) -> None:
    try:
        limits.apply_scheduler(other, limits.plan_scheduler(Scheduler("SCHED_FIFO", priority=5)))
    except LimitError as error:
        pytest.skip(f"not here: {error}")
    assert os.sched_getparam(other).sched_priority == 5


@pytest.mark.parametrize(
    ("scheduler", "field"),
    [
        (Scheduler("FIFO"), r"\.policy"),
        (Scheduler("SCHED_OTHER", nice=20), r"\.nice"),
        (Scheduler("SCHED_BATCH", nice=-21), r"\.nice"),
        (Scheduler("SCHED_OTHER", priority=1), r"\.priority"),
        (Scheduler("SCHED_FIFO", runtime=1), ""),
        (Scheduler("SCHED_OTHER", flags=("RESET",)), r"\.flags"),
    ],
)
def test_what_is_no_scheduler_is_refused(scheduler: Scheduler, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"process\.scheduler{field}: "):
        limits.plan_scheduler(scheduler)


def test_a_deadline_of_nothing_is_refused_by_the_kernel(other: int) -> None:
    with pytest.raises(LimitError, match="set scheduler: "):
        limits.apply_scheduler(other, limits.plan_scheduler(Scheduler("SCHED_DEADLINE")))


def test_an_io_priority_is_set_on_another_process(other: int) -> None:
    plan = limits.plan_io_priority(IoPriority("IOPRIO_CLASS_BE", 6))
    limits.apply_io_priority(other, plan)
    assert plan == (2, 6)
    ioprio_get = 252 if os.uname().machine == "x86_64" else 31
    assert syscall("ioprio_get", ioprio_get, c_int(1), c_int(other)) == 2 << 13 | 6


@pytest.mark.parametrize(
    "priority", [IoPriority("BE", 1), IoPriority("IOPRIO_CLASS_BE", 8), IoPriority("IOPRIO_CLASS_RT", -1)]
)
def test_what_is_no_io_priority_is_refused(priority: IoPriority) -> None:
    with pytest.raises(ConfigError, match=r"process\.ioPriority\."):
        limits.plan_io_priority(priority)


# ---- personality and memory --------------------------------------------------------------------


def test_a_32_bit_personality_changes_what_uname_says() -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("uname changes on x86_64")
    domain, warnings = limits.plan_personality(Personality("LINUX32"))

    def work() -> str:
        sched.personality(domain)
        return os.uname().machine

    assert (in_child(work), warnings) == ("i686", ())


def test_personality_flags_are_ignored_with_a_warning() -> None:
    assert limits.plan_personality(Personality("LINUX", ("X",)))[1] == (
        "ignoring personality flags X: none is defined",
    )
    with pytest.raises(ConfigError, match=r"linux\.personality\.domain"):
        limits.plan_personality(Personality("BSD"))


@pytest.mark.parametrize(
    ("policy", "plan"),
    [
        (MemoryPolicy("MPOL_LOCAL"), MemoryPlan(4, b"")),
        (MemoryPolicy("MPOL_BIND", "0,2"), MemoryPlan(2, b"\x05" + b"\0" * 7)),
        (MemoryPolicy("MPOL_PREFERRED"), MemoryPlan(1, b"")),
        (
            MemoryPolicy("MPOL_INTERLEAVE", "0", ("MPOL_F_STATIC_NODES",)),
            MemoryPlan(3 | 1 << 15, b"\x01" + b"\0" * 7),
        ),
    ],
)
def test_memory_policies(policy: MemoryPolicy, plan: MemoryPlan) -> None:
    assert limits.plan_memory_policy(policy) == plan


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (MemoryPolicy("BIND", "0"), "mode"),
        (MemoryPolicy("MPOL_BIND"), "nodes"),
        (MemoryPolicy("MPOL_LOCAL", "0"), "nodes"),
        (MemoryPolicy("MPOL_BIND", "zero"), "nodes"),
        (MemoryPolicy("MPOL_BIND", "0", ("F",)), "flags"),
    ],
)
def test_what_is_no_memory_policy_is_refused(policy: MemoryPolicy, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"linux\.memoryPolicy\.{field}"):
        limits.plan_memory_policy(policy)


def test_a_memory_policy_reaches_the_kernel() -> None:
    plan = limits.plan_memory_policy(MemoryPolicy("MPOL_BIND", "0"))

    def work() -> Any:
        try:
            limits.apply_memory_policy(plan)
        except LimitError as error:
            return str(error)
        mode, mask = bytearray(4), bytearray(1024)
        get_mempolicy = 239 if os.uname().machine == "x86_64" else 236
        import ctypes

        raw = (ctypes.c_char * 4).from_buffer(mode), (ctypes.c_char * 1024).from_buffer(mask)
        syscall("get_mempolicy", get_mempolicy, *raw, ctypes.c_ulong(8192), None, ctypes.c_ulong(0))
        return [struct.unpack("i", mode)[0], mask[0]]

    got = in_child(work)
    if got == f"set memory policy: {os.strerror(errno.ENOSYS)}":
        pytest.skip("a kernel without NUMA")
    assert got == [2, 1]
