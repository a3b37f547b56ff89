"""The check on the checks: what is left behind is found, what others have is not, what a crash left is swept."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.e2e.conftest import Node, NodeMaker
from tests.harness import instances, leaks
from tests.harness.crictl import Crictl
from tests.harness.instances import Instance
from tests.harness.paths import CHECKOUT

# Runs in a process of its own, which is killed: makes an instance with a process, a mount and a cgroup, says its name.
CRASHING = """
import subprocess, sys, time
from tests.harness.instances import Instance, hierarchies
from pathlib import Path
instance = Instance.create()
mounted = instance.directory / "mounted"
mounted.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "left", mounted], check=True)
child = subprocess.Popen(["sleep", "1000"], env=instance.environment(), start_new_session=True)
cgroup = hierarchies()[0] / instance.cgroup_parent.lstrip("/")
cgroup.mkdir()
print(instance.id, child.pid, flush=True)
time.sleep(1000)
"""


def test_a_forgotten_pod_is_found_in_every_kind(
    node: Node, crictl: Crictl, handler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "GRACE_S", 0.0)
    before = leaks.take(node.containerd)
    crictl.run_container(crictl.run_pod(handler), ["sleep", "1000"])
    with pytest.raises(AssertionError) as failure:
        leaks.assert_nothing_more(node.containerd, before)
    for kind in ("process", "mount", "cgroup", "link", "network", "file"):
        assert f"\n  {kind}: " in str(failure.value)


def test_what_another_instance_has_is_not_seen(
    node: Node, handler: str, make_node: NodeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)  # where the whole machine is compared, there are no others
    with leaks.nothing_left(node.containerd):
        other = make_node("2.3")
        other.crictl.run_pod(handler)


def test_what_a_crashed_run_left_is_swept_by_the_next() -> None:
    crashing = subprocess.Popen(
        [sys.executable, "-c", CRASHING], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    assert crashing.stdout is not None
    name, child = crashing.stdout.readline().split()
    left = Instance(name)
    instances.sweep()
    assert left.directory.exists(), "its owner is alive: hands off"
    crashing.kill()
    crashing.wait()
    crashing.stdout.close()
    assert list(left.mounts())
    instances.sweep()
    assert not left.directory.exists()
    assert list(left.mounts()) == []
    assert list(left.cgroups()) == []
    deadline = time.monotonic() + leaks.GRACE_S
    while (found := instances.process(int(child))) is not None and found.state != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
