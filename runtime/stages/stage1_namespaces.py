"""Stage 1: enter the cgroup, the user namespace and the PID namespace, then clone init as a sibling.

We are in 1:INTER, a child of stage 0. Our job is everything that must be done before init exists: init
is born in the cgroup and in the PID namespace, and with the ids of its user namespace. We do not touch
the root file system, and we end as soon as init's pid is reported. The functions here are also what the
direct shape does around its one clone.
"""

from __future__ import annotations

import _signal
import errno
import os

from runtime.credentials import give_up
from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd, close_all
from runtime.linux.process import set_dumpable, setns, unshare
from runtime.linux.sched import reset_affinity, sched_setaffinity
from runtime.namespaces import enter
from runtime.record import Record
from runtime.stages.messages import InitPid, MappingRequest, MappingWritten
from runtime.stages.start_gate import close_doors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runtime.affinity import AffinityPlan
    from runtime.namespaces import Join
    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step
    from runtime.stages.plan import LandlordPlan, ProcessPlan, TenantPlan

# Entered by stage 2, after its last cgroup join and with offsets written in between.
LATE_KINDS = c.CLONE_NEWCGROUP | c.CLONE_NEWTIME


class CgroupEntry(Record):
    """What a stage enters its cgroups by.

    `v2` is None where there is no v2 hierarchy or clone3 has put the child there already; `landlord` is
    the cgroup of the landlord's init, to be joined where `v2` cannot be.
    """

    v1_tasks: tuple[OwnedFd, ...]
    v2: OwnedFd | None
    landlord: OwnedFd | None = None

    def close(self) -> None:
        """Close all of it: a process that others can see must not hold them."""
        close_all(self.v1_tasks)
        for fd in (self.v2, self.landlord):
            if fd is not None:
                fd.close()


# The cgroup has controllers enabled for its children (init moved into one), or is gone since init left it.
FALLBACK_ERRORS = (errno.EBUSY, errno.ENOENT, errno.ENODEV)


def enter_cgroups(step: Step, entry: CgroupEntry) -> None:
    """Move this process, which has one thread, into its cgroups.

    v1 by writing 0 to `tasks`: `cgroup.procs` takes a lock that costs 7 to 16 ms on a quiet node.
    """
    step.begin("join cgroup")
    for tasks in entry.v1_tasks:
        os.write(tasks.fileno(), b"0")
    if entry.v2 is None:
        return
    try:
        _write_procs(entry.v2)
    except OSError as error:
        if entry.landlord is None or error.errno not in FALLBACK_ERRORS:
            raise
        _write_procs(entry.landlord)


def _write_procs(directory: OwnedFd) -> None:
    fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory.fileno())
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def enter_tenants_cgroups(step: Step, plan: TenantPlan, entry: CgroupEntry) -> None:
    """The join of an exec, with its CPU affinity before and after."""
    initial = plan.affinity.before_join
    if plan.cpuset is not None and initial is not None:
        step.begin("enter cpuset of the initial CPUs")
        plan.cpuset.enter()
        sched_setaffinity(0, initial)
    enter_cgroups(step, entry)
    if plan.cpuset is not None and initial is not None:
        sched_setaffinity(0, initial)  # before Linux 6.2 the join has widened it
    reset_affinity_after_join(step, plan.affinity)


def reset_affinity_after_join(step: Step, affinity: AffinityPlan | None) -> None:
    """The CPU affinity after the join: an explicit set, nothing, or all possible CPUs.

    Since Linux 6.2 the caller's own affinity would survive the join. The reset is an all-ones mask, which
    the kernel clamps to the cpuset: with the effective list instead, the process would not follow when
    the cpuset is widened later.
    """
    step.begin("set cpu affinity")
    if affinity is None or affinity.reset:
        reset_affinity()
    elif affinity.after_join is not None:
        sched_setaffinity(0, affinity.after_join)


def enter_user_namespace(step: Step, plan: LandlordPlan, main: Channel) -> None:
    """Enter or make the user namespace; a new one gets its maps from stage 0, on request."""
    for join, fd in plan.joins:
        if join.kind == c.CLONE_NEWUSER:
            step.begin("join user namespace", join.path)
            enter(join, fd.fileno())
            become_root_inside()
    if plan.namespaces.new & c.CLONE_NEWUSER:
        step.begin("unshare user namespace")
        unshare(c.CLONE_NEWUSER)
        request_mapping(step, plan, main)


def request_mapping(step: Step, plan: LandlordPlan, main: Channel) -> None:
    """Ask stage 0 for the uid and gid maps of our new user namespace and become its root.

    A new time namespace is made before that: its offsets are stage 0's to write as well, since our own files in
    /proc are not ours while we are not dumpable.
    """
    if plan.namespaces.new & c.CLONE_NEWTIME:
        step.begin("unshare time namespace")
        unshare(c.CLONE_NEWTIME)
    step.begin("map user namespace")
    set_dumpable(
        True
    )  # else our uid_map belongs to the global root, and a rootless stage 0 could not write it
    main.send(MappingRequest())
    main.expect(MappingWritten)
    set_dumpable(False)
    become_root_inside()


def become_root_inside() -> None:
    """Take uid 0 and gid 0 of the user namespace just entered; a setuid bit of before must not matter."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def enter_pid_namespace(step: Step, new: int, joins: Iterable[tuple[Join, OwnedFd]]) -> None:
    """Let our next child be born in the PID namespace; the last one we enter, as only that child lives in it."""
    for join, fd in joins:
        if join.kind == c.CLONE_NEWPID:
            step.begin("join pid namespace", join.path)
            enter(join, fd.fileno())
    if new & c.CLONE_NEWPID:
        step.begin("unshare pid namespace")
        unshare(c.CLONE_NEWPID)


def become_intermediate_of_landlord(
    step: Step,
    plan: LandlordPlan,
    entry: CgroupEntry,
    main: Channel,
    clone_init: Callable[[], tuple[int, int]],
) -> None:
    """The whole of stage 1 for a container's init."""
    # Before the user namespace: root outside may join what a mapped root may not. Before the cgroup
    # namespace, whose root is the cgroup that its maker is in.
    enter_cgroups(step, entry)
    entry.close()
    reset_affinity_after_join(step, None)
    if plan.namespaces.new & c.CLONE_NEWUSER:
        # They belong to the user namespace we are about to leave, and so does the right to enter them.
        enter_by_path(step, plan.joins)
        enter_user_namespace(step, plan, main)
    else:
        # What belongs to another user namespace than the one we join takes the rights that we have now.
        left = enter_what_we_may(step, plan.joins)
        enter_user_namespace(step, plan, main)
        enter_by_path(step, left)
    if plan.namespaces.pid_join is None:
        enter_pid_namespace(step, plan.namespaces.new, plan.joins)
    step.begin("clone init")
    report_init(main, *clone_init())


def become_intermediate_of_tenant(
    step: Step, plan: TenantPlan, entry: CgroupEntry, main: Channel, clone_init: Callable[[], tuple[int, int]]
) -> None:
    """The whole of stage 1 for an exec.

    Whoever is born into the container's PID namespace is seen by everybody in it: /proc/PID/mountinfo and
    /proc/PID/net have no ptrace check, and CAP_SYS_PTRACE opens /proc/PID/root and /proc/PID/fd of a process that
    is not dumpable. So this process, which is not in it, enters all the others first and closes what it was
    given: stage 2 is born with nothing of the host's. And with next to no capability that its program will not have,
    since who traces it could use them.
    """
    enter_tenants_cgroups(step, plan, entry)
    entry.close()
    enter_landlords_namespaces(step, plan)
    if plan.kinds & c.CLONE_NEWPID:
        step.begin("join pid namespace", f"of process {plan.landlord_pid}")
        setns(plan.door(c.CLONE_NEWPID), c.CLONE_NEWPID)
        give_up_capabilities(step, plan.process)
    os.close(plan.landlord_pidfd)
    close_doors(plan.doors)
    step.begin("clone init")
    report_init(main, *clone_init())


def give_up_capabilities(step: Step, process: ProcessPlan) -> None:
    """All but what the way to `process` takes. CAP_SYS_ADMIN loads a filter, where no_new_privs does not allow it, and
    makes the procfs that a label is written in.
    """
    step.begin("give up capabilities")
    loads = process.seccomp is not None and not process.no_new_privileges
    give_up(process.credentials, loads or bool(process.apparmor_profile or process.selinux_label))


def report_init(main: Channel, pid: int, pidfd: int) -> None:
    """Hand init over to stage 0: with the pidfd, since the pid alone may be another process's when it is read."""
    main.send(InitPid(pid), (pidfd,))
    os.close(pidfd)


def enter_landlords_namespaces(step: Step, plan: TenantPlan) -> None:
    """All of the container's namespaces but PID, in one call (Linux 5.8): the kernel enters the user namespace first.

    It also moves our root and working directory to the container's. Where init has given them, one by one.
    """
    step.begin("join namespaces", f"of process {plan.landlord_pid}")
    if not plan.kinds & c.CLONE_NEWNS:
        enter_landlords_root(plan)
    kinds = plan.kinds & ~c.CLONE_NEWPID
    if plan.doors:
        for kind, fd in plan.doors:
            if kind & kinds:
                setns(fd.fileno(), kind)
    elif kinds:  # EINVAL for none, as in a container that shares all with the host
        setns(plan.landlord_pidfd, kinds)
    if plan.kinds & c.CLONE_NEWUSER:
        become_root_inside()


def enter_landlords_root(plan: TenantPlan) -> None:
    """Where a container has the host's mount namespace, nothing but a chroot(2) makes its root what it is.

    runc's tenants of such a container have the host's root, and run its programs.
    """
    with OwnedFd(
        os.open(f"/proc/{plan.landlord_pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    ) as root:
        _signal.pidfd_send_signal(plan.landlord_pidfd, 0)  # still there: the pid was its own meanwhile
        os.fchdir(root.fileno())
        os.chroot(".")


def enter_what_we_may(step: Step, joins: Iterable[tuple[Join, OwnedFd]]) -> list[tuple[Join, OwnedFd]]:
    """`enter_by_path`, but for those that we are not privileged over: they are given back."""
    left = []
    for each in joins:
        try:
            enter_by_path(step, (each,))
        except PermissionError:
            left.append(each)
    return left


def enter_by_path(step: Step, joins: Iterable[tuple[Join, OwnedFd]]) -> None:
    """Enter the namespaces given by path that are neither user (done), PID (last) nor late ones."""
    for join, fd in joins:
        if not join.kind & (c.CLONE_NEWUSER | c.CLONE_NEWPID | LATE_KINDS):
            step.begin(f"join {join.name} namespace", join.path)
            enter(join, fd.fileno())
