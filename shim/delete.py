"""The `delete` action: cleaning up after a shim that is dead, from what it left on disk.

containerd also runs it when a task was deleted in the ordinary way and its connection closed, so it finds
nothing to do as a rule, and a pod whose shim is alive is left alone. With the shim gone, nobody passes on
the output of the pod's containers or reaps them: all are killed, their cgroups, mounts and state removed.

How a container ended is in the pod's exit journal, or else it was killed just now. The journal goes with the
pod at the first `delete`; others may follow, one for each container, so each one's exit is left in its bundle.
"""

from __future__ import annotations

import _signal
import os
import time

from runtime import rdt, state
from runtime.bundle import read_config
from runtime.cgroups.cgroup import Cgroup, open_cgroup
from runtime.container import open_host
from runtime.errors import ManorError, NotFound, describe
from runtime.linux.fds import OwnedFd
from runtime.operations.delete import remove_cgroup
from runtime.operations.load import cgroup_asked_for, cgroup_of
from runtime.rootfs.on_host import detach
from runtime.spec.load import load_spec
from runtime.waiting import run
from shim import deed, journal, rootfs_mounts, sockets, systemd
from shim.container import rootfs_of
from shim.journal import Exit, NewerJournal
from shim.pod_files import PodFiles
from shim.sockets import forget_pod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cgroups.layout import Layout


# In a bundle: how its container ended, left there by the `delete` of another container of the pod.
EXIT_NOTE = "manor-exit.json"


def known_exit(root: str, container_id: str, bundle: str, pid: int = 0, start_time: int = 0) -> Exit | None:
    """How the init of a container ended, from the journal of its pod or from its bundle; None if nobody knows.

    `pid` and `start_time` are init's, 0 if they are not known. NewerJournal.
    """
    found = journal.exit_of_init(journal.read(root), container_id, pid, start_time)
    return found or journal.exit_of_init(_read_note(bundle), container_id, pid, start_time)


def _read_note(bundle: str) -> list[Exit]:
    path = f"{bundle}/{EXIT_NOTE}"
    try:
        with OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)) as note:
            return journal.read_lines(path, os.read(note.fileno(), 1 << 16))
    except OSError:
        return []


def killed(container_id: str, pid: int = 0, start_time: int = 0) -> Exit:
    """The exit of an init that we kill, or that somebody has killed."""
    number = int(_signal.SIGKILL)
    return Exit(container_id, "", pid, start_time, 128 + number, number, time.time_ns())


def container_ids(root: str) -> list[str]:
    """Those that have state in the directory of a pod, sorted. What else is in there is not ours."""
    try:
        return sorted(name for name in os.listdir(root) if state.is_id(name))
    except FileNotFoundError:
        return []


class Remains:
    """What is left of the pod whose state directory is `root`. What can't be removed is noted in `warnings`."""

    def __init__(self, root: str, layout: Layout) -> None:
        self._root = root
        self._layout = layout
        self.warnings: list[str] = []

    def remove_all(self, container_id: str, bundle: str) -> Exit:
        """Remove every container of the pod, and above all `container_id`; how its init ended."""
        answer = self._remove_containers(container_id, bundle) or self.known_exit(container_id, bundle)
        self._try("unmount", rootfs_mounts.unmount, rootfs_of(bundle))
        self._forget()
        return answer or killed(container_id)

    def clear(self) -> None:
        """The same for a shim that comes before any `delete` has: how each container ended is in its bundle then."""
        self._remove_containers("", "")
        if before := deed.read(self._root):
            self._try("note exits", self._note_removed, os.path.dirname(before.bundle), "")
        self._forget()

    def _forget(self) -> None:
        self._try("remove files of the pod", PodFiles(self._root).remove)
        forget_pod(self._root)

    def _remove_containers(self, container_id: str, bundle: str) -> Exit | None:
        answer: Exit | None = None
        files = PodFiles(self._root)
        for name in container_ids(self._root):
            left = self._load(name)
            if left is not None:
                ended = self.known_exit(name, left.bundle, left.pid, left.start_time)
                self._remove(left, name)
                ended = ended or killed(name, left.pid, left.start_time)
                if name == container_id:
                    answer = ended
                elif left.bundle:
                    self._try("note exit", leave_note, left.bundle, ended)
            else:
                own = files.bundle_of(name)
                for where in (bundle, own) if name == container_id else (own,):
                    self._try("remove what the config names", self._remove_by_config, where, name)
            self._try("remove state", state.remove_directory, self._root, name)
        if bundle:
            self._try("note exits", self._note_removed, os.path.dirname(bundle), container_id)
        return answer

    def _note_removed(self, bundles: str, but: str) -> None:
        """How those ended that the shim itself has removed, and was killed before it said so: their `delete` comes yet.

        `bundles` is where containerd has them, by their ids.
        """
        try:
            ends = journal.read(self._root)
        except NewerJournal:
            return  # it is named where an exit is looked for
        for each in reversed(ends):
            own = f"{bundles}/{state.check_id(each.container)}"
            if not each.exec_id and each.container != but and not os.path.lexists(f"{own}/{EXIT_NOTE}"):
                leave_note(own, each)

    def known_exit(self, container_id: str, bundle: str, pid: int = 0, start_time: int = 0) -> Exit | None:
        """`known_exit` of this pod; a record that cannot be read is a warning, once."""
        try:
            return known_exit(self._root, container_id, bundle, pid, start_time)
        except NewerJournal as error:
            if (warning := describe(error)) not in self.warnings:
                self.warnings.append(warning)
            return None

    def _load(self, container_id: str) -> state.State | None:
        try:
            return state.load(self._root, container_id)
        except NotFound as error:  # its shim was killed before there was one
            said = state.announced(self._root, container_id)
            if said is None:
                self.warnings.append(describe(error))
            return said
        except ManorError as error:  # it was of a newer Manor, or is damaged
            self.warnings.append(describe(error))
            return state.salvage(self._root, container_id) or state.announced(self._root, container_id)

    def _remove(self, left: state.State, container_id: str) -> None:
        self._try("kill init", self._kill, left.pid, left.start_time)
        self._try("remove cgroup", self._remove_cgroup_of, left, container_id)
        said = left.terms or {}
        if isinstance(root := said.get("root_on_host"), str) and root:
            self._try("unmount", detach, root)
        if isinstance(group := said.get("rdt"), (list, tuple)) and len(group) == 2:
            self._try("remove resctrl group", rdt.remove, str(group[0]), group[1] is True)
        if left.bundle:
            self._try("unmount", rootfs_mounts.unmount, rootfs_of(left.bundle))

    def _kill(self, pid: int, start_time: int) -> None:
        """Init by name; whatever else there is goes with its cgroup."""
        if not state.is_alive(pid, start_time):
            return
        pidfd = os.pidfd_open(pid)
        try:
            if state.is_alive(pid, start_time):  # still the same one, now that it can't be replaced
                _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
        finally:
            os.close(pidfd)

    def _remove_cgroup_of(self, left: state.State, container_id: str) -> None:
        if not left.pid:  # a create that was cut short
            host = open_host(self._root, "", self._layout, systemd=systemd.manager)
            with host.procfs:
                self._remove_cgroup(cgroup_of(host, left))
            return
        cgroup = open_cgroup(self._layout, left.cgroups_path, container_id)
        if left.unit and systemd.available():  # else the unit goes when systemd sees that its cgroup has gone
            cgroup = Cgroup(self._layout, cgroup.path, left.unit, systemd.manager)
        self._remove_cgroup(cgroup)

    def _remove_cgroup(self, cgroup: Cgroup) -> None:
        if not any(os.path.isdir(path) for path in cgroup.paths.values()):
            return
        cgroup.signal_all(_signal.SIGKILL)
        cgroup.thaw()
        run(remove_cgroup(cgroup))

    def _remove_by_config(self, bundle: str, container_id: str) -> None:
        """A create that was cut short has left no state, but perhaps a cgroup with its stages in it.

        Only for an id that has a directory, which comes before the cgroup and goes with a create that was
        refused: without it the config may name the cgroup of somebody else, who lives.
        """
        if not os.path.exists(f"{bundle}/config.json"):
            return
        cgroups_path = load_spec(read_config(bundle)).linux.cgroups_path
        if cgroups_path:
            host = open_host(self._root, "", self._layout, systemd=systemd.manager)
            with host.procfs:
                self._remove_cgroup(cgroup_asked_for(host, cgroups_path, container_id))

    def _try(self, what: str, call: Callable[..., None], *arguments: object) -> None:
        """One step; the others are done whether it succeeds or not."""
        try:
            call(*arguments)
        except (ManorError, OSError, ValueError) as error:
            self.warnings.append(f"{what}: {describe(error)}")


def bury_stillborn(pods: str) -> None:
    """Remove, below the directory `pods`, what shims left that died before anybody had asked anything of them.

    containerd forgets a start that failed because it could not connect, and asks nobody for its `delete`: that would
    find nothing but the notes. Where there is more than them, it is for `delete`, and its answer needs it.
    """
    for name in sorted(os.listdir(pods)):
        directory = f"{pods}/{name}"
        try:
            if not _is_stillborn(directory):
                continue
            taken = deed.take(directory, 0)
            if taken is None:
                continue  # it had gone: if there is one again, a shim is making it
            with taken:
                if _is_stillborn(directory):  # still, now that nobody adds to it
                    if path := sockets.recorded_socket(directory):
                        sockets.remove_socket(path)
                    forget_pod(directory)
        except (ManorError, OSError):
            pass  # a shim has it, or it goes just now


def _is_stillborn(directory: str) -> bool:
    """Whether a pod's directory has just what every shim has written when it answers its start, and no exit.

    One without a deed is being made; or its shim died before the answer, and the launcher has it deleted.
    """
    names = os.listdir(directory)
    written = (deed.NOTE, sockets.SOCKET_NOTE, journal.FILE)
    return deed.NOTE in names and all(name in written for name in names) and not journal.read(directory)


def leave_note(bundle: str, ended: Exit) -> None:
    """containerd removes the bundle when it has run `delete` for it; if it has already, there is nobody to be told."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with OwnedFd(os.open(f"{bundle}/{EXIT_NOTE}", flags, 0o600)) as note:
            os.write(note.fileno(), journal.HEADER + ended.encode())
    except (FileNotFoundError, NotADirectoryError):
        pass
