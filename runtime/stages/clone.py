"""The one place where stages are forked, and the first acts of every child.

A child reports what goes wrong and ends here: it never returns into its parent's code. How it is cloned
(clone3, or clone where that call does not exist) is decided here as well; what it does is not.
"""

from __future__ import annotations

import _signal
import errno
import gc
import os

from runtime import trace
from runtime.linux import constants as c
from runtime.linux import process
from runtime.stages.channel import channel_pair
from runtime.trace import Timeline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from runtime.stages.channel import Channel

INTER = "1:INTER"
INIT = "2:INIT"
HOOK = "HOOK"
PLACEHOLDER = "SCOPE"

_ALL_SIGNALS = tuple(
    [number for number in range(1, _signal.NSIG) if number not in (32, 33)]
)  # glibc keeps two
_RESETTABLE = tuple([number for number in _ALL_SIGNALS if number not in (_signal.SIGKILL, _signal.SIGSTOP)])


class Step:
    """What a child is about to do, so that its failure can be reported with operation and object."""

    __slots__ = ("operation", "stage", "subject", "timeline")

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.operation, self.subject = "begin", ""
        self.timeline = Timeline()

    def begin(self, operation: str, subject: str = "") -> None:
        """The step before is done: note when, and what comes now."""
        self.timeline.note(self.operation)
        self.operation, self.subject = operation, subject
        if trace.planted is not None:
            trace.planted(self.stage, operation)

    def done(self) -> None:
        """The last step is done."""
        self.timeline.note(self.operation)


def clone_stage(
    name: str,
    run: Callable[[Step], None],
    report: Channel,
    keep: tuple[int, ...],
    flags: int = 0,
    sibling: bool = False,
    cgroup_fd: int = -1,
) -> tuple[int, int]:
    """Clone a child that does `run` and ends; (pid, pidfd) in the parent, who owns the pidfd.

    `keep` are the descriptors above 2 that the child needs; all others are closed in it. `sibling` makes
    it a child of our parent (CLONE_PARENT), which must be cloned without an exit signal, EINVAL otherwise: it
    inherits ours. OSError of clone3(2), among them EBUSY for a cgroup that has controllers enabled
    for its children; with `cgroup_fd` and no clone3, ENOSYS (the child must join by itself then).
    """
    if sibling:
        flags |= c.CLONE_PARENT
    exit_signal = 0 if sibling else _signal.SIGCHLD
    blocked_before = _signal.pthread_sigmask(_signal.SIG_SETMASK, _ALL_SIGNALS)
    try:
        pid, pidfd = _clone(flags, exit_signal, cgroup_fd)
    except OSError:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, blocked_before)
        raise
    if not pid:
        _be_stage(name, run, report, keep)  # never returns
    _signal.pthread_sigmask(_signal.SIG_SETMASK, blocked_before)
    return pid, pidfd


def _clone(flags: int, exit_signal: int, cgroup_fd: int) -> tuple[int, int]:
    try:
        return process.clone3(flags, exit_signal, cgroup_fd)
    except OSError as error:
        # ENOSYS alone says that the call does not exist; anything else is its answer.
        if error.errno != errno.ENOSYS or cgroup_fd >= 0:
            raise
        return process.clone(flags, exit_signal)


def _be_stage(name: str, run: Callable[[Step], None], report: Channel, keep: tuple[int, ...]) -> NoReturn:
    step = Step(name)
    status = 255
    try:
        gc.disable()  # a collection would write to every page that is still shared with the parent
        _signal.set_wakeup_fd(-1)  # shared with the parent's loop, which would be woken by our signals
        for number in _RESETTABLE:
            _signal.signal(
                number, _signal.SIG_DFL
            )  # without asking: C code may have set one behind Python's back
        process.reset_hidden_signals()
        process.close_all_but((report.fileno(), *keep))
        process.set_process_name(f"manor:[{name}]")
        process.set_dumpable(False)  # before any namespace of the container is entered (CVE-2016-9962)
        run(step)
        status = 0
    except BaseException as failure:
        report.send_failure(name, (step.operation, step.subject), failure)
    os._exit(status)


def end_with(parent: int) -> None:
    """Of a stage: be killed when `parent`, which cloned it, ends; at once, if it has."""
    process.set_parent_death_signal(_signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(255)


def spawn_hook(become: Callable[[], None], fds: tuple[int, ...]) -> tuple[int, int]:
    """Clone a child that is to become a hook's program, with nothing open but `fds`; (pid, pidfd). OSError."""
    near, far = channel_pair("main", HOOK)
    try:
        return clone_stage(HOOK, lambda _step: become(), far, fds)
    finally:
        near.close()  # a hook that cannot be run says so in its output
        far.close()


def spawn_placeholder() -> tuple[int, int]:
    """Clone a child that does nothing until it is killed, or we end; (pid, pidfd). OSError."""
    near, far = channel_pair("main", PLACEHOLDER)
    parent = os.getpid()

    def wait(_step: Step) -> None:
        end_with(parent)
        _signal.pause()

    try:
        return clone_stage(PLACEHOLDER, wait, far, ())
    finally:
        near.close()
        far.close()


def unblock_signals() -> None:
    """Take away the mask that was set around the clone; the last thing before execve."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
