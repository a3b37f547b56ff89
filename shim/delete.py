"""The `delete` action: cleaning up after a shim that is dead, from what it left on disk.

containerd also runs it when a task was deleted in the ordinary way and its connection closed, so it finds
nothing to do as a rule, and a pod whose shim is alive is left alone. With the shim gone, nobody passes on
the output of the pod's containers or reaps them: all are killed, their cgroups, mounts and state removed.
"""

from __future__ import annotations

import _signal
import os

from runtime import state
from runtime.cgroups import Cgroup, open_cgroup
from runtime.container import open_host
from runtime.errors import ManorError, describe
from runtime.operations.apart import read_config
from runtime.operations.delete import remove_cgroup
from runtime.operations.load import cgroup_asked_for
from runtime.spec.load import load_spec
from runtime.waiting import run
from shim import rootfs_mounts, systemd
from shim.container import rootfs_of
from shim.sockets import NOTE_MARK, forget_pod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cgroups import Layout


class Remains:
    """What is left of the pod whose state directory is `root`. What can't be removed is noted in `warnings`."""

    def __init__(self, root: str, layout: Layout) -> None:
        self._root = root
        self._layout = layout
        self.warnings: list[str] = []

    def remove_all(self, container_id: str, bundle: str) -> int:
        """Remove every container of the pod, and above all `container_id`; the pid that its init had, or 0."""
        init_pid = 0
        for name in self._container_ids():
            left = self._load(name)
            if left is not None:
                self._remove(left, name)
                if name == container_id:
                    init_pid = left.pid
            elif name == container_id:
                self._try("remove what the config names", self._remove_by_config, bundle)
            self._try("remove state", state.remove_directory, self._root, name)
        self._try("unmount", rootfs_mounts.unmount, rootfs_of(bundle))
        forget_pod(self._root)
        return init_pid

    def _container_ids(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._root) if not name.startswith(NOTE_MARK))
        except FileNotFoundError:
            return []

    def _load(self, container_id: str) -> state.State | None:
        try:
            return state.load(self._root, container_id)
        except ManorError as error:  # it was killed while it wrote it, or before
            self.warnings.append(describe(error))
            return None

    def _remove(self, left: state.State, container_id: str) -> None:
        self._try("kill init", self._kill, left.pid, left.start_time)
        self._try("remove cgroup", self._remove_cgroup_of, left, container_id)
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

    def _remove_by_config(self, bundle: str) -> None:
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
                self._remove_cgroup(cgroup_asked_for(host, cgroups_path, os.path.basename(bundle)))

    def _try(self, what: str, call: Callable[..., None], *arguments: object) -> None:
        """One step; the others are done whether it succeeds or not."""
        try:
            call(*arguments)
        except (ManorError, OSError, ValueError) as error:
            self.warnings.append(f"{what}: {describe(error)}")
