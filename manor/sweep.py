"""Removing what nobody owns, with the pod's directory locked: no start and no `delete` of that pod goes on meanwhile.

Nothing is touched that is not known to be ours by more than its name (`manor/belongings.py`), a process by its start
time. A path on record is only where to look, and is resolved without symlinks. No process is killed for being in a
cgroup, and no mount taken from who lives in it: another runtime may use that by now.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from manor import ledger
from manor.belongings import Claims, cgroup_of, group_of, has_bundle, mounts_of, users_of
from manor.ledger import Mount, Pod, Stage
from runtime import rdt, state
from runtime.cgroups.layout import Layout
from runtime.errors import ManorError, describe
from runtime.linux import mount as m
from runtime.linux import procstat
from runtime.linux.beneath import RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from runtime.linux.trees import mount_id
from runtime.state import State
from shim import deed, journal, sockets
from shim.delete import killed, known_exit, leave_note
from shim.journal import NewerJournal

# How long an ended process may take to leave its cgroup.
END_S = 5.0
_RETRY_S = 0.02


@contextmanager
def locked(pod: Pod) -> Iterator[bool]:
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


def strays_of(pod: Pod, stages: Iterable[Stage]) -> list[Stage]:
    """The processes in the session of a dead shim: as long as there is one, its pid is nobody else's.

    So where that pid is another process's by now, that session is, too.
    """
    if pod.deed is None or not _has_ended(pod.deed.pid, pod.deed.start_time):
        return []
    return [each for each in stages if each.session == pod.deed.pid and each.state not in ledger.ENDED]


def _has_ended(pid: int, start_time: int) -> bool:
    """Whether that process has, and nobody else has its pid."""
    try:
        return procstat.start_time(pid) == start_time and procstat.is_zombie(pid)
    except OSError:
        return True


def is_socket(path: str) -> bool:
    """Whether there is one."""
    try:
        return os.lstat(path).st_mode & 0o170000 == 0o140000
    except OSError:
        return False


class Sweep:
    """Removes what a look has found."""

    def __init__(self, run_dir: str, layout: Layout) -> None:
        self._run_dir = run_dir
        self._layout = layout
        self._foreign: Container[str] = ()
        self.failures: list[str] = []

    def pods(self, directories: set[str]) -> None:
        """Every pod whose directory was found, if it is nobody's still."""
        there = list(ledger.pods(self._run_dir))
        claimed = Claims(there)
        for pod in there:
            if pod.directory not in directories:
                continue
            self._foreign = claimed.foreign_to(pod)
            with locked(pod) as ours:
                if not ours:
                    self.failures.append(f"pod {pod.name}: somebody has it now")
                    continue
                self._try(f"pod {pod.name}", self._pod_of, pod.directory)

    def wardens(self) -> None:
        """The files of dead ones, with their lock held."""
        for warden in ledger.dead_wardens(self._run_dir):
            for path in (f"{warden.stem}.sock", f"{warden.stem}.lock"):
                self._try(f"remove {path}", _unlink, path)

    def _pod_of(self, directory: str) -> None:
        self._pod(ledger.read_pod(directory))

    def _pod(self, pod: Pod) -> None:
        try:
            journal.read(pod.directory)
        except NewerJournal as error:  # whose exits we could not hand on to containerd
            self.failures.append(f"pod {pod.name}: {describe(error)}")
            return
        for stage in strays_of(pod, ledger.stages()):
            self._try(f"kill {stage.pid}", _kill, stage.pid, stage.start_time)
        before = len(self.failures)
        for container_id, known in pod.containers.items():
            self._container(pod, container_id, known)
        for place in pod.files.mounts:
            self._try("unmount", self._unmount, place, ("tmpfs",))
        if len(self.failures) > before:
            return  # what is left stays on record
        self._try("remove the pod's files", pod.files.remove)
        if is_socket(pod.own_socket):
            self._try(f"remove {pod.own_socket}", _unlink, pod.own_socket)
        sockets.forget_pod(pod.directory)
        if os.path.lexists(pod.directory):
            self.failures.append(f"pod {pod.name}: {pod.directory} is not empty")

    def _container(self, pod: Pod, container_id: str, known: State | None) -> None:
        before = len(self.failures)
        if known is not None:
            ended = known_exit(pod.directory, container_id, known.bundle, known.pid, known.start_time)
            if known.pid:
                thaw = partial(self._thaw, pod, known)
                self._try(f"kill {known.pid}", _kill, known.pid, known.start_time, thaw)
            ended = ended or killed(container_id, known.pid, known.start_time)
            # Should containerd come for it after all.
            if os.path.isdir(known.bundle) and has_bundle(pod, known, self._foreign):
                self._try("note exit", leave_note, known.bundle, ended)
            self._try("remove cgroup", self._remove_cgroup, pod, known)
            self._try("unmount", self._unmount_all, pod, known)
            self._try("remove resctrl group", self._remove_group, pod, known)
        if len(self.failures) == before:
            self._try(f"remove state of {container_id}", state.remove_directory, pod.directory, container_id)

    def _thaw(self, pod: Pod, known: State) -> None:
        """In v1 who is frozen does not die, and a container may have frozen a part of itself."""
        cgroup = cgroup_of(self._layout, pod, known)
        if cgroup is not None:
            cgroup.thaw_all()

    def _remove_cgroup(self, pod: Pod, known: State) -> None:
        cgroup = cgroup_of(self._layout, pod, known)
        if cgroup is None:
            return
        deadline = time.monotonic() + END_S
        while not cgroup.try_delete():
            if time.monotonic() > deadline:
                pids = " ".join(map(str, cgroup.holders(16)))
                why = "has more cgroups in it than could be removed in this time: ask again"
                if pids:
                    why = f"is in use by {pids}, and they are not known to be ours"
                raise OSError(errno.EBUSY, f"{cgroup.path} {why}")
            time.sleep(_RETRY_S)

    def _unmount_all(self, pod: Pod, known: State) -> None:
        for each in mounts_of(pod, known, ledger.mounts(), self._foreign).tops:
            self._await_no(f"{each.point} is", partial(users_of, each.point))
            unmount(each)

    def _remove_group(self, pod: Pod, known: State) -> None:
        group = group_of(pod, known, self._foreign)
        if group is not None:
            self._await_no(f"{group.path} is", partial(rdt.tasks, group.path))
            rdt.remove(group.path, ours=True)

    def _await_no(self, what: str, users: Callable[[], list[int]]) -> None:
        """OSError if there are some after END_S."""
        deadline = time.monotonic() + END_S
        while found := users():
            if time.monotonic() > deadline:
                pids = " ".join(map(str, found[:16]))
                raise OSError(errno.EBUSY, f"{what} in use by {pids}, and they are not known to be ours")
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
            if mount_id(fd.fileno()) != mounted.id:
                raise OSError(errno.ESTALE, f"{mounted.point} is not what it was")
            m.umount2(f"/proc/self/fd/{fd.fileno()}", m.MNT_DETACH)
    finally:
        os.close(slash)


def _kill(pid: int, start_time: int, sent: Callable[[], object] = int) -> None:
    """That very process, and wait for its end; `sent` is called in between."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        deadline = time.monotonic() + END_S
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


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
