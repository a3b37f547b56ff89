"""`manor leaks`: what shims of this node have made and nobody owns any more; `--gc` removes it.

The ledger (`manor/ledger.py`) says what there is and whose it is. What is found is looked for again some seconds
later: a shim that ends, or a `delete` at work, is no leak. Removing is done with the pod's directory locked, so that
no start and no `delete` of that pod goes on meanwhile, and touches nothing that is not known to be ours by more than
its name: a process by its start time, a cgroup by its inode, a mount by its id. A path on record is only where to look,
and is resolved without symlinks. No process is killed for being in a cgroup: another runtime may use that by now.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from manor import ledger
from manor.ledger import Mount, Pod, Stage, Untrusted
from manor.ps import age, printable, table
from runtime import rdt, state
from runtime.cgroups.cgroup import Cgroup, open_cgroup
from runtime.cgroups.layout import Layout, detect_layout
from runtime.errors import ManorError, describe
from runtime.linux import mount as m
from runtime.linux.beneath import RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from runtime.rootfs.on_host import detach
from runtime.state import State
from shim import daemon, deed, sockets
from shim.container import rootfs_of
from shim.delete import killed, known_exit, leave_note

GRACE_S = 5.0
# How long an ended process may take to leave its cgroup.
_END_S = 5.0
_RETRY_S = 0.02

PROCESS, MOUNT, CGROUP, SOCKET, STATE = "process", "mount", "cgroup", "socket", "state"


@dataclass(frozen=True)
class Leak:
    """One thing that nobody owns: what it is, who has made it, for which pod and container, and for how long.

    `held_by` are processes in a cgroup that are not known to be ours, or of others: they are in the way.
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
        self.found = Found()

    def take(self) -> Found:
        """Everything. Untrusted, OSError."""
        sessions: set[int] = set()
        for pod in ledger.pods(self.run_dir):
            if pod.deed is not None:
                sessions.add(pod.deed.pid)
            with _locked(pod) as ours:
                if not ours:
                    continue
                self._pod(ledger.read_pod(pod.directory))
        self.found.leaks += [_stage_leak(each) for each in self._stages if self._is_stray(each, sessions)]
        for warden in ledger.dead_wardens(self.run_dir):
            self.found.leaks.append(
                Leak(SOCKET, f"{warden.stem}.sock", "warden", age_s=_age(f"{warden.stem}.lock"))
            )
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
        shm = pod.files.shm
        found += [
            replace(blank, kind=MOUNT, what=shm, made_by="StartSandbox", age_s=_age(shm))
            for each in self._mounts
            if each.point == shm
        ]
        if _is_socket(pod.socket):
            found.append(replace(blank, kind=SOCKET, what=pod.socket, age_s=_age(pod.socket)))
        found.append(replace(blank, kind=STATE, what=pod.directory, age_s=began_s))
        return found

    def _of_container(self, pod: Pod, blank: Leak, known: State | None) -> Iterator[Leak]:
        directory = f"{pod.directory}/{blank.container}"
        made_by = "Create" if known is not None and known.pid else "a Create that was cut short"
        blank = replace(blank, made_by=made_by, age_s=_age(directory))
        if known is not None:
            if known.pid and state.is_alive(known.pid, known.start_time):
                yield replace(blank, kind=PROCESS, what=f"{known.pid} init")
            for each in self._mounts:
                if known.bundle and each.point == rootfs_of(known.bundle):
                    yield replace(blank, kind=MOUNT, what=each.point)
            cgroup = cgroup_of(self._layout, pod, known)
            if cgroup is not None:
                place = next(path for path in cgroup.paths.values() if os.path.isdir(path))
                yield replace(blank, kind=CGROUP, what=place, held_by=tuple(cgroup.holders(16)))
        yield replace(blank, kind=STATE, what=directory)

    def _is_stray(self, stage: Stage, sessions: set[int]) -> bool:
        """Whether it is of a shim that is gone with all that was on record, and could be ours at all: a container may
        call its processes what it likes, but not make them root's beside us.
        """
        return (
            stage.state not in ledger.ENDED
            and stage.session not in sessions
            and not _lives(stage.session)
            and _is_beside_us(stage.pid)
        )


def strays_of(pod: Pod, stages: Iterable[Stage]) -> list[Stage]:
    """The processes in the session of a dead shim: as long as there is one, its pid is nobody else's."""
    if pod.deed is None or state.is_alive(pod.deed.pid, pod.deed.start_time):
        return []
    return [each for each in stages if each.session == pod.deed.pid and each.state not in ledger.ENDED]


def cgroup_of(layout: Layout, pod: Pod, known: State) -> Cgroup | None:
    """A container's cgroup, if there is one, and it is the very one that was made for it."""
    try:
        cgroup = open_cgroup(layout, known.cgroups_path, known.id)
    except ManorError:  # systemd's, and nobody knows yet where, or nonsense
        return None
    there = [path for path in cgroup.paths.values() if os.path.isdir(path)]
    if not there:
        return None
    noted = state.cgroup_inode(pod.directory, known.id)
    first = next(iter(cgroup.paths.values()))
    if noted and os.path.isdir(first) and os.stat(first).st_ino != noted:
        return None  # somebody else's, who has made it anew
    if not noted and cgroup.holders(1) and not (known.pid and state.is_alive(known.pid, known.start_time)):
        return None  # nobody can say that it is ours
    return cgroup


def _stage_leak(stage: Stage) -> Leak:
    return Leak(PROCESS, f"{stage.pid} manor:[{printable(stage.name)}]", "a shim that is not on record")


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


def _is_socket(path: str) -> bool:
    try:
        return os.lstat(path).st_mode & 0o170000 == 0o140000
    except OSError:
        return False


def _age(path: str) -> float:
    try:
        return max(0.0, time.time() - os.lstat(path).st_mtime)
    except OSError:
        return 0.0


@contextmanager
def _locked(pod: Pod) -> Iterator[bool]:
    """Have the pod's directory to oneself; False where somebody has it: a shim, who starts one, a `delete`."""
    try:
        lock = deed.take(pod.directory, 0)
    except TimeoutError:
        lock = None
    if lock is None:
        yield False
        return
    with lock:
        yield not (
            pod.socket and _is_served(pod.socket)
        )  # by a shim of an earlier version, which has no lock


def _is_served(path: str) -> bool:
    try:
        return sockets.is_served(path)
    except OSError:
        return True


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


# ---- removing it ---------------------------------------------------------------------------------


class Sweep:
    """Removes what a look has found."""

    def __init__(self, run_dir: str, layout: Layout) -> None:
        self._run_dir = run_dir
        self._layout = layout
        self.failures: list[str] = []

    def pods(self, directories: set[str]) -> None:
        """Every pod whose directory was found, if it is nobody's still."""
        for pod in ledger.pods(self._run_dir):
            if pod.directory not in directories:
                continue
            with _locked(pod) as ours:
                if not ours:
                    self.failures.append(f"pod {pod.name}: somebody has it now")
                    continue
                self._pod(ledger.read_pod(pod.directory))

    def wardens(self) -> None:
        """The files of dead ones, with their lock held."""
        for warden in ledger.dead_wardens(self._run_dir):
            for path in (f"{warden.stem}.sock", f"{warden.stem}.lock"):
                self._try(f"remove {path}", _unlink, path)

    def _pod(self, pod: Pod) -> None:
        for stage in strays_of(pod, ledger.stages()):
            self._try(f"kill {stage.pid}", _kill, stage.pid, stage.start_time)
        before = len(self.failures)
        for container_id, known in pod.containers.items():
            self._container(pod, container_id, known)
        self._try("unmount", self._unmount, pod.files.shm, ("tmpfs",))
        if len(self.failures) > before:
            return  # what is left stays on record
        self._try("remove the pod's files", pod.files.remove)
        if _is_socket(pod.socket):
            self._try(f"remove {pod.socket}", _unlink, pod.socket)
        sockets.forget_pod(pod.directory)

    def _container(self, pod: Pod, container_id: str, known: State | None) -> None:
        before = len(self.failures)
        if known is not None:
            ended = known_exit(pod.directory, container_id, known.bundle, known.pid, known.start_time)
            if known.pid:
                thaw = partial(self._thaw, pod, known)
                self._try(f"kill {known.pid}", _kill, known.pid, known.start_time, thaw)
            ended = ended or killed(container_id, known.pid, known.start_time)
            if os.path.isdir(known.bundle):  # should containerd come for it after all
                self._try("note exit", leave_note, known.bundle, ended)
            self._try("remove cgroup", self._remove_cgroup, pod, known)
            if known.bundle:
                self._try("unmount", self._unmount, rootfs_of(known.bundle), ())
            self._try("take away what it has on the host", _clear_host, known)
        if len(self.failures) == before:
            self._try(f"remove state of {container_id}", state.remove_directory, pod.directory, container_id)

    def _thaw(self, pod: Pod, known: State) -> None:
        """In v1 who is frozen does not die."""
        cgroup = cgroup_of(self._layout, pod, known)
        if cgroup is not None and cgroup.frozen():
            cgroup.thaw()

    def _remove_cgroup(self, pod: Pod, known: State) -> None:
        cgroup = cgroup_of(self._layout, pod, known)
        if cgroup is None:
            return
        deadline = time.monotonic() + _END_S
        while not cgroup.try_delete():
            if time.monotonic() > deadline:
                pids = " ".join(map(str, cgroup.holders(16)))
                raise OSError(
                    errno.EBUSY, f"{cgroup.path} is in use by {pids}, and they are not known to be ours"
                )
            time.sleep(_RETRY_S)

    def _unmount(self, point: str, types: tuple[str, ...]) -> None:
        for each in reversed([each for each in ledger.mounts() if each.point == point]):
            if types and each.fstype not in types:
                raise OSError(errno.EINVAL, f"{point} is a {each.fstype}: not ours")
            unmount(each)

    def _try(self, what: str, call: Callable[..., object], *arguments: object) -> None:
        try:
            call(*arguments)
        except (ManorError, OSError, ValueError) as error:
            self.failures.append(f"{what}: {describe(error)}")


def unmount(mounted: Mount) -> None:
    """Detach this very mount: found by its path without a symlink, known by its id. OSError."""
    slash = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
        with openat2(slash, mounted.point.lstrip("/"), os.O_PATH, flags) as fd:
            if _mount_id(fd.fileno()) != mounted.id:
                raise OSError(errno.ESTALE, f"{mounted.point} is not what it was")
            m.umount2(f"/proc/self/fd/{fd.fileno()}", m.MNT_DETACH)
    finally:
        os.close(slash)


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))


def _kill(pid: int, start_time: int, sent: Callable[[], object] = int) -> None:
    """That very process, and wait for its end; `sent` is called in between."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        deadline = time.monotonic() + _END_S
        if state.is_alive(pid, start_time):  # behind the open: so it is the one that is killed
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            sent()
        while state.is_alive(pid, start_time):
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, f"process {pid} was killed and has not ended: it may be frozen")
            time.sleep(_RETRY_S)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def _clear_host(known: State) -> None:
    """What a container without a mount namespace has left, and its resctrl group."""
    said = known.terms or {}
    if isinstance(root := said.get("root_on_host"), str) and root:
        detach(root)
    if isinstance(group := said.get("rdt"), (list, tuple)) and len(group) == 2:
        rdt.remove(str(group[0]), bool(group[1]))


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


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
        print(f"manor leaks: {describe(error)}", file=sys.stderr)
        return 2
    _show(found, left, asked.gc, asked.json)
    return int(bool(left.leaks))


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
