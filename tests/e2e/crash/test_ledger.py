"""What `manor ps` and `manor leaks` say of a node whose containerd does its work, also after a shim was killed."""

from __future__ import annotations

import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from manor import leaks, ps
from tests.e2e.conftest import Node
from tests.harness.crictl import Crictl
from tests.harness.waiting import eventually

pytestmark = pytest.mark.manor_only("it is Manor's own ledger")
LIMIT_S = 60.0


def await_nothing_left(node: Node, pod: str) -> None:
    """Nothing of a pod is there that nobody owns, nor waits for a containerd that has been there already."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        found = leaks.look(str(node.containerd.run_dir), 0)
        left = [each for each in found.leaks if each.pod == pod]
        if not left and pod not in found.waiting:
            return
        assert time.monotonic() < deadline, (left, found.waiting)
        time.sleep(0.1)


def test_a_pod_is_shown_and_nothing_of_it_is_a_leak(
    node: Node, crictl: Crictl, pod: str, container: str
) -> None:
    (row,) = [each for each in ps.look(str(node.containerd.run_dir), LIMIT_S) if each.pod == pod]
    assert (row.namespace, row.shim, row.note) == ("k8s.io", "alive", "")
    assert [row.pid] == node.containerd.shim_pids(pod)
    shown = {each.container: (each.pid, each.status) for each in row.processes}
    assert shown[container] == (crictl.pid(container), "running")
    await_nothing_left(node, pod)


def test_a_killed_shims_pod_is_gone_from_the_ledger(
    node: Node, crictl: Crictl, pod: str, container: str
) -> None:
    (shim,) = node.containerd.shim_pids(pod)
    os.kill(shim, signal.SIGKILL)
    crictl.wait_for(container, "CONTAINER_EXITED", 30)
    await_nothing_left(node, pod)
    eventually(lambda: pod not in [each.pod for each in ps.look(str(node.containerd.run_dir), LIMIT_S)])


def test_a_shim_killed_in_the_middle_of_a_create_leaves_nothing(
    node: Node, crictl: Crictl, pod: str, container: str
) -> None:
    """While its creating process is at work. What there was of the container is for the leak check, too."""
    (shim,) = node.containerd.shim_pids(pod)
    with ThreadPoolExecutor(1) as workers:
        for _ in range(30):
            second = crictl.create(pod, ["sleep", "1000"], "second")
            starting = workers.submit(crictl.run, "start", second, check=False)
            while not starting.done():
                if is_creating(shim):
                    os.kill(shim, signal.SIGKILL)
                    assert starting.result(LIMIT_S).exit_code != 0
                    break
            if starting.result(LIMIT_S).exit_code != 0:
                break
        else:
            pytest.fail("no create was seen that could have been cut short")
    crictl.wait_for(container, "CONTAINER_EXITED", 30)
    await_nothing_left(node, pod)
    forget_bundle(node, second)


def forget_bundle(node: Node, name: str) -> None:
    """containerd 2.3 forgets sometimes that of a task which was not created because its shim died."""
    for bundle in node.containerd.instance.directory.glob(f"*/io.containerd.runtime.v2.task/*/{name}"):
        assert not os.path.ismount(bundle / "rootfs")
        shutil.rmtree(bundle)


def is_creating(shim: int) -> bool:
    """Whether the shim has a creating process. It has few children."""
    try:
        for child in Path(f"/proc/{shim}/task/{shim}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().startswith("manor:[0:CREATE"):
                return True
    except OSError:
        pass
    return False
