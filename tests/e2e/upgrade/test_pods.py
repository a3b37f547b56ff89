"""Pods whose Manor is replaced while they run, as their containerd and its clients see them."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.api import types
from tests.e2e.conftest import Node
from tests.harness import containerd, handlers, leaks
from tests.harness.containerd import Containerd
from tests.harness.crictl import Crictl
from tests.harness.instances import process
from tests.harness.paths import scratch_dir
from tests.harness.registry import Registry
from tests.harness.task import TaskClient
from tests.harness.upgrades import EARLIER, IN_PLACE, LATER, NODE, Installation, Versions
from tests.harness.waiting import eventually

COUNTS = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"]
# Both ways that a node is upgraded in, and each containerd, but not all with all.
WAY = {"1.6": IN_PLACE, "2.3": NODE}


@pytest.fixture(scope="module", params=containerd.VERSIONS)
def running_node(
    request: pytest.FixtureRequest, registry: Registry, versions: dict[str, Versions]
) -> Iterator[Node]:
    """A containerd whose Manor can be replaced."""
    with tempfile.TemporaryDirectory(prefix="manor-up-", dir=scratch_dir()) as directory:
        installation = Installation(versions[WAY[request.param]], Path(directory) / "bin")
        installation.install(EARLIER)
        daemon = Containerd(request.param, registry, shim=installation.shim)
        try:
            made = Node(daemon)
            made.installation = installation  # type: ignore[attr-defined]
            yield made
        finally:
            daemon.close()
            installation.remove()


@pytest.fixture(params=[handlers.MANOR, handlers.MANOR_PODS])
def handler(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def earlier(node: Node) -> Installation:
    """The node's installation, of the earlier version."""
    installation: Installation = node.installation  # type: ignore[attr-defined]
    installation.install(EARLIER)
    return installation


def warden_of(shim: int) -> int:
    """Who forked a shim, or, when that one has ended, whoever it was left to."""
    found = process(shim)
    assert found is not None
    return found.parent


def log_of(crictl: Crictl, container: str) -> Path:
    return Path(crictl.status(container)["logPath"])


def grows(path: Path) -> None:
    size = path.stat().st_size
    eventually(lambda: path.stat().st_size > size)


def cpu_of(crictl: Crictl, container: str) -> int:
    """What the CRI says that a container has used."""
    (stats,) = crictl.json("stats", "-o", "json", "--id", container)["stats"]
    return int(stats["cpu"]["usageCoreNanoSeconds"]["value"])


def test_a_pod_of_the_earlier_version_goes_on_and_ends(
    node: Node, crictl: Crictl, handler: str, earlier: Installation
) -> None:
    pod = crictl.run_pod(handler)
    container = crictl.run_container(pod, COUNTS)
    init, (shim,) = crictl.pid(container), node.containerd.shim_pids(pod)
    first_warden = warden_of(shim)
    earlier.install(LATER)
    for _restarted in range(2):
        assert crictl.pid(container) == init
        grows(log_of(crictl, container))
        assert crictl.execute(container, "echo", "here").stdout == "here\n"
        assert crictl.execute(container, "sh", "-c", "exit 4", sync=True, check=False).exit_code == 4
        assert cpu_of(crictl, container) > 0
        another = crictl.run_container(pod, ["sleep", "1000"], "another")
        assert crictl.status(another)["state"] == "CONTAINER_RUNNING"
        assert node.containerd.shim_pids(pod) == [shim]
        crictl.run("stop", "-t", "0", another)
        crictl.run("rm", another)
        node.containerd.restart()
    other = crictl.run_pod(handler)
    crictl.run_container(other, ["sleep", "1000"])
    (later_shim,) = node.containerd.shim_pids(other)
    eventually(lambda: leaks.wardens(node.containerd) == [warden_of(later_shim)])
    assert first_warden not in leaks.wardens(node.containerd)
    assert crictl.execute(container, "echo", "still here").stdout == "still here\n"
    crictl.run("stop", "-t", "0", container)
    assert crictl.status(container)["exitCode"] == 137
    crictl.run("rm", container)
    crictl.stop_pod(pod)
    crictl.remove_pod(pod)
    eventually(lambda: node.containerd.shim_pids(pod) == [])


def test_a_shim_of_the_earlier_version_that_dies_is_cleaned_up_after(
    node: Node, crictl: Crictl, handler: str, earlier: Installation
) -> None:
    """By `delete` of the later one; the node's leak check sees what that has left."""
    pod = crictl.run_pod(handler)
    container = crictl.run_container(pod, ["sleep", "1000"])
    init, (shim,) = crictl.pid(container), node.containerd.shim_pids(pod)
    earlier.install(LATER)
    os.kill(shim, signal.SIGKILL)
    crictl.wait_for(container, "CONTAINER_EXITED")
    eventually(lambda: not Path(f"/proc/{init}").exists())


@pytest.mark.parametrize("handler", [handlers.MANOR])
def test_an_exit_while_containerd_is_down_and_manor_is_replaced_is_reported(
    node: Node, crictl: Crictl, handler: str, earlier: Installation
) -> None:
    pod = crictl.run_pod(handler)
    container = crictl.run_container(pod, ["sleep", "1000"])
    init = crictl.pid(container)
    version = node.containerd.shim_address(pod)
    node.containerd.kill()
    earlier.install(LATER)
    os.kill(init, signal.SIGKILL)
    with TaskClient(f"unix://{version[0]}", version[1]) as client:
        eventually(lambda: has_ended(client, container))
    node.containerd.start()
    assert crictl.wait_for(container, "CONTAINER_EXITED")["exitCode"] == 137


def has_ended(client: TaskClient, container: str) -> Any:
    """Whether the shim says so."""
    return client.state(container).status == types.STATUS_STOPPED
