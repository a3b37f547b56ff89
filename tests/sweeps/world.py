"""One node of a sweep: a containerd that may be killed at any time, and those who talk to it."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from cri.api import api_pb2 as api
from cri.client import Client, CriError, pod_config
from shim.bootstrap import pod_name
from shim.sockets import recorded_socket
from shim.ttrpc import status
from shim.ttrpc.status import RpcError
from tests.harness import images, instances
from tests.harness.containerd import Containerd
from tests.harness.crictl import Crictl
from tests.harness.handlers import available
from tests.harness.registry import BUSYBOX, Registry
from tests.harness.task import TaskClient
from tests.harness.waiting import eventually
from tests.sweeps.marks import name_of
from tests.sweeps.report import Report

NAMESPACE = "k8s.io"
LIMIT_S = 120.0
CALL_LIMIT_S = 60.0
# containerd's snapshotter gives out a number again whose directory it had made when it was killed.
HALF_MADE = "failed to rename"
PRIVATE, SHARED = "CONTAINER", "POD"  # PIDs
MAPPED = "MAPPED"  # private ones, in a user namespace of the pod's own
HOST_IDS, IDS = 200_000, 65_536


class Disturbed(Exception):
    """What was being done has failed; why has been judged already."""


class World:
    """Everything of one sweep. `close` ends it."""

    def __init__(self, version: str, handlers: list[str], registry: Registry, report: Report) -> None:
        self.report = report
        self.handlers = handlers
        self.node = Containerd(version, registry)
        self.crictl = Crictl(self.node)
        self.crictl.run("pull", BUSYBOX)
        self.directory = self.node.instance.directory
        self.shared = self.directory / "sweep"  # is /sweep in every container
        self.shared.mkdir()
        self.shared.chmod(0o777)  # for whoever is root in a user namespace
        (self.shared / "teller").write_bytes(images.compile_static("teller"))
        (self.shared / "teller").chmod(0o755)
        self.until = float("inf")  # no round begins later, by time.monotonic()
        # Whether none is half made when containerd is killed: its shim, of which nobody knows, would stay for a minute.
        self.whole_pods = False
        self.epoch = 0  # odd while containerd is dead or has not come back
        self._lock = threading.Lock()
        self._serial = itertools.count()
        self.living: set[str] = set()  # names of pods that somebody uses
        self.cut_off: set[str] = set()  # containers whose start failed because their shim died
        self._cri = self._client()

    def _client(self) -> Client:
        return Client(f"unix://{self.node.socket}", CALL_LIMIT_S)

    @property
    def cri(self) -> Client:
        """The client of this life of containerd."""
        return self._cri

    def fresh(self, kind: str) -> str:
        """A name that nobody has: runc's own state is below /run, for all of the machine."""
        with self._lock:
            return f"{kind}-{self.node.instance.id}-{next(self._serial)}"

    def rounds(self, number: int) -> Iterator[int]:
        """So many, or as many as there is time for."""
        return itertools.takewhile(lambda _number: time.monotonic() < self.until, range(number))

    # --- disturbances ------------------------------------------------------------------------------

    def kill_containerd(self) -> None:
        """SIGKILL; from now on calls may fail."""
        self.epoch += 1
        self.node.kill()

    def start_containerd(self) -> float:
        """Start it again, and wait until it answers; how long that took, in seconds."""
        began = time.monotonic()
        self.node.start()
        before, self._cri = self._cri, self._client()
        before.close()
        self._cri.wait_until_ready(
            LIMIT_S
        )  # gRPC remembers for a second that nobody was there, for all its channels
        self.epoch += 1
        return time.monotonic() - began

    @contextmanager
    def sure(self, what: str) -> Iterator[None]:
        """What fails in here is wrong unless containerd was killed meanwhile. Disturbed."""
        epoch = self.epoch
        try:
            yield
        except (
            CriError,
            grpc.RpcError,
            ValueError,
            subprocess.SubprocessError,
        ) as error:  # ValueError: closed
            if HALF_MADE in str(error) and self.epoch:
                self.report.note(
                    "snapshots that containerd was making when it was killed, and could not make later"
                )
            elif epoch % 2 == 0 and self.epoch == epoch:
                self.report.is_wrong(f"{what}: {error}")
            raise Disturbed(what) from error

    def wait_until_calm(self) -> None:
        """Wait until containerd is there."""
        eventually(lambda: self.epoch % 2 == 0, "containerd does not come back", LIMIT_S)

    # --- pods --------------------------------------------------------------------------------------

    def pod_message(self, name: str, pids: str = PRIVATE) -> api.PodSandboxConfig:
        """What a kubelet would ask for."""
        parent = self.node.instance.cgroup_parent
        message = pod_config(name, log_directory=str(self.directory / "logs" / name), cgroup_parent=parent)
        message.hostname = name
        modes = message.linux.security_context.namespace_options
        modes.pid = api.NamespaceMode.Value(PRIVATE if pids == MAPPED else pids)
        if pids == MAPPED:
            ids = api.IDMapping(host_id=HOST_IDS, container_id=0, length=IDS)
            modes.userns_options.CopyFrom(api.UserNamespace(mode=api.POD, uids=[ids], gids=[ids]))
        return message

    def kinds_of_pods(self) -> tuple[str, ...]:
        """What `pod_message` can be asked for here."""
        return (PRIVATE, SHARED) if self.node.version == "1.6" else (PRIVATE, SHARED, MAPPED)

    def pods_of_nobody(self) -> list[str]:
        """The ids of pods that nobody uses any more."""
        return [each.id for each in self.cri.pods() if each.metadata.name not in self.living]

    def remove_pods_of_nobody(self) -> str:
        """Try to; what stands in the way, or ""."""
        try:
            for pod in self.pods_of_nobody():
                self.cri.stop_pod(pod)
                self.cri.remove_pod(pod)
        except CriError as error:
            return str(error)
        return ""

    # --- looking -----------------------------------------------------------------------------------

    def init_of(self, container: str) -> int:
        """The host's pid of a container's init."""
        return int(json.loads(self.cri.inspect(container).info["info"])["pid"])

    def state_directory(self, group: str) -> Path:
        """Where Manor keeps what it knows of a pod."""
        return self.node.run_dir / "pods" / pod_name(str(self.node.socket), NAMESPACE, group)

    def known_to_shim(self, pod: str, container: str) -> bool:
        """Whether a pod's shim, asked at its own door, has a container: containerd has not deleted it there."""
        recorded = recorded_socket(str(self.state_directory(pod)))
        with TaskClient(*((recorded, 3) if recorded else self.node.shim_address(pod))) as door:
            try:
                door.state(container)
            except RpcError as error:
                if error.code == status.NOT_FOUND:
                    return False
                raise
            return True

    def shim_of(self, group: str) -> int:
        """The process that is the shim of a pod; its writers have its command line."""
        (found,) = (
            pid for pid in self.node.shim_pids(group) if name_of(pid) in ("manor-shim", "containerd-shim")
        )
        return found

    def ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One command of containerd's own client, however it ends."""
        words = [str(self.node.binaries.ctr), "-a", str(self.node.socket), "-n", NAMESPACE, *arguments]
        environment = self.node.environment()
        return subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=CALL_LIMIT_S, check=False
        )

    def tasks(self) -> dict[str, tuple[int, str]]:
        """What `ctr tasks ls` says: pid and state by id. Disturbed."""
        done = self.ctr("tasks", "ls")
        if done.returncode != 0:
            raise Disturbed(done.stderr)
        rows = (line.split() for line in done.stdout.splitlines()[1:])
        return {row[0]: (int(row[1]), row[2]) for row in rows if len(row) == 3}

    def runtime_type(self, handler: str) -> str:
        """As `ctr run` wants it."""
        (found,) = [each for each in available() if each.name == handler]
        return found.runtime_type

    def close(self) -> None:
        """End all of it."""
        self._cri.close()
        self.node.close()


def lives(pid: int, start_time: int) -> bool:
    """Whether that very process runs."""
    found = instances.process(pid)
    return found is not None and found.start_time == start_time and found.state not in "ZX"
