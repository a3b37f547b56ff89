"""A pod's first process, where its containers share a PID namespace: a container of our own that holds it and reaps.

Made like any other, with a root file system that has nothing but `landlord_program` in it, no rights, and an id
that has no business with the host's files. Its state lies where that of the pod's containers does, so what is left
of it after a shim was killed is taken away with theirs. containerd does not hear of it.
"""

from __future__ import annotations

import _signal
import os

from runtime.errors import describe
from runtime.linux import constants as c
from runtime.linux import mount as m
from runtime.linux.fds import OwnedFd
from runtime.linux.process import unshare
from runtime.operations.apart import ApartRequest, create_apart
from runtime.operations.delete import delete
from runtime.operations.start import start
from runtime.record import replace
from runtime.spec.json import dump
from runtime.stages.plan import Stdio
from shim.landlord_program import program
from shim.log import ERROR
from shim.tasks import Outcome, within

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.container import Container as RuntimeContainer
    from runtime.spec.model import IdMapping
    from shim.exits import ExitWatch
    from shim.pod import Pod
    from shim.pod_plan import PodPlan
    from shim.tasks import Steps

_PROGRAM = "manor-landlord"
_NOBODY = 65535  # the ids of pause images: a container's root cannot trace it without being privileged
_OOM_SCORE_ADJ = (
    -998
)  # as the podsandbox controller has it for its pause container, unless containerd has more
_ROOT_BYTES = 64 << 10
_PLACE = "/proc/driver"  # a directory that there is on every node, and that nobody needs here
_END_TIMEOUT_S = 10.0


class Landlord:
    """Made by `bring_up`. `died` was told once, with wait status and time, unless `remove` came first."""

    def __init__(self, pod: Pod, runtime: RuntimeContainer, died: Callable[[int, int], None]) -> None:
        self._pod = pod
        self._runtime = runtime
        self._died: Callable[[int, int], None] | None = died
        self._ended = Outcome()
        self._watch: ExitWatch = pod.reaper.watch(runtime.pid, self._has_ended)

    @property
    def pid(self) -> int:
        """As the shim's PID namespace has it."""
        return self._runtime.pid

    def path_of_pid_namespace(self) -> str:
        """Where it can be joined, as long as the landlord lives."""
        return f"/proc/{self.pid}/ns/pid"

    def _has_ended(self, status: int, when_ns: int) -> None:
        """The kernel ends all others in its PID namespace with it."""
        self._runtime.ended()
        self._ended.set()
        died, self._died = self._died, None
        if died is not None:
            died(status, when_ns)

    def remove(self) -> Steps[None]:
        """End it, and what is in its namespace with it, and take away what it has. CgroupError, TimeoutError."""
        self._died = None
        if not self._ended.done:
            _kill(self._runtime)
            if not (yield from within(self._pod.loop, self._ended, _END_TIMEOUT_S)):
                raise TimeoutError(f"landlord {self.pid} was killed and has not ended yet")
        yield from delete(self._runtime)


def bring_up(
    pod: Pod, plan: PodPlan, bundle: str, joins: Mapping[str, OwnedFd], died: Callable[[int, int], None]
) -> Steps[Landlord]:
    """The landlord of a pod whose other namespaces are `joins`, running. What create and start raise.

    `bundle` is made here, and the caller's to remove.
    """
    keep = (*pod.keep, *(fd.fileno() for fd in joins.values()))
    paths = {name: f"/proc/self/fd/{fd.fileno()}" for name, fd in joins.items()}
    os.mkdir(bundle, 0o700)
    _write(f"{bundle}/config.json", dump(config(plan, paths, max(_OOM_SCORE_ADJ, _own_score()))), 0o600)
    request = ApartRequest(plan.id, bundle, Stdio(), prepare=lambda: _make_root(plan), keep=keep)
    host = replace(pod.host, systemd_cgroup=True) if pod.handler.options.systemd_cgroup else pod.host
    with pod.reaper.hold():
        runtime = yield from create_apart(host, request)
        try:
            yield from start(runtime)
            return Landlord(pod, runtime, died)
        except Exception:
            yield from _abandon(pod, runtime)
            raise


def config(plan: PodPlan, paths: Mapping[str, str], oom_score_adj: int) -> dict[str, Any]:
    """Its config.json."""
    namespaces: list[dict[str, str]] = [{"type": "pid"}, {"type": "mount"}]
    namespaces += [{"type": name, "path": path} for name, path in paths.items()]
    linux: dict[str, Any] = {"namespaces": namespaces}
    if plan.cgroups_path():
        linux["cgroupsPath"] = plan.cgroups_path()
    return {
        "ociVersion": "1.2.0",
        "process": {
            "args": [f"/{_PROGRAM}"],
            "cwd": "/",
            "user": {"uid": _nobody(plan.uid_mappings), "gid": _nobody(plan.gid_mappings)},
            "capabilities": {},
            "noNewPrivileges": True,
            "oomScoreAdj": oom_score_adj,
        },
        "root": {"path": _PLACE, "readonly": True},
        "linux": linux,
    }


def _nobody(mappings: tuple[IdMapping, ...]) -> int:
    """An id that is mapped, where ids are."""
    return min((_NOBODY, *(each.container_id + each.size - 1 for each in mappings[-1:])))


def _own_score() -> int:
    with OwnedFd(os.open("/proc/self/oom_score_adj", os.O_RDONLY | os.O_CLOEXEC)) as fd:
        return int(os.read(fd.fileno(), 16))


def _make_root(plan: PodPlan) -> None:
    """A file system of its own, since where state lies no programs may be executed; in a mount namespace of our own,
    from which it is taken. There it can be where everybody can go, as the root of a user namespace must.
    """
    unshare(c.CLONE_NEWNS)
    m.mount("", "/", None, m.MS_SLAVE | m.MS_REC)
    uid, gid = plan.root_ids()
    flags = m.MS_NOSUID | m.MS_NODEV
    m.mount("landlord", _PLACE, "tmpfs", flags, f"mode=755,size={_ROOT_BYTES},uid={uid},gid={gid}")
    _write(f"{_PLACE}/{_PROGRAM}", program(), 0o555)


def _write(path: str, content: bytes, mode: int) -> None:
    with OwnedFd(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)) as fd:
        os.fchmod(fd.fileno(), mode)
        os.write(fd.fileno(), content)


def _kill(runtime: RuntimeContainer) -> None:
    try:
        _signal.pidfd_send_signal(runtime.pidfd.fileno(), _signal.SIGKILL)
    except ProcessLookupError:
        pass


def _abandon(pod: Pod, runtime: RuntimeContainer) -> Steps[None]:
    """After a start that failed: what can't be removed is logged, for the failure is what is told."""
    try:
        _kill(runtime)
        gone = Outcome()
        pod.reaper.watch(runtime.pid, lambda _status, _when_ns: gone.set())
        yield from within(pod.loop, gone, _END_TIMEOUT_S)
        runtime.ended()
        yield from delete(runtime)
    except Exception as error:
        pod.log.write(ERROR, f"remove landlord {runtime.id}: {describe(error)}")
