"""A small synchronous CRI client: what tests, benches and tools talk to containerd or `manor serve` with.

    with Client("unix:///run/containerd/containerd.sock") as cri:
        pod = pod_config("web")
        pod_id = cri.run_pod(pod, handler="manor")
        container_id = cri.create(pod_id, container_config("main", "busybox", ["sleep", "60"]), pod)
        cri.start(container_id)
        print(cri.exec_sync(container_id, ["id", "-u"]).stdout)

Methods carry crictl's verbs and take and return the messages of `cri.api`. Every failure is a CriError.
It holds no state of its own: whoever made a pod removes it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar, cast

import grpc

from cri.api import api_pb2 as api
from cri.api.api_pb2_grpc import ImageServiceStub, RuntimeServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Request = TypeVar("Request")
    Response = TypeVar("Response")

# An ExecSync may answer with 16 MiB on each stream.
_MAX_ANSWER_BYTES = 40 << 20
_PULL_TIMEOUT_S = 300.0


class CriError(Exception):
    """A CRI call failed: the method, gRPC's code for it, and what the runtime says."""

    def __init__(self, method: str, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{method}: {code.name}: {details}")
        self.method = method
        self.code = code
        self.details = details


class ExecResult(NamedTuple):
    """What a command in a container wrote, and how it ended."""

    stdout: bytes
    stderr: bytes
    exit_code: int


def pod_config(
    name: str,
    *,
    log_directory: str = "",
    cgroup_parent: str = "",
    annotations: Mapping[str, str] | None = None,
) -> api.PodSandboxConfig:
    """The least that a pod needs; change the message for more. The uid is made of the name.

    Without a cgroup parent containerd has no stats of the pod as a whole.
    """
    return api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name=name, uid=f"{name}-uid", namespace="default"),
        log_directory=log_directory,
        annotations=annotations or {},
        linux=api.LinuxPodSandboxConfig(cgroup_parent=cgroup_parent),
    )


def container_config(
    name: str, image: str, command: Sequence[str], *, log_path: str = "", tty: bool = False
) -> api.ContainerConfig:
    """The least that a container needs; change the message for more."""
    return api.ContainerConfig(
        metadata=api.ContainerMetadata(name=name),
        image=api.ImageSpec(image=image),
        command=command,
        log_path=log_path,
        tty=tty,
        linux=api.LinuxContainerConfig(),
    )


class Client:
    """A connection to a CRI endpoint. It is made on the first call, so a bad address shows there."""

    def __init__(self, address: str, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            address, [("grpc.max_receive_message_length", _MAX_ANSWER_BYTES)]
        )
        self.runtime = RuntimeServiceStub(self._channel)
        self.images = ImageServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; what is being asked is cancelled."""
        self._channel.close()

    def _call(
        self,
        method: str,
        stub: grpc.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float | None = None,
    ) -> Response:
        try:
            return stub(request, timeout=self._timeout_s if timeout_s is None else timeout_s)
        except grpc.RpcError as error:
            raise _failure(method, error) from error

    # --- the runtime ---------------------------------------------------------------------------------

    def version(self) -> api.VersionResponse:
        """Names and versions of the runtime and of its API."""
        return self._call("Version", self.runtime.Version, api.VersionRequest(version="0.1.0"))

    def status(self, *, verbose: bool = False) -> api.StatusResponse:
        """Conditions (RuntimeReady, NetworkReady) and handlers, with `verbose` also the runtime's own notes."""
        return self._call("Status", self.runtime.Status, api.StatusRequest(verbose=verbose))

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until the runtime answers and both its conditions are true. TimeoutError with the last reason."""
        deadline = time.monotonic() + timeout_s
        reason = "never asked"
        while time.monotonic() < deadline:
            try:
                conditions = self.status().status.conditions
            except CriError as error:
                reason = str(error)
            else:
                unmet = [
                    f"{found.type}: {found.reason} {found.message}"
                    for found in conditions
                    if not found.status
                ]
                required = {"RuntimeReady", "NetworkReady"} - {
                    found.type for found in conditions if found.status
                }
                if not required:
                    return
                reason = ", ".join(unmet) or f"no {', '.join(sorted(required))}"
            time.sleep(0.05)
        raise TimeoutError(f"runtime not ready after {timeout_s} s: {reason}")

    # --- pods ----------------------------------------------------------------------------------------

    def run_pod(self, config: api.PodSandboxConfig, handler: str = "") -> str:
        """Create and start a pod sandbox under a runtime handler; its id."""
        request = api.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return self._call("RunPodSandbox", self.runtime.RunPodSandbox, request).pod_sandbox_id

    def stop_pod(self, pod_id: str) -> None:
        """Stop a pod and all in it; one that is stopped already is fine."""
        request = api.StopPodSandboxRequest(pod_sandbox_id=pod_id)
        self._call("StopPodSandbox", self.runtime.StopPodSandbox, request)

    def remove_pod(self, pod_id: str) -> None:
        """Remove a pod and all in it; one that is gone already is fine."""
        request = api.RemovePodSandboxRequest(pod_sandbox_id=pod_id)
        self._call("RemovePodSandbox", self.runtime.RemovePodSandbox, request)

    def pod_status(self, pod_id: str, *, verbose: bool = False) -> api.PodSandboxStatusResponse:
        """State, addresses and namespaces of a pod. CriError NOT_FOUND if there is none."""
        request = api.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=verbose)
        return self._call("PodSandboxStatus", self.runtime.PodSandboxStatus, request)

    def pods(self, labels: Mapping[str, str] | None = None) -> list[api.PodSandbox]:
        """All pods, or those with all these labels."""
        request = api.ListPodSandboxRequest(filter=api.PodSandboxFilter(label_selector=labels or {}))
        return list(self._call("ListPodSandbox", self.runtime.ListPodSandbox, request).items)

    def pod_stats(self, pod_id: str) -> api.PodSandboxStats:
        """Resource use of a pod."""
        request = api.PodSandboxStatsRequest(pod_sandbox_id=pod_id)
        return self._call("PodSandboxStats", self.runtime.PodSandboxStats, request).stats

    # --- containers ----------------------------------------------------------------------------------

    def create(self, pod_id: str, config: api.ContainerConfig, pod: api.PodSandboxConfig) -> str:
        """Create a container in a pod (with the config that the pod was run with); its id."""
        request = api.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod)
        return self._call("CreateContainer", self.runtime.CreateContainer, request).container_id

    def start(self, container_id: str) -> None:
        """Start a container that was created."""
        request = api.StartContainerRequest(container_id=container_id)
        self._call("StartContainer", self.runtime.StartContainer, request)

    def stop(self, container_id: str, grace_s: int = 0) -> None:
        """Stop a container: its stop signal, and SIGKILL after `grace_s`; one that is stopped is fine."""
        request = api.StopContainerRequest(container_id=container_id, timeout=grace_s)
        self._call("StopContainer", self.runtime.StopContainer, request, self._timeout_s + grace_s)

    def remove(self, container_id: str) -> None:
        """Remove a container, stopping it if need be; one that is gone is fine."""
        request = api.RemoveContainerRequest(container_id=container_id)
        self._call("RemoveContainer", self.runtime.RemoveContainer, request)

    def container_status(self, container_id: str) -> api.ContainerStatus:
        """State, times and exit code of a container. CriError NOT_FOUND if there is none."""
        return self.inspect(container_id, verbose=False).status

    def inspect(self, container_id: str, *, verbose: bool = True) -> api.ContainerStatusResponse:
        """The status with the runtime's own notes (with containerd: `info`, JSON with pid and OCI spec)."""
        request = api.ContainerStatusRequest(container_id=container_id, verbose=verbose)
        return self._call("ContainerStatus", self.runtime.ContainerStatus, request)

    def containers(self, pod_id: str = "", labels: Mapping[str, str] | None = None) -> list[api.Container]:
        """All containers, or those of one pod, or with all these labels."""
        wanted = api.ContainerFilter(pod_sandbox_id=pod_id, label_selector=labels or {})
        request = api.ListContainersRequest(filter=wanted)
        return list(self._call("ListContainers", self.runtime.ListContainers, request).containers)

    def wait_until_exited(self, container_id: str, timeout_s: float) -> api.ContainerStatus:
        """Wait for a container's end (the CRI has no call for it: this asks); its status. Or TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while (status := self.container_status(container_id)).state != api.CONTAINER_EXITED:
            if time.monotonic() > deadline:
                raise TimeoutError(f"container {container_id} did not exit within {timeout_s} s")
            time.sleep(0.02)
        return status

    def update(self, container_id: str, resources: api.LinuxContainerResources) -> None:
        """Change a container's limits."""
        request = api.UpdateContainerResourcesRequest(container_id=container_id, linux=resources)
        self._call("UpdateContainerResources", self.runtime.UpdateContainerResources, request)

    def stats(self, container_id: str) -> api.ContainerStats:
        """Resource use of a container."""
        request = api.ContainerStatsRequest(container_id=container_id)
        return self._call("ContainerStats", self.runtime.ContainerStats, request).stats

    def list_stats(self, pod_id: str = "") -> list[api.ContainerStats]:
        """Resource use of all containers, or of those of one pod."""
        wanted = api.ContainerStatsFilter(pod_sandbox_id=pod_id)
        request = api.ListContainerStatsRequest(filter=wanted)
        return list(self._call("ListContainerStats", self.runtime.ListContainerStats, request).stats)

    def reopen_log(self, container_id: str) -> None:
        """Have a running container's log written to a new file, the old one having been moved away."""
        request = api.ReopenContainerLogRequest(container_id=container_id)
        self._call("ReopenContainerLog", self.runtime.ReopenContainerLog, request)

    # --- commands in containers ----------------------------------------------------------------------

    def exec_sync(self, container_id: str, command: Sequence[str], limit_s: int = 0) -> ExecResult:
        """Run a command and wait for its end; the runtime kills it after `limit_s` (0: never)."""
        request = api.ExecSyncRequest(container_id=container_id, cmd=command, timeout=limit_s)
        answer = self._call("ExecSync", self.runtime.ExecSync, request, self._timeout_s + limit_s)
        return ExecResult(answer.stdout, answer.stderr, answer.exit_code)

    def exec_url(
        self, container_id: str, command: Sequence[str], *, stdin: bool = False, tty: bool = False
    ) -> str:
        """Where to stream a command's input and output from. With `tty` there is no stderr."""
        request = api.ExecRequest(
            container_id=container_id, cmd=command, stdin=stdin, stdout=True, stderr=not tty, tty=tty
        )
        return self._call("Exec", self.runtime.Exec, request).url

    def attach_url(self, container_id: str, *, stdin: bool = False, tty: bool = False) -> str:
        """Where to stream a container's own input and output from. With `tty` there is no stderr."""
        request = api.AttachRequest(
            container_id=container_id, stdin=stdin, stdout=True, stderr=not tty, tty=tty
        )
        return self._call("Attach", self.runtime.Attach, request).url

    def events(self, timeout_s: float) -> Iterator[api.ContainerEventResponse]:
        """Container events as they happen, for `timeout_s`."""
        try:
            yield from self.runtime.GetContainerEvents(api.GetEventsRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            failure = _failure("GetContainerEvents", error)
            if failure.code != grpc.StatusCode.DEADLINE_EXCEEDED:
                raise failure from error

    # --- images --------------------------------------------------------------------------------------

    def pull(self, image: str) -> str:
        """Pull an image; the reference under which the runtime has it."""
        request = api.PullImageRequest(image=api.ImageSpec(image=image))
        return self._call("PullImage", self.images.PullImage, request, _PULL_TIMEOUT_S).image_ref

    def image_status(self, image: str) -> api.Image | None:
        """What the runtime knows of an image; None if it has none of that name."""
        request = api.ImageStatusRequest(image=api.ImageSpec(image=image))
        answer = self._call("ImageStatus", self.images.ImageStatus, request)
        return answer.image if answer.HasField("image") else None

    def list_images(self) -> list[api.Image]:
        """All images that the runtime has."""
        return list(self._call("ListImages", self.images.ListImages, api.ListImagesRequest()).images)

    def remove_image(self, image: str) -> None:
        """Remove an image; one that is not there is fine."""
        request = api.RemoveImageRequest(image=api.ImageSpec(image=image))
        self._call("RemoveImage", self.images.RemoveImage, request)


def _failure(method: str, error: grpc.RpcError) -> CriError:
    """What a client gets raised is a grpc.RpcError and, though its type does not say so, also a grpc.Call."""
    call = cast("grpc.Call", error)
    return CriError(method, call.code(), call.details() or "")
