"""SIGKILL of each daemon under a running pod: what must go on goes on, and what died is cleaned up."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import Node
from tests.harness import handlers, leaks
from tests.harness.crictl import Crictl
from tests.harness.waiting import eventually


def tidy_after_the_reference(node: Node, handler: str, inits: list[int]) -> None:
    """Do what the reference's `delete` does not, so that the same test can be run on it.

    containerd 2 runs `delete` for the sandbox only. The reference then forgets the pod's other containers, and
    its socket file; Manor must not.
    """
    if handlers.is_manor(handler) or node.containerd.version == "1.6":
        return
    for pid in inits:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    for directory in node.containerd.instance.cgroups():
        with contextlib.suppress(OSError):  # those of other containers are busy
            directory.rmdir()
    instance = node.containerd.instance
    for path in [*(instance.directory / "s").glob("*"), *instance.shared_sockets()]:
        if not _listens(path):
            path.unlink()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.mark.pods_since("2.1", "an earlier one does not find them when it starts")
def test_a_pod_outlives_its_containerd(node: Node, crictl: Crictl, pod: str, container: str) -> None:
    pid = crictl.pid(container)
    node.containerd.restart()
    assert crictl.status(container)["state"] == "CONTAINER_RUNNING"
    assert crictl.pid(container) == pid
    assert crictl.execute(container, "echo", "still here").stdout.strip() == "still here"
    assert crictl.execute(container, "sh", "-c", "exit 4", sync=True, check=False).exit_code == 4
    second = crictl.run_container(pod, ["sleep", "1000"], "second")
    assert crictl.status(second)["state"] == "CONTAINER_RUNNING"


@pytest.mark.pods_since("2.1", "an earlier one does not find them when it starts")
def test_output_goes_on_after_a_restart_of_containerd(node: Node, crictl: Crictl, pod: str) -> None:
    container = crictl.run_container(
        pod, ["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"]
    )
    node.containerd.restart()
    log = Path(crictl.status(container)["logPath"])
    size = log.stat().st_size
    deadline = time.monotonic() + 60
    while log.stat().st_size <= size:
        assert time.monotonic() < deadline, "nothing was logged after the restart"
        time.sleep(0.1)


@pytest.mark.pods_since("2.1", "an earlier one does not find them when it starts")
def test_an_exit_while_containerd_is_down_is_reported_afterwards(
    node: Node, crictl: Crictl, handler: str, container: str
) -> None:
    pid = crictl.pid(container)
    node.containerd.kill()
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.3)
    node.containerd.start()
    status = crictl.wait_for(container, "CONTAINER_EXITED")
    # containerd 2 takes a task without processes for a leaked one when it starts, and calls its exit 255; with
    # Manor an ended task has its init until it is deleted.
    known = node.containerd.version == "1.6" or handlers.is_manor(handler)
    assert status["exitCode"] == (137 if known else 255)


@pytest.mark.pods_since("2.1", "an earlier one does not find them when it starts")
@pytest.mark.manor_only
def test_so_is_that_of_one_whose_output_nobody_took(node: Node, crictl: Crictl, pod: str) -> None:
    """containerd closes its end of the pipes before it has the task deleted, and has ten seconds for that."""
    container = crictl.run_container(pod, ["yes"])
    pid = crictl.pid(container)
    node.containerd.kill()
    eventually(lambda: "pipe_write" in Path(f"/proc/{pid}/wchan").read_text())
    os.kill(pid, signal.SIGKILL)
    node.containerd.start()
    assert crictl.wait_for(container, "CONTAINER_EXITED")["exitCode"] == 137


def test_a_killed_shim_is_an_exit_and_is_cleaned_up(
    node: Node, crictl: Crictl, handler: str, pod: str, container: str
) -> None:
    """containerd notices, runs the shim's `delete`, and the container's processes are gone with it."""
    init = crictl.pid(container)
    (shim,) = node.containerd.shim_pids(pod)
    os.kill(shim, signal.SIGKILL)
    status = crictl.wait_for(container, "CONTAINER_EXITED", 20)
    assert status["exitCode"] != 0
    tidy_after_the_reference(node, handler, [init])
    deadline = time.monotonic() + leaks.GRACE_S
    while Path(f"/proc/{init}").exists():
        assert time.monotonic() < deadline, "the container's init outlived its shim's delete"
        time.sleep(0.05)


def test_a_new_pod_runs_after_a_shim_was_killed(node: Node, crictl: Crictl, handler: str, pod: str) -> None:
    (shim,) = node.containerd.shim_pids(pod)
    os.kill(shim, signal.SIGKILL)
    other = crictl.run_pod(handler)
    container = crictl.run_container(other, ["sleep", "1000"])
    assert crictl.execute(container, "echo", "fine").stdout.strip() == "fine"
    tidy_after_the_reference(node, handler, [])


def test_pods_outlive_their_warden_and_the_next_start_brings_a_new_one(
    node: Node, crictl: Crictl, handler: str, pod: str, container: str
) -> None:
    # The reference has none: nothing to kill, and the rest still holds.
    wardens = leaks.wardens(node.containerd) if handlers.is_manor(handler) else []
    assert len(wardens) == handlers.is_manor(handler)
    for warden in wardens:
        os.kill(warden, signal.SIGKILL)
    assert crictl.execute(container, "echo", "still here").stdout.strip() == "still here"
    other = crictl.run_pod(handler)
    crictl.run_container(other, ["sleep", "1000"])
    if handlers.is_manor(handler):
        (successor,) = leaks.wardens(node.containerd)
        assert successor not in wardens
