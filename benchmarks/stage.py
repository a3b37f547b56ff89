"""Where the benchmarks happen: one private containerd with every handler, and a pod to work in for each of them.

A `Side` is one runtime: its pod, a container that sleeps, the door of its shim. Works ask it for fresh ids,
bundles and root filesystems; what they make they also remove.
"""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from cri.api import api_pb2 as api
from cri.client import Client, container_config, pod_config
from shim.api.types import Mount
from tests.harness import images, leaks
from tests.harness.containerd import Containerd
from tests.harness.crictl import MASKED, READ_ONLY, Crictl
from tests.harness.handlers import Handler
from tests.harness.registry import BUSYBOX
from tests.harness.task import TaskClient

PAYLOAD = "/bin/nop"


class Side:
    """One runtime on the stage."""

    def __init__(self, stage: Stage, handler: Handler) -> None:
        self.stage = stage
        self.handler = handler
        self.name = handler.name
        self._serial = itertools.count(1)  # taken from by many threads
        self.pod = self.run_pod()
        self.container = self.run_container(self.pod)
        self.door = TaskClient(*stage.node.shim_address(self.pod))
        configuration = stage.node.bundle(self.container) / "config.json"
        self.configuration: dict[str, Any] = json.loads(configuration.read_text(encoding="utf-8"))
        self.process = {**self.configuration["process"], "args": [PAYLOAD], "terminal": False}

    def fresh(self, kind: str) -> str:
        """An id that nobody has had yet."""
        return f"{kind}-{self.name}-{next(self._serial)}"

    def pod_message(self) -> api.PodSandboxConfig:
        """A pod with a network of its own, in the stage's cgroup."""
        pod = pod_config(self.fresh("pod"), log_directory=str(self.stage.node.instance.directory / "logs"))
        pod.linux.cgroup_parent = self.stage.node.instance.cgroup_parent
        pod.linux.security_context.namespace_options.pid = api.NamespaceMode.Value("CONTAINER")
        return pod

    def run_pod(self) -> str:
        """Run a pod on this runtime."""
        pod = self.pod_message()
        identity = self.stage.cri.run_pod(pod, handler=self.name)
        self.stage.pods[identity] = pod
        return identity

    def remove_pod(self, pod: str) -> None:
        """Stop and remove a pod."""
        self.stage.cri.stop_pod(pod)
        self.stage.cri.remove_pod(pod)
        del self.stage.pods[pod]

    def run_container(self, pod: str) -> str:
        """Create and start a container that sleeps."""
        container = container_config(self.fresh("container"), BUSYBOX, ["sleep", "100000"])
        context = container.linux.security_context
        context.namespace_options.pid = api.NamespaceMode.Value("CONTAINER")
        # As a kubelet asks for every ordinary container: the default seccomp profile, masked paths.
        context.seccomp.profile_type = api.SecurityProfile.ProfileType.Value("RuntimeDefault")
        context.masked_paths.extend(MASKED)
        context.readonly_paths.extend(READ_ONLY)
        identity = self.stage.cri.create(pod, container, self.stage.pods[pod])
        self.stage.cri.start(identity)
        return identity

    def bundle(self, identity: str) -> tuple[Path, list[Mount]]:
        """A bundle like the pod's own container, with an overlay of the unpacked image for its root."""
        directory = self.stage.node.instance.directory / "bundles" / identity
        for name in ("rootfs", "upper", "work"):
            (directory / name).mkdir(parents=True)
        configuration = json.loads(json.dumps(self.configuration))
        configuration["linux"]["cgroupsPath"] = f"{self.stage.node.instance.cgroup_parent}/{identity}"
        configuration["root"]["path"] = "rootfs"
        (directory / "config.json").write_text(json.dumps(configuration), encoding="utf-8")
        options = [
            f"workdir={directory}/work",
            f"upperdir={directory}/upper",
            f"lowerdir={self.stage.unpacked}",
        ]
        return directory, [Mount(type="overlay", source="overlay", target="", options=options)]

    def shim_pids(self, pods: list[str]) -> list[int]:
        """The shim processes of some pods."""
        wanted = {pod.encode() for pod in pods}
        found = []
        for process in self.stage.node.instance.processes():
            try:
                words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted & set(words) and any(b"containerd-shim-" in word for word in words[:3]):
                found.append(process.pid)
        return found

    def staying(self) -> list[int]:
        """The processes that this runtime has beside its shims."""
        return list(leaks.staying(self.stage.node).values()) if self.name == "manor" else []


class Stage:
    """A node and one side for each runtime. `close` ends all of it."""

    def __init__(self, node: Containerd, runtimes: list[str] | None = None) -> None:
        self.node = node
        self.crictl = Crictl(node)
        self.cri = Client(f"unix://{node.socket}", timeout_s=60)
        self.pods: dict[str, api.PodSandboxConfig] = {}
        self.crictl.run("pull", BUSYBOX)
        self.unpacked = self._unpack()
        # Without a pause container a pod has no task, at whose door most works are timed.
        with_task = [one for one in node.handlers if not one.sandboxer]
        chosen = [one for one in with_task if runtimes is None or one.name in runtimes]
        self.sides = {handler.name: Side(self, handler) for handler in chosen}

    def _unpack(self) -> Path:
        """The image's files in a directory: what an overlay is laid over."""
        target = self.node.instance.directory / "unpacked"
        target.mkdir()
        with tarfile.open(fileobj=io.BytesIO(images.busybox_layer()), mode="r") as layer:
            layer.extractall(target, filter="fully_trusted")
        return target

    def close(self) -> None:
        """Remove the pods; the node is its owner's to close."""
        for side in self.sides.values():
            for pod in list(self.pods):
                side.remove_pod(pod)
        self.cri.close()


def describe(node: Containerd) -> list[str]:
    """What was measured against what, on what: lines for the head of a report."""
    runc = node.handlers[0].options["BinaryName"]

    def first_line(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[0]

    return [
        first_line(str(node.binaries.containerd), "--version"),
        first_line(runc, "--version"),
        first_line("uname", "-srm"),
    ]
