"""Pods that containerd 2 leaves to their shim, through containerd and at the shim's own door."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any as Json

import pytest

from shim.api import ps, sandbox, task
from shim.api.codec import encode
from shim.api.message import Message
from shim.api.pod_config import (
    CONTAINER,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    NamespaceOption,
    PodSandboxConfig,
)
from shim.api.types import Empty, pack
from shim.bootstrap import pod_name
from shim.ttrpc.client import Client
from tests.e2e.shim.door import NAMESPACE, TIMEOUT_S, Door, Events, opened, room_in
from tests.harness.handlers import MANOR_PODS
from tests.harness.mountinfo import mount_points

POD = "p1"


@pytest.fixture
def handler() -> str:
    """The handler whose pods are left to their shims."""
    return MANOR_PODS


class PodDoor(Door):
    """One pod's shim with its Sandbox service, as containerd's shim controller calls it.

    All of them have the warden of `world`; all else is the pod's own.
    """

    def __init__(self, world: Door, directory: Path) -> None:
        self.directory = directory
        self.run_dir, self.program = world.run_dir, world.program
        self.cgroup_parent = f"mnr-{secrets.token_hex(4)}"
        self.address = ""
        self.environ = {**world.environ, "TTRPC_ADDRESS": str(directory / "events")}
        (directory / "bundles" / POD).mkdir(parents=True)  # without a config, as such a pod's
        self.events = Events(str(directory / "events"))
        self.state = self.run_dir / "pods" / pod_name(str(directory / "grpc"), NAMESPACE, POD)
        self.start(POD)

    def pod(self, method: str, request: Message, timeout_s: float = TIMEOUT_S) -> Json:
        """Call the Sandbox service."""
        return self.client.request(sandbox.SERVICE, method, request, sandbox.METHODS[method][1], timeout_s)

    def create_pod(self, config: PodSandboxConfig | None = None, **more: Json) -> None:
        """CreateSandbox; without a `config` a pod whose containers share a network and no PIDs."""
        packed = pack(config if config is not None else self.config())
        request = {"sandbox_id": POD, "bundle_path": str(self.directory / "bundles" / POD), "options": packed}
        self.pod("CreateSandbox", sandbox.CreateSandboxRequest(**{**request, **more}))

    def config(
        self, sysctls: dict[str, str] | None = None, hostname: str = "", **modes: Json
    ) -> PodSandboxConfig:
        """A pod's configuration; `modes` are those of its namespaces."""
        options = NamespaceOption(**dict(modes, pid=modes.get("pid", CONTAINER)))
        linux = LinuxPodSandboxConfig(
            f"/{self.cgroup_parent}", LinuxSandboxSecurityContext(options), sysctls or {}
        )
        return PodSandboxConfig(hostname=hostname, linux=linux)

    def start_pod(self) -> int:
        """StartSandbox; the pid that the pod's namespaces are named by."""
        pid: int = self.pod("StartSandbox", sandbox.StartSandboxRequest(POD)).pid
        return pid

    def stop_pod(self) -> None:
        """StopSandbox."""
        self.pod("StopSandbox", sandbox.StopSandboxRequest(POD))

    def pod_status(self) -> Json:
        """SandboxStatus."""
        return self.pod("SandboxStatus", sandbox.SandboxStatusRequest(POD, verbose=True))

    def begin_wait(self) -> tuple[Client, int]:
        """WaitSandbox on a connection of its own, to be finished."""
        client = Client(self.address)
        return client, client.begin(sandbox.SERVICE, "WaitSandbox", encode(sandbox.WaitSandboxRequest(POD)))

    def shown(self) -> list[ps.ProcessShown]:
        """What the shim says to `manor ps`."""
        answer = self.client.request(ps.SERVICE, "List", Empty(), ps.ListResponse, TIMEOUT_S)
        return list(answer.processes)

    def shut_down(self) -> None:
        """ShutdownSandbox."""
        self.pod("ShutdownSandbox", sandbox.ShutdownSandboxRequest(POD))

    def tenant(self, container_id: str, args: list[str], pid: int, *kinds: str, **streams: Json) -> int:
        """A running container of the pod, with namespaces named as containerd names them; its pid."""
        bundle = self.bundle(container_id, args)
        files = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}
        own = [entry for entry in bundle.config["linux"]["namespaces"] if entry["type"] not in kinds]
        own += [{"type": kind, "path": f"/proc/{pid}/ns/{files[kind]}"} for kind in kinds]
        bundle.config["linux"]["namespaces"] = own
        if "uts" in kinds:
            bundle.config.pop("hostname", None)
        bundle.write()
        found = self.create(container_id, **streams)
        self.ask("Start", task.StartRequest(container_id))
        return found

    def mounts(self) -> list[str]:
        """Mount points of this pod's."""
        return [each for each in mount_points() if each.startswith((f"{self.directory}/", f"{self.state}/"))]

    def left(self) -> list[str]:
        """What a pod would leave: mounts, cgroups, its files and its containers' state, but no notes of the shim's."""
        mounts = [point for point in self.mounts() if not point.endswith("/netns")]  # is somebody else's
        notes = [str(path) for path in self.state.glob("*") if path.name[0] != "@" or path.is_dir()]
        return [*mounts, *map(str, self.cgroups()), *notes]

    def held_namespaces(self) -> list[str]:
        """The namespaces that the shim has open."""
        links = [os.readlink(entry) for entry in Path(f"/proc/{self.shim_pid()}/fd").iterdir()]
        return [link for link in links if link.startswith(("net:", "ipc:", "uts:"))]


@pytest.fixture(scope="session")
def world() -> Iterator[Door]:
    """What the pods of these tests have in common: a warden takes seconds, a shim of its does not."""
    with opened() as made:
        yield made


@pytest.fixture
def door(world: Door) -> Iterator[PodDoor]:
    """A shim that waits for the pod it is to hold."""
    made = PodDoor(world, room_in(world))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def netns(door: PodDoor) -> Iterator[str]:
    """A network namespace that somebody else has made, as a file."""
    path = door.directory / "netns"
    path.touch()
    subprocess.run(["unshare", "--net", "mount", "--bind", "/proc/self/ns/net", path], check=True)
    try:
        yield str(path)
    finally:
        subprocess.run(["umount", path], check=True)  # a pod that holds the namespace does not hold this


def namespace(pid: int | str, kind: str) -> str:
    """What the kernel calls a namespace of a process."""
    return os.readlink(f"/proc/{pid}/ns/{kind}")
