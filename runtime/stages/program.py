"""The last steps of every start, landlord or tenant: standard descriptors, limits, credentials, seccomp, execve.

We are in 2:INIT with all namespaces entered and the container's root below us. Nothing here imports,
reads source files or asks NSS: from here on every path belongs to the container.
"""

from __future__ import annotations

import os
import stat

from runtime import labels
from runtime.credentials import become
from runtime.limits import apply_memory_policy
from runtime.linux.fds import OwnedFd
from runtime.linux.process import set_no_new_privs
from runtime.linux.sched import personality
from runtime.linux.seccomp import load
from runtime.payload import close_on_exec, enter_cwd, execute, prepare, try_enter_cwd
from runtime.stages.clone import unblock_signals
from runtime.stages.messages import LimitsSet, Listener, ListenerAt, ListenerTaken, Ready
from runtime.terminal import mount_console, open_console, take_control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from runtime.linux.seccomp import Filter
    from runtime.payload import Program
    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step
    from runtime.stages.plan import ProcessPlan, Stdio

    Terminal = tuple[OwnedFd, OwnedFd]  # master and slave


class Prepared:
    """A process that lacks nothing but its start: what Ready brings to stage 0, and what execve needs."""

    __slots__ = ("console", "plan", "program")

    def __init__(self, plan: ProcessPlan, program: Program, console: OwnedFd | None) -> None:
        self.plan, self.program, self.console = plan, program, console


def prepare_program(
    step: Step, plan: ProcessPlan, main: Channel, landlord: bool, terminal: Terminal | None = None
) -> Prepared:
    """Everything between the last namespace and the start gate. StageError for a bad cwd, user or command.

    `terminal` is the one to be taken, where somebody else has made it.
    """
    step.begin("set up stdio")
    os.setsid()
    console = None
    if plan.terminal:
        console = take_console(terminal or make_terminal(plan, landlord))
    else:
        take_stdio(plan.stdio, plan.credentials.uid)
    step.begin("wait for limits")
    main.expect(LimitsSet)  # set from outside: we may have lost the right to by now
    if plan.personality is not None:
        step.begin("set personality")
        personality(plan.personality)
    if plan.memory_policy is not None:
        step.begin("set memory policy")
        apply_memory_policy(plan.memory_policy)
    step.begin("set security label")
    labels.apply(plan.apparmor_profile, plan.selinux_label)
    close_on_exec(plan.preserved_fds)  # a filter need not allow it
    step.begin("change to working directory", plan.cwd)
    entered = try_enter_cwd(plan.cwd)
    if plan.seccomp is not None and not plan.no_new_privileges:
        # Without no_new_privs only CAP_SYS_ADMIN may load a filter, and the credentials drop it.
        step.begin("load seccomp filter")
        load_filter(plan.seccomp, main)
    step.begin("set credentials", f"of uid {plan.credentials.uid}")
    become(plan.credentials)
    if not entered:
        step.begin("change to working directory", plan.cwd)
        enter_cwd(plan.cwd)
    if plan.no_new_privileges:
        step.begin("set no_new_privs")
        set_no_new_privs()
        if plan.seccomp is not None and plan.seccomp.notify:
            step.begin("load seccomp filter")
            load_filter(plan.seccomp, main)  # its listener has to be handed over while somebody is there
    step.begin("look up", plan.args[0])
    program = prepare(plan.args, plan.env)
    step.done()
    return Prepared(plan, program, console)


def load_filter(compiled: Filter, main: Channel) -> None:
    """Put us under the filter. Its listener is stage 0's to pass on, at once: our next call may wait for it.

    So the first is a write(2), the only one that a profile may not have an agent answer, as with runc.
    """
    listener = load(compiled)
    if listener >= 0:
        with OwnedFd(listener):
            main.write(ListenerAt(listener))
            if not main.expect(ListenerTaken).taken:
                main.send(Listener(), (listener,))


def make_terminal(plan: ProcessPlan, landlord: bool) -> Terminal:
    """A pty of the container's own devpts, which is /dev/console if it is that of init."""
    size = plan.console_size
    rows_columns = (size.height, size.width) if size else None
    master, slave = open_console(plan.credentials.uid, rows_columns, control=False)
    if landlord:
        mount_console(slave.fileno())
    return master, slave


def take_console(terminal: Terminal) -> OwnedFd:
    """Make a pty our controlling terminal and stdio; gives its master."""
    master, slave = terminal
    with slave:
        take_control(slave)
        for number in (0, 1, 2):
            os.dup2(slave.fileno(), number, inheritable=True)
    return master


def take_stdio(stdio: Stdio, uid: int) -> None:
    """Put the caller's descriptors on 0, 1 and 2, owned by the container's user."""
    wanted = (stdio.stdin, stdio.stdout, stdio.stderr)
    # A wanted descriptor may itself be 0, 1 or 2: copy such ones away before anything is overwritten.
    safe = [os.dup(number) if 0 <= number <= 2 else number for number in wanted]
    for target, number in enumerate(safe):
        os.dup2(number, target, inheritable=True)
        if uid:
            _give_to(target, uid)


def _give_to(fd: int, uid: int) -> None:
    """Let `uid` open /dev/stdin and its like again. Only pipes and sockets: a device or a file is not ours to give."""
    status = os.fstat(fd)
    if status.st_uid != uid and (stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode)):
        try:
            os.fchown(fd, uid, -1)
        except OSError:
            pass  # a read-only or foreign file system: the descriptor itself works all the same


def announce(step: Step, prepared: Prepared, main: Channel) -> None:
    """Say that nothing but the start is left, and hand over what stage 0 must own."""
    names, fds = [], []
    if prepared.console is not None:
        names.append("console")
        fds.append(prepared.console.fileno())
    main.send(Ready(tuple(names), step.timeline.marks()), fds)
    if prepared.console is not None:
        prepared.console.close()


def run_program(step: Step, prepared: Prepared, before: Callable[[], None] | None) -> NoReturn:
    """Load the filter if it comes last, and execve.

    Nothing may stand between those two: the filter binds us as well, and need allow nothing but the program's calls.
    A hook may, if there is one: it is a program of the image, which may not be free of what binds the others.
    """
    plan = prepared.plan
    step.begin("execute", plan.args[0])
    if before is None:
        unblock_signals()
    if plan.seccomp is not None and plan.no_new_privileges and not plan.seccomp.notify:
        load(plan.seccomp)
    if before is not None:
        step.begin("run startContainer hooks")
        before()
        step.begin("execute", plan.args[0])
        unblock_signals()
    execute(prepared.program)
