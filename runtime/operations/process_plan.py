"""From a spec's `process` to what the stages are told: the part that landlord and tenant share."""

from __future__ import annotations

import os

from runtime import limits
from runtime.credentials import plan_credentials
from runtime.labels import require_available
from runtime.linux.fds import OwnedFd
from runtime.record import Record, replace
from runtime.stages.plan import ProcessPlan, Stdio
from runtime.user_mapping import caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.container import Host, Terms
    from runtime.limits import Limit, SchedulerPlan
    from runtime.spec.model import Process


def plan_process(
    host: Host, process: Process, terms: Terms, stdio: Stdio, preserved_fds: int = 0
) -> ProcessPlan:
    """Decide. ConfigError or Unsupported for what the process may not ask for.

    An exec that names no capabilities has its container's: with none at all it would keep those of the shim.
    """
    if process.capabilities is None:
        process = replace(process, capabilities=terms.capabilities)
    require_available(process.apparmor_profile, process.selinux_label)
    return ProcessPlan(
        args=process.args,
        env=process.env,
        cwd=process.cwd,
        credentials=plan_credentials(
            process, container_umask=terms.umask, setgroups_denied=host.setgroups_denied
        ),
        no_new_privileges=process.no_new_privileges,
        seccomp=terms.filter,
        apparmor_profile=process.apparmor_profile,
        selinux_label=process.selinux_label,
        terminal=process.terminal,
        console_size=process.console_size,
        stdio=stdio,
        personality=terms.personality,
        memory_policy=terms.memory_policy,
        preserved_fds=preserved_fds,
    )


class LimitsPlan(Record):
    """What stage 0 sets on a process from outside, before it loses the credentials that it takes."""

    rlimits: tuple[Limit, ...]
    oom_score_adj: int | None
    io_priority: tuple[int, int] | None
    scheduler: SchedulerPlan | None


def plan_limits(process: Process) -> LimitsPlan:
    """The limits of `process`. ConfigError for what the kernel does not define."""
    return LimitsPlan(
        rlimits=limits.plan_rlimits(process.rlimits),
        oom_score_adj=process.oom_score_adj,
        io_priority=None if process.io_priority is None else limits.plan_io_priority(process.io_priority),
        scheduler=None if process.scheduler is None else limits.plan_scheduler(process.scheduler),
    )


def set_limits(host: Host, plan: LimitsPlan, pid: int) -> tuple[str, ...]:
    """Set `plan`, but for the scheduler, on `pid`. LimitError.

    Warnings for what was lowered instead, where the host is told to degrade.
    """
    warnings: tuple[str, ...] = ()
    if host.degrade:
        warnings = limits.apply_what_is_allowed(pid, plan.rlimits)
    else:
        limits.apply(pid, plan.rlimits)
    if plan.oom_score_adj is not None and caller() is None:
        limits.set_oom_score_adj(host.procfs.fileno(), pid, plan.oom_score_adj)
    if plan.io_priority is not None:
        limits.apply_io_priority(pid, plan.io_priority)
    return warnings


def set_scheduler(plan: LimitsPlan, pid: int) -> None:
    """Set the scheduler of `plan` on `pid`, whose cgroups and CPUs a deadline scheduler does not let it change."""
    if plan.scheduler is not None:
        limits.apply_scheduler(pid, plan.scheduler)


def lend_oom_score(host: Host, plan: LimitsPlan) -> Callable[[], None]:
    """Have what we clone next born with the oom_score_adj of `plan`; gives what takes it from us again. LimitError.

    For who is not root: a stage is not dumpable, so that its files in /proc are root's. We may raise our own, and
    lower it again to what it was.
    """
    if plan.oom_score_adj is None or caller() is None:
        return lambda: None
    with open("/proc/self/oom_score_adj", "rb") as stream:
        ours = int(stream.read())
    limits.set_oom_score_adj(host.procfs.fileno(), os.getpid(), plan.oom_score_adj)
    return lambda: limits.set_oom_score_adj(host.procfs.fileno(), os.getpid(), ours)


def complete(stdio: Stdio) -> tuple[Stdio, OwnedFd | None]:
    """`stdio` with the host's /dev/null for what is not given, and the descriptor to close afterwards.

    The host's, opened before any namespace is entered: the image's /dev/null can be anything (CVE-2025-31133).
    """
    if min(stdio.stdin, stdio.stdout, stdio.stderr) >= 0:
        return stdio, None
    null = OwnedFd(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
    given = [number if number >= 0 else null.fileno() for number in (stdio.stdin, stdio.stdout, stdio.stderr)]
    return Stdio(*given), null
