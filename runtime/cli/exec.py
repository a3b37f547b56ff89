"""exec: one more process in a running container."""

from __future__ import annotations

import os

from runtime import state
from runtime.affinity import format_cpu_list
from runtime.cgroups.joining import LANDLORD, SUB, parse_sub_cgroups
from runtime.cli import logs
from runtime.cli.arguments import Option, Verb
from runtime.cli.exec_process import wanted_process
from runtime.cli.foreground import Foreground, hold_signals_back
from runtime.cli.handover import (
    CONSOLE_SOCKET,
    DETACH,
    PID_FILE,
    PRESERVE_FDS,
    Handover,
    check_preserved,
    check_terminal,
)
from runtime.cli.host import container
from runtime.container import ExecOptions, ExecRequest
from runtime.errors import InvalidState, ManorError
from runtime.linux.fds import OwnedFd
from runtime.operations.exec import exec_, plan_affinity
from runtime.record import replace
from runtime.stages.plan import Stdio
from runtime.stages.stage0_parent import bury
from runtime.waiting import run as drive

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cli.arguments import Call
    from runtime.container import Container, Tenant

FAILED = 255  # runc's exit code for an exec that did not come to run


def exec_in(call: Call) -> int:
    """The exit code of the process; 0 where we do not wait for it, 255 where it could not be run."""
    try:
        return _exec(call)
    except (ManorError, OSError) as error:
        return logs.fatal(f"exec failed: {logs.explain(error)}", FAILED)


def _exec(call: Call) -> int:
    pid_file = call.options["pid-file"]
    pid_file = os.path.abspath(pid_file) if pid_file else ""
    found = container(call)
    if found.status == state.STOPPED:
        raise InvalidState("cannot exec in a stopped container")
    if found.status == state.PAUSED and not call.options["ignore-paused"]:
        raise InvalidState("cannot exec in a paused container (use --ignore-paused to override)")
    process = wanted_process(call, found.bundle)
    options = ExecOptions(
        cgroup=tuple(parse_sub_cgroups(call.options["cgroup"]).items()),
        ignore_paused=call.options["ignore-paused"],
        preserved_fds=check_preserved(0, call.options["preserve-fds"]),
    )
    detach = call.options["detach"]
    check_terminal(call, process, detach)
    handover = Handover(call, pid_file)
    if detach:
        _start(found, ExecRequest(process, Stdio(0, 1, 2), options=options), handover)
        return 0
    return _foreground(found, ExecRequest(process, Stdio(), options=options), handover)


def _foreground(found: Container, request: ExecRequest, handover: Handover) -> int:
    hold_signals_back()
    front = Foreground(request.process.terminal, _owner(found))
    try:
        tenant = _start(found, replace(request, stdio=front.stdio()), handover)
        front.attach(tenant.console)
        code = front.wait(tenant.pid, tenant.pidfd.fileno())
        front.drain()
    finally:
        front.close()
    return code


def _start(found: Container, request: ExecRequest, handover: Handover) -> Tenant:
    tenant = drive(exec_(found, request))
    logs.tell(tenant.warnings, tenant.marks)
    if logs.log.debugging:
        _tell_where(found, request, tenant)
    try:
        handover.give(tenant.pid, tenant.pidfd, tenant.console, b"setns")
    except BaseException:
        drive(bury(tenant.pid, tenant.pidfd))
        raise
    return tenant


def _tell_where(found: Container, request: ExecRequest, tenant: Tenant) -> None:
    """Which cgroup has been joined and why, and which CPUs it was and is to run on."""
    own = found.cgroup.path
    if tenant.cgroup == LANDLORD:
        where = f"the v2 cgroup that init is in now, as {own} cannot be joined: {tenant.cgroup_why or 'it is gone'}"
    elif tenant.cgroup == SUB:
        asked = (
            f"{controller}:{path}" if controller else path for controller, path in request.options.cgroup
        )
        where = f"what was asked for below cgroup {own}: {' '.join(asked)}"
    else:
        where = f"the container's own cgroup {own}"
    logs.debug(f"process {tenant.pid} joined {where}")
    plan = plan_affinity(found, request.process)
    before = "unchanged" if plan.before_join is None else format_cpu_list(plan.before_join)
    after = "all possible CPUs" if plan.reset else format_cpu_list(plan.after_join or plan.before_join or ())
    logs.debug(f"cpu affinity of process {tenant.pid}: {before} before it joined, {after} after")


def _owner(found: Container) -> tuple[int, int]:
    """The host's ids of the container's root, as init's maps have them."""
    ids = []
    for name in ("uid_map", "gid_map"):
        with OwnedFd(os.open(f"/proc/{found.pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)) as fd:
            rows = os.read(fd.fileno(), 65536).split(b"\n")
        starts = [row.split() for row in rows if row]
        ids.append(next((int(row[1]) for row in starts if row[0] == b"0"), 0))
    return ids[0], ids[1]


VERBS = {
    "exec": Verb(
        "exec",
        "<container-id> <command> [command options]  || -p process.json <container-id>",
        "execute new process inside the container",
        (
            CONSOLE_SOCKET,
            Option(
                ("--pidfd-socket",),
                help="path to an AF_UNIX socket which will receive a file descriptor referencing the exec process",
            ),
            Option(("--cwd",), help="current working directory in the container"),
            Option(("--env", "-e"), "list", help="set environment variables"),
            Option(("--tty", "-t"), "flag", help="allocate a pseudo-TTY"),
            Option(("--user", "-u"), help="UID (format: <uid>[:<gid>])"),
            Option(("--additional-gids", "-g"), "ints", help="additional gids"),
            Option(("--process", "-p"), help="path to the process.json"),
            DETACH,
            PID_FILE,
            Option(
                ("--process-label",),
                help="set the asm process label for the process commonly used with selinux",
            ),
            Option(("--apparmor",), help="set the apparmor profile for the process"),
            Option(("--no-new-privs",), "flag", help="set the no new privileges value for the process"),
            Option(("--cap", "-c"), "list", help="add a capability to the bounding set for the process"),
            PRESERVE_FDS,
            Option(
                ("--cgroup",),
                "list",
                help="run the process in an (existing) sub-cgroup(s). Format is [<controller>:]<cgroup>.",
            ),
            Option(("--ignore-paused",), "flag", help="allow exec in a paused container"),
        ),
        exec_in,
        least=1,
        most=None,
        own_command=True,
        about="The command is run in the container as the process of its config.json is, but for what the options\n"
        "   change; with --process, all of it is in that file.",
    )
}
