"""Failures and delays on demand: any step of create, start, exec and delete can be made to fail, or to wait.

For whoever wants to see what is left behind when something goes wrong there: `--fail-at STAGE.STEP[:ERRNO]` and
`--delay-at STAGE.STEP:SECONDS` of the command line, and the tests. A step of a child fails when it begins, one of
main when it has just been done: what it has acquired must be given back. Nothing here is loaded unless it is asked for.
"""

from __future__ import annotations

import errno
import os
import time

from runtime import trace
from runtime.errors import InvalidArgument, StageError
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_ERRNO = errno.EIO
LONGEST_S = 3600.0

_SHARED_JOINS = tuple([f"join {kind} namespace" for kind in ("network", "ipc", "uts")])
_JOIN_CGROUP = ("enter cpuset of the initial CPUs", "join cgroup", "set cpu affinity")
# Of init, or of the intermediate process where init is to be born into a PID namespace of others.
_WORLD = (
    "unshare namespaces",
    "join cgroup namespace",
    "join time namespace",
    "unshare cgroup namespace",
    "unshare time namespace",
    "make time namespace",
    "open own namespaces",
    "set hostname",
    "set domainname",
    "bring up",
    "mount root file system",
    "wait for host",
    "set up network devices",
    "run createContainer hooks",
    "pivot into",
)
_PROTECTION = ("make working directory", "write sysctls", "mask and protect paths")
_PROGRAM = (
    "set up stdio",
    "wait for limits",
    "set personality",
    "set memory policy",
    "set security label",
    "load seccomp filter",
    "change to working directory",
    "set credentials",
    "set no_new_privs",
    "look up",
    "execute",
)

# Every step by stage, as the code names them; a test holds the two together.
STEPS: dict[str, tuple[str, ...]] = {
    "main": (
        "clone creator",
        "read config",
        "make state directory",
        "make start gate",
        "announce",
        "prepare root file system",
        "plan",
        "make cgroup",
        "clone",
        "map user namespace",
        "limit processes",
        "set limits",
        "attend to the host's part",
        "hear that it is ready",
        "save state",
        "ask to start",
        "execute",
        "run poststart hooks",
        "end container",
        "remove cgroup",
        "run poststop hooks",
        "take mounts away",
        "remove resctrl group",
        "remove state",
    ),
    "creator": ("create container",),
    "inter": (
        *_JOIN_CGROUP,
        "join user namespace",
        "unshare user namespace",
        "map user namespace",
        *_SHARED_JOINS,
        "join namespaces",
        *_WORLD,
        *_PROTECTION,
        "make terminal",
        "join pid namespace",
        "unshare pid namespace",
        "give up capabilities",
        "clone init",
    ),
    "init": (
        *_JOIN_CGROUP,
        "map user namespace",
        *_SHARED_JOINS,
        "join namespaces",
        *_WORLD,
        *_PROTECTION,
        "make session keyring",
        "join session keyring",
        *_PROGRAM,
        "run startContainer hooks",
    ),
    "opener": (
        "make user namespaces for id-mapped mounts",
        "join the mount namespace of the container",
        "open mount source",
    ),
}
# What a stage is called in `ps`, and here.
STAGES = {"0:CREATE": "creator", "1:INTER": "inter", "2:INIT": "init", "0:MOUNT": "opener", "main": "main"}


class Fault(Record):
    """Something that is to happen at one step: wait `delay_s`, then fail with `number` (an errno; 0: go on)."""

    stage: str
    step: str
    number: int = 0
    delay_s: float = 0.0


def name_of(step: str) -> str:
    """A step's name on the command line: "set up stdio" is set-up-stdio."""
    return step.replace(" ", "-")


def parse_failure(text: str) -> Fault:
    """The fault that `STAGE.STEP[:ERRNO]` asks for; ERRNO is a name (ENOSPC) or a number. InvalidArgument."""
    place, _colon, number = text.partition(":")
    stage, step = _find(text, place)
    return Fault(stage, step, _errno(text, number) if number else DEFAULT_ERRNO)


def parse_delay(text: str) -> Fault:
    """The fault that `STAGE.STEP:SECONDS` asks for. InvalidArgument."""
    place, _colon, number = text.partition(":")
    stage, step = _find(text, place)
    whole, _point, fraction = number.partition(".")
    if not (whole + fraction).isdecimal() or not number.isascii() or not 0 < float(number) <= LONGEST_S:
        raise InvalidArgument(f"{text}: what is to be waited is 0 to {LONGEST_S:.0f} seconds, not {number!r}")
    return Fault(stage, step, delay_s=float(number))


def _find(text: str, place: str) -> tuple[str, str]:
    stage, _dot, name = place.partition(".")
    steps = STEPS.get(stage)
    if steps is None:
        raise InvalidArgument(f"{text}: no stage {stage!r}; there are {' '.join(STEPS)}")
    for step in steps:
        if name_of(step) == name:
            return stage, step
    known = " ".join(name_of(step) for step in steps)
    raise InvalidArgument(f"{text}: stage {stage} has no step {name!r}; it has {known}")


def _errno(text: str, number: str) -> int:
    for known, name in errno.errorcode.items():
        if number in (name, str(known)):
            return known
    raise InvalidArgument(f"{text}: {number!r} is no error number")


def plant(faults: Sequence[Fault]) -> None:
    """Have `faults` happen in this process and in all stages that it will clone; none at all takes them away."""
    if not faults:
        trace.planted = None
        return

    def meet(stage: str, step: str) -> None:
        for fault in faults:
            if (fault.stage, fault.step) == (STAGES.get(stage), step):
                happen(fault, stage)

    trace.planted = meet


def happen(fault: Fault, stage: str) -> None:
    """Wait or fail. StageError names the stage and the step, as the step's own failure would."""
    if fault.delay_s:
        time.sleep(fault.delay_s)
    if fault.number:
        raise StageError(stage, fault.step, "", f"{os.strerror(fault.number)} (on demand)", fault.number)


def plant_what_is_asked(failures: Sequence[str], delays: Sequence[str]) -> None:
    """What the command line's options ask for. InvalidArgument, also for who is not root: it is no user's business."""
    if not failures and not delays:
        return
    if os.geteuid() != 0:
        raise InvalidArgument("--fail-at and --delay-at are for root only")
    plant([*map(parse_delay, delays), *map(parse_failure, failures)])
