"""The CRI client against a runtime that exists only in this file."""

# ruff: noqa: N802 - methods have the names that the CRI gives them
from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest

from cri.api import api_pb2 as api
from cri.api import api_pb2_grpc
from cri.client import Client, CriError, container_config, pod_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Runtime(api_pb2_grpc.RuntimeServiceServicer):
    """Keeps one pod and its containers in memory."""

    def __init__(self) -> None:
        self.pods: dict[str, api.RunPodSandboxRequest] = {}
        self.containers: dict[str, api.CreateContainerRequest] = {}
        self.asked_ready = 0
        self.asked_status = 0

    def Version(self, request: api.VersionRequest, context: grpc.ServicerContext) -> api.VersionResponse:
        return api.VersionResponse(version=request.version, runtime_name="test")

    def Status(self, request: api.StatusRequest, context: grpc.ServicerContext) -> api.StatusResponse:
        self.asked_ready += 1
        network = api.RuntimeCondition(type="NetworkReady", status=self.asked_ready > 2, reason="NoPlugin")
        conditions = [api.RuntimeCondition(type="RuntimeReady", status=True), network]
        return api.StatusResponse(status=api.RuntimeStatus(conditions=conditions))

    def RunPodSandbox(
        self, request: api.RunPodSandboxRequest, context: grpc.ServicerContext
    ) -> api.RunPodSandboxResponse:
        if request.runtime_handler != "manor":
            context.abort(
                grpc.StatusCode.NOT_FOUND, f'no runtime for "{request.runtime_handler}" is configured'
            )
        self.pods["p1"] = request
        return api.RunPodSandboxResponse(pod_sandbox_id="p1")

    def ListPodSandbox(
        self, request: api.ListPodSandboxRequest, context: grpc.ServicerContext
    ) -> api.ListPodSandboxResponse:
        return api.ListPodSandboxResponse(items=[api.PodSandbox(id=pod_id) for pod_id in self.pods])

    def CreateContainer(
        self, request: api.CreateContainerRequest, context: grpc.ServicerContext
    ) -> api.CreateContainerResponse:
        self.containers["c1"] = request
        return api.CreateContainerResponse(container_id="c1")

    def ListContainers(
        self, request: api.ListContainersRequest, context: grpc.ServicerContext
    ) -> api.ListContainersResponse:
        found = [api.Container(id="c1", pod_sandbox_id="p1")] if request.filter.pod_sandbox_id == "p1" else []
        return api.ListContainersResponse(containers=found)

    def ContainerStatus(
        self, request: api.ContainerStatusRequest, context: grpc.ServicerContext
    ) -> api.ContainerStatusResponse:
        self.asked_status += 1
        state = api.CONTAINER_EXITED if self.asked_status > 2 else api.CONTAINER_RUNNING
        return api.ContainerStatusResponse(status=api.ContainerStatus(id="c1", state=state, exit_code=3))

    def ExecSync(self, request: api.ExecSyncRequest, context: grpc.ServicerContext) -> api.ExecSyncResponse:
        text = " ".join(request.cmd).encode()
        return api.ExecSyncResponse(stdout=text, stderr=b"!", exit_code=request.timeout)

    def GetContainerEvents(
        self, request: api.GetEventsRequest, context: grpc.ServicerContext
    ) -> Iterator[api.ContainerEventResponse]:
        yield api.ContainerEventResponse(container_id="c1")
        while context.is_active():
            time.sleep(0.01)


class Images(api_pb2_grpc.ImageServiceServicer):
    """Has one image."""

    def ImageStatus(
        self, request: api.ImageStatusRequest, context: grpc.ServicerContext
    ) -> api.ImageStatusResponse:
        known = request.image.image == "busybox"
        return api.ImageStatusResponse(image=api.Image(id="i1") if known else None)


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture
def client(tmp_path: Path, runtime: Runtime) -> Iterator[Client]:
    with ThreadPoolExecutor(4) as workers:
        server = grpc.server(workers)
        api_pb2_grpc.add_RuntimeServiceServicer_to_server(runtime, server)
        api_pb2_grpc.add_ImageServiceServicer_to_server(Images(), server)
        address = f"unix://{tmp_path}/cri.sock"
        server.add_insecure_port(address)
        server.start()
        with Client(address, timeout_s=5) as connected:
            yield connected
        server.stop(None).wait()


def test_version_asks_as_the_kubelet_does(client: Client) -> None:
    assert client.version() == api.VersionResponse(version="0.1.0", runtime_name="test")


def test_a_pod_and_its_container_are_made_of_their_configs(client: Client, runtime: Runtime) -> None:
    pod = pod_config("web", log_directory="/logs", cgroup_parent="/pods", annotations={"a": "b"})
    assert (pod.log_directory, pod.linux.cgroup_parent, dict(pod.annotations)) == (
        "/logs",
        "/pods",
        {"a": "b"},
    )
    container = container_config("main", "busybox", ["sleep", "1"], log_path="main.log", tty=True)
    assert client.run_pod(pod, handler="manor") == "p1"
    assert client.create("p1", container, pod) == "c1"
    assert runtime.pods["p1"].config == pod
    assert runtime.containers["c1"] == api.CreateContainerRequest(
        pod_sandbox_id="p1", config=container, sandbox_config=pod
    )
    assert [found.id for found in client.pods()] == ["p1"]
    assert [found.id for found in client.containers("p1")] == ["c1"]
    assert client.containers("p2") == []


def test_a_failure_names_method_code_and_reason(client: Client) -> None:
    with pytest.raises(
        CriError, match='RunPodSandbox: NOT_FOUND: no runtime for "x" is configured'
    ) as caught:
        client.run_pod(pod_config("web"), handler="x")
    assert caught.value.code == grpc.StatusCode.NOT_FOUND
    with pytest.raises(CriError, match="PodSandboxStatus: UNIMPLEMENTED"):
        client.pod_status("p1")


def test_a_runtime_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with Client(f"unix://{tmp_path}/none") as client, pytest.raises(CriError, match="Version: UNAVAILABLE"):
        client.version()


def test_exec_sync_gives_both_streams_and_the_exit_code(client: Client) -> None:
    assert client.exec_sync("c1", ["echo", "hi"], limit_s=7) == (b"echo hi", b"!", 7)


def test_waiting_for_readiness_and_for_an_exit_asks_until_it_is_so(client: Client, runtime: Runtime) -> None:
    client.wait_until_ready(5)
    assert runtime.asked_ready == 3
    assert client.wait_until_exited("c1", 5).exit_code == 3
    assert runtime.asked_status == 3


def test_waiting_for_readiness_ends_with_the_reason(client: Client, runtime: Runtime) -> None:
    runtime.asked_ready = -1000
    with pytest.raises(TimeoutError, match="NetworkReady: NoPlugin"):
        client.wait_until_ready(0.1)


def test_an_image_that_is_not_there_is_none(client: Client) -> None:
    found = client.image_status("busybox")
    assert found is not None
    assert found.id == "i1"
    assert client.image_status("alpine") is None


def test_events_end_with_the_time(client: Client) -> None:
    assert [event.container_id for event in client.events(timeout_s=0.2)] == ["c1"]
