"""`manor leaks`: what shims of this node have made and nobody owns any more; `--gc` removes it.

The ledger (`manor/ledger.py`) says what there is and whose it is. What is found is looked for again some seconds
later: a shim that ends, or a `delete` at work, is no leak. How it is removed is `manor/sweep.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

from manor import ledger
from manor.belongings import Claims, cgroup_of, group_of, mounts_of, users_of
from manor.ledger import Pod, Stage, Untrusted
from manor.ps import age, printable, table
from manor.sweep import Sweep, is_socket, locked, strays_of
from runtime import state
from runtime.cgroups.layout import Layout, detect_layout
from runtime.errors import ManorError, describe
from runtime.state import State
from shim import daemon

GRACE_S = 5.0
MOST_USERS = 16  # that are named
_MOST_BYTES = 1 << 20  # of an environment: a process may say that its own lies anywhere

PROCESS, MOUNT, CGROUP, UNIT = "process", "mount", "cgroup", "unit"
RESCTRL, SOCKET, LOCK, STATE = "resctrl", "socket", "lock", "state"


@dataclass(frozen=True)
class Leak:
    """One thing that nobody owns: what it is, who has made it, for which pod and container, and for how long.

    `held_by` are processes in a cgroup or a mounted root that are not known to be ours, or of others: they are in the
    way.
    """

    kind: str
    what: str
    made_by: str
    namespace: str = ""
    pod: str = ""
    container: str = ""
    age_s: float = 0.0
    held_by: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """By which it is known again."""
        return self.kind, self.what


@dataclass
class Found:
    """What a look has found. `waiting` are the pods that containerd will come for; `failures` what went wrong."""

    leaks: list[Leak] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Look:
    """One look at a node: what is mounted, which processes there are, what the ledger says."""

    def __init__(self, run_dir: str, layout: Layout) -> None:
        self.run_dir = run_dir
        self._layout = layout
        self._mounts = ledger.mounts()
        self._stages = ledger.stages()
        self._foreign: Container[str] = ()
        self.found = Found()

    def take(self) -> Found:
        """Everything. Untrusted, OSError."""
        sessions: set[int] = set()
        pods = list(ledger.pods(self.run_dir))
        claimed = Claims(pods)
        for pod in pods:
            if pod.deed is not None:
                sessions.add(pod.deed.pid)
            with locked(pod) as ours:
                if not ours:
                    continue
                self._foreign = claimed.foreign_to(pod)
                try:
                    self._pod(ledger.read_pod(pod.directory))
                except (ManorError, OSError, ValueError) as error:  # the others are looked at all the same
                    self.found.failures.append(f"pod {pod.name}: {describe(error)}")
        self.found.leaks += [_stage_leak(each) for each in self._stages if self._is_stray(each, sessions)]
        self.found.leaks += [_warden_leak(each.stem) for each in ledger.dead_wardens(self.run_dir)]
        return self.found

    def _pod(self, pod: Pod) -> None:
        if pod.bundles() and pod.containerd_answers() is not True:
            self.found.waiting.append(pod.name)
        else:
            self.found.leaks += self.of_pod(pod)

    def of_pod(self, pod: Pod) -> list[Leak]:
        """What there is of a pod that nobody owns."""
        blank = Leak("", "", "the shim's start", pod.namespace, pod.name)
        began_s = _age(pod.directory) if pod.deed is None else max(0.0, time.time() - pod.deed.began / 1e9)
        found = [
            replace(
                blank, kind=PROCESS, what=f"{each.pid} manor:[{each.name}]", made_by="a start", age_s=began_s
            )
            for each in strays_of(pod, self._stages)
        ]
        for container_id, known in pod.containers.items():
            found += self._of_container(pod, replace(blank, container=container_id), known)
        found += [
            replace(blank, kind=MOUNT, what=each.point, made_by="StartSandbox", age_s=_age(each.point))
            for each in self._mounts
            if each.point in pod.files.mounts
        ]
        if is_socket(pod.own_socket):
            found.append(replace(blank, kind=SOCKET, what=pod.own_socket, age_s=_age(pod.own_socket)))
        found.append(replace(blank, kind=STATE, what=pod.directory, age_s=began_s))
        return found

    def _of_container(self, pod: Pod, blank: Leak, known: State | None) -> Iterator[Leak]:
        directory = f"{pod.directory}/{blank.container}"
        made_by = "Create" if known is not None and known.pid else "a Create that was cut short"
        blank = replace(blank, made_by=made_by, age_s=_age(directory))
        if known is not None:
            if known.pid and state.is_alive(known.pid, known.start_time):
                yield replace(blank, kind=PROCESS, what=f"{known.pid} init")
            yield from self._of_groups(pod, blank, known)
            mounts = mounts_of(pod, known, self._mounts, self._foreign)
            for each in mounts.tops:
                users = tuple(pid for pid in users_of(each.point) if pid != known.pid)[:MOST_USERS]
                yield replace(blank, kind=MOUNT, what=each.point, held_by=users)
            for each in mounts.below:
                yield replace(blank, kind=MOUNT, what=each.point)
        yield replace(blank, kind=STATE, what=directory)

    def _of_groups(self, pod: Pod, blank: Leak, known: State) -> Iterator[Leak]:
        cgroup = cgroup_of(self._layout, pod, known)
        if cgroup is not None and cgroup.unit:
            yield replace(blank, kind=UNIT, what=cgroup.unit)
        if cgroup is not None and cgroup.paths:
            place, users = next(iter(cgroup.paths.values())), tuple(cgroup.holders(MOST_USERS))
            yield replace(blank, kind=CGROUP, what=place, held_by=users)
        if (group := group_of(pod, known, self._foreign)) is not None:
            yield replace(blank, kind=RESCTRL, what=group.path, held_by=group.tasks[:MOST_USERS])

    def _is_stray(self, stage: Stage, sessions: set[int]) -> bool:
        """Whether it is of a shim that is gone with all that was on record, and could be ours at all: a container may
        call its processes what it likes, but not make them root's beside us. What another run directory has is on
        record there.
        """
        return (
            stage.state not in ledger.ENDED
            and stage.session not in sessions
            and not _lives(stage.session)
            and _is_beside_us(stage.pid)
            and _is_of(stage.pid, self.run_dir)
        )


def _stage_leak(stage: Stage) -> Leak:
    return Leak(PROCESS, f"{stage.pid} manor:[{printable(stage.name)}]", "a shim that is not on record")


def _warden_leak(stem: str) -> Leak:
    """A socket, or where no warden came up, so that there never was one, the lock of who tried."""
    path, lock = f"{stem}.sock", f"{stem}.lock"
    if os.path.lexists(path):
        return Leak(SOCKET, path, "warden", age_s=_age(lock))
    return Leak(LOCK, lock, "a warden that did not come up", age_s=_age(lock))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_beside_us(pid: int) -> bool:
    """Whether a process is in our PID and user namespace, and ours by its ids."""
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid() and all(
            os.path.samestat(os.stat(f"/proc/{pid}/ns/{kind}"), os.stat(f"/proc/self/ns/{kind}"))
            for kind in ("pid", "user")
        )
    except OSError:
        return False


def _is_of(pid: int, run_dir: str) -> bool:
    """Whether a process has its environment from a warden of that directory, or nobody can tell."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read(_MOST_BYTES).split(b"\0")
    except OSError:
        return True
    environ = dict(os.fsdecode(each).partition("=")[::2] for each in entries)
    return os.path.realpath(daemon.run_dir(environ)) == os.path.realpath(run_dir)


def _age(path: str) -> float:
    try:
        return max(0.0, time.time() - os.lstat(path).st_mtime)
    except OSError:
        return 0.0


def look(run_dir: str, grace_s: float) -> Found:
    """What nobody owns, and still does not after `grace_s`. Untrusted, OSError, ManorError."""
    layout = detect_layout()
    first = Look(run_dir, layout).take()
    if not first.leaks:
        return first
    time.sleep(grace_s)
    known = {each.key for each in first.leaks}
    second = Look(run_dir, layout).take()
    second.leaks = [each for each in second.leaks if each.key in known]
    return second


# ---- showing it ----------------------------------------------------------------------------------

HEADS = ("KIND", "WHAT", "NAMESPACE", "POD", "CONTAINER", "MADE BY", "AGE", "IN USE BY")


def lines_of(leaks: Iterable[Leak]) -> list[tuple[object, ...]]:
    """The table's."""
    return [
        (
            each.kind,
            each.what,
            each.namespace,
            each.pod,
            each.container,
            each.made_by,
            age(each.age_s),
            " ".join(map(str, each.held_by)),
        )
        for each in leaks
    ]


def main(arguments: Sequence[str]) -> int:
    """Print what nobody owns. 1 if there is anything, or with --gc if something is left; 2 if nothing can be known."""
    parser = argparse.ArgumentParser(prog="manor leaks", description="what nobody owns on this node")
    parser.add_argument("--gc", action="store_true", help="remove it")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--run-dir", default=daemon.run_dir(os.environ), help="%(default)s")
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE_S,
        metavar="SECONDS",
        help="how long it must be there (%(default)s)",
    )
    asked = parser.parse_args(arguments)
    try:
        found = look(asked.run_dir, asked.grace)
        left = collect(asked.run_dir, found) if asked.gc and found.leaks else found
    except (OSError, Untrusted, ManorError) as error:
        told = str(error) if isinstance(error, Untrusted) else describe(error)
        print(f"manor leaks: {told}", file=sys.stderr)
        return 2
    _show(found, left, asked.gc, asked.json)
    return int(bool(left.leaks or left.failures))


def collect(run_dir: str, found: Found) -> Found:
    """Remove what was found; what is left of it. Untrusted, OSError, ManorError."""
    layout = detect_layout()
    sweep = Sweep(run_dir, layout)
    sweep.pods({each.what for each in found.leaks if each.kind == STATE and not each.container})
    sweep.wardens()
    left = Look(run_dir, layout).take()
    known = {each.key for each in found.leaks}
    left.leaks = [each for each in left.leaks if each.key in known]
    left.failures += sweep.failures
    return left


def _show(found: Found, left: Found, collected: bool, as_json: bool) -> None:
    if as_json:
        shown = asdict(found)
        if collected:
            shown["left"] = asdict(left)
        print(json.dumps(shown, indent=2))
        return
    if found.leaks:
        print("\n".join(table(HEADS, lines_of(found.leaks))))
    if collected and found.leaks:
        print(f"removed {len(found.leaks) - len(left.leaks)} of {len(found.leaks)}")
    for name in found.waiting:
        print(
            f"pod {printable(name)}: its shim is dead; containerd will come for it when it starts",
            file=sys.stderr,
        )
    for failure in left.failures:
        print(printable(failure), file=sys.stderr)
