"""kill, delete, pause, resume."""

from __future__ import annotations

import _signal

from runtime import state
from runtime.cli import logs
from runtime.cli.arguments import Option, Verb
from runtime.cli.host import container, host, sole
from runtime.errors import InvalidArgument, InvalidState, NotFound
from runtime.operations.delete import delete as delete_container
from runtime.operations.delete import delete_by_force
from runtime.operations.kill import is_for_everyone
from runtime.operations.kill import kill as kill_container
from runtime.operations.load import lock as lock_container
from runtime.operations.update import pause as pause_container
from runtime.operations.update import resume as resume_container
from runtime.waiting import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cli.arguments import Call

# Names that signal(7) has and this interpreter's module need not.
_MORE_SIGNALS = {"SIGIOT": 6, "SIGSTKFLT": 16, "SIGCLD": 17, "SIGPOLL": 29, "SIGUNUSED": 31}


def signal_number(text: str) -> int:
    """The signal that "9", "KILL", "SIGKILL", "kill" or "RTMIN+1" means. InvalidArgument for one that is none."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    if digits.isascii() and digits.isdecimal():
        return int(text)
    name = text.upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name in _MORE_SIGNALS:
        return _MORE_SIGNALS[name]
    base, sign, offset = name.partition("+") if "+" in name else name.partition("-")
    number = vars(_signal).get(base)
    # SIG_IGN, SIG_BLOCK and the like are numbers too, with a character that no signal's name has.
    if type(number) is not int or not base.isalnum():
        raise InvalidArgument(f'unknown signal "{text}"')
    if not sign:
        return number
    if base not in ("SIGRTMIN", "SIGRTMAX") or not offset.isdecimal():
        raise InvalidArgument(f'unknown signal "{text}"')
    return number + int(sign + offset)


def kill(call: Call) -> int:
    """Send a signal to init; SIGKILL to every process, where they don't end with init (no PID namespace of its own).

    `--all` does no more than put up with a container that has ended, as with runc.
    """
    asked = call.arguments[1] if len(call.arguments) > 1 else ""
    number = signal_number(asked or "SIGTERM")
    found = container(call)
    try:
        if found.status == state.STOPPED and not is_for_everyone(found, number):
            raise NotFound
        if number != 0:  # 0 asks only whether there is somebody (kill(2))
            kill_container(found, number)
    except NotFound:
        if not call.options["all"]:
            raise InvalidState("container not running") from None
    return 0


def delete(call: Call) -> int:
    """Remove a container that is stopped, or was never started; with `--force` any."""
    warnings = _delete_by_force(call) if call.options["force"] else _delete(call)
    for warning in warnings:
        logs.warn(warning)
    return 0


def _delete(call: Call) -> tuple[str, ...]:
    lock, found = sole(call)
    with lock:
        if found.status not in (state.STOPPED, state.CREATED):
            raise InvalidState(f"cannot delete container {found.id} that is not stopped: {found.status}")
        run(delete_container(found))
    return found.warnings


def _delete_by_force(call: Call) -> tuple[str, ...]:
    """It may be gone already, and whoever is at work on it for too long does not keep us from it."""
    machine, name = host(call.globals), call.arguments[0]
    lock = None
    try:
        lock = run(lock_container(machine, name))
    except NotFound:
        return ()
    except InvalidState as error:
        logs.warn(str(error))
    try:
        return run(delete_by_force(machine, name))
    except NotFound:
        return ()
    finally:
        if lock is not None:
            lock.close()


def pause(call: Call) -> int:
    """Freeze every process of the container."""
    lock, found = sole(call)
    with lock:
        if found.status in (state.STOPPED, state.PAUSED):
            raise InvalidState("container not running")
        run(pause_container(found))
    return 0


def resume(call: Call) -> int:
    """Thaw the container."""
    lock, found = sole(call)
    with lock:
        if found.status != state.PAUSED:
            raise InvalidState("container not paused")
        resume_container(found)
    return 0


_ONE = "<container-id>"
VERBS = {
    "kill": Verb(
        "kill",
        "<container-id> [signal]",
        "kill sends the specified signal (default: SIGTERM) to the container's init process",
        (Option(("--all", "-a"), "flag", help="(obsoleted, do not use)", hidden=True),),
        kill,
        least=1,
        most=2,
        about="The signal is a number, or a name with or without SIG: KILL, SIGKILL, 9.",
    ),
    "delete": Verb(
        "delete",
        _ONE,
        "delete any resources held by the container often used with detached container",
        (
            Option(
                ("--force", "-f"),
                "flag",
                help="Forcibly deletes the container if it is still running (uses SIGKILL)",
            ),
        ),
        delete,
        least=1,
        most=1,
    ),
    "pause": Verb(
        "pause", _ONE, "pause suspends all processes inside the container", (), pause, least=1, most=1
    ),
    "resume": Verb(
        "resume",
        _ONE,
        "resumes all processes that have been previously paused",
        (),
        resume,
        least=1,
        most=1,
    ),
}
