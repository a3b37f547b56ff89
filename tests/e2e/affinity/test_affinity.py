"""CPUs that an exec may use on a node with isolated CPUs, through containerd, as a pod's annotation asks.

The node's daemon and shims live in a mount namespace of their own in which /proc/cmdline names `nohz_full`. An
exec that stays on its transition CPU ("definitive") shows which one it was started on; one that leaves it
("temporary") shows that the cgroup's CPUs are all allowed again after the join.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Node
from tests.harness import containerd, leaks
from tests.harness.containerd import Containerd
from tests.harness.crictl import Crictl, CrictlError
from tests.harness.handlers import AFFINITY_ANNOTATION
from tests.harness.registry import Registry
from tests.harness.task import TaskClient

ALL = "0-1"  # two CPUs are enough for every case, and every machine that builds this has them


@pytest.fixture(scope="module", params=containerd.VERSIONS)
def isolating_node(request: pytest.FixtureRequest, registry: Registry) -> Iterator[Node]:
    """A node on which CPU 1 is isolated."""
    daemon = Containerd(request.param, registry, kernel_command_line="quiet nohz_full=1 panic=1")
    try:
        yield Node(daemon)
    finally:
        daemon.close()


@pytest.fixture(scope="module", params=containerd.VERSIONS)
def all_isolated_node(request: pytest.FixtureRequest, registry: Registry) -> Iterator[Node]:
    """A node on which both CPUs are isolated."""
    daemon = Containerd(request.param, registry, kernel_command_line=f"nohz_full={ALL}")
    try:
        yield Node(daemon)
    finally:
        daemon.close()


def annotated(crictl: Crictl, handler: str, value: str | None, cpus: str) -> str:
    """A running container whose pod has the annotation and whose cpuset is `cpus`."""
    pod = crictl.run_pod(handler, {AFFINITY_ANNOTATION: value} if value is not None else {})
    return crictl.run_container(pod, ["sleep", "1000"], linux={"resources": {"cpuset_cpus": cpus}})


def allowed_in_exec(crictl: Crictl, container: str) -> str:
    """The CPUs an exec finds itself allowed to use."""
    (line,) = (
        line
        for line in crictl.execute(container, "cat", "/proc/self/status", sync=True).stdout.splitlines()
        if line.startswith("Cpus_allowed_list:")
    )
    return line.split()[1]


def allowed(pid: int) -> set[int]:
    return os.sched_getaffinity(pid)


Checked = Callable[[Node], Crictl]


@pytest.fixture
def checked() -> Iterator[Checked]:
    """Cleans a node after the test and compares it with what it was before."""
    seen: list[tuple[Node, leaks.Inventory]] = []

    def begin(node: Node) -> Crictl:
        seen.append((node, leaks.take(node.containerd)))
        return node.crictl

    yield begin
    for node, before in seen:
        node.crictl.clean()
        leaks.assert_nothing_more(node.containerd, before)


@pytest.mark.parametrize(
    ("value", "cpus", "expected"),
    [
        ("temporary", ALL, ALL),
        ("temporary", "1", "1"),
        (None, ALL, ALL),
    ],
)
def test_an_exec_may_use_all_cpus_of_its_container(
    isolating_node: Node, checked: Checked, handler: str, value: str | None, cpus: str, expected: str
) -> None:
    crictl = checked(isolating_node)
    assert allowed_in_exec(crictl, annotated(crictl, handler, value, cpus)) == expected


@pytest.mark.manor_only("runc 1.5.1 does not know the annotation")
@pytest.mark.parametrize(
    ("value", "cpus", "expected"),
    [
        ("definitive", ALL, "0"),  # mixed: the first CPU that is not isolated, and it stays there
        ("definitive", "1", "1"),  # all of the cpuset is isolated: its first
        ("definitive", "0", "0"),  # nothing isolated in the cpuset: nothing to do
    ],
)
def test_an_exec_is_started_where_the_annotation_says(
    isolating_node: Node, checked: Checked, handler: str, value: str | None, cpus: str, expected: str
) -> None:
    crictl = checked(isolating_node)
    assert allowed_in_exec(crictl, annotated(crictl, handler, value, cpus)) == expected


@pytest.mark.manor_only("runc 1.5.1 does not know the annotation")
def test_with_all_cpus_isolated_the_first_of_the_cpuset_is_taken(
    all_isolated_node: Node, checked: Checked, handler: str
) -> None:
    crictl = checked(all_isolated_node)
    assert allowed_in_exec(crictl, annotated(crictl, handler, "definitive", ALL)) == "0"


@pytest.mark.parametrize("value", ["temporary", None])
def test_init_and_execs_follow_when_the_cpuset_is_widened(
    isolating_node: Node, checked: Checked, handler: str, value: str | None
) -> None:
    crictl = checked(isolating_node)
    container = annotated(crictl, handler, value, "0")
    init = crictl.pid(container)
    # What an exec leaves behind becomes a child of the container's init.
    crictl.execute(container, "sh", "-c", "sleep 999 >/dev/null 2>&1 &", sync=True)
    (left,) = (
        int(pid) for pid in Path(f"/proc/{init}/task/{init}/children").read_text(encoding="ascii").split()
    )
    assert allowed(init) == allowed(left) == {0}
    crictl.run("update", "--cpuset-cpus", ALL, container)
    assert allowed(init) == allowed(left) == {0, 1}


@pytest.mark.manor_only("runc 1.5.1 does not know the annotation")
def test_an_unknown_value_is_refused_and_named(isolating_node: Node, checked: Checked, handler: str) -> None:
    crictl = checked(isolating_node)
    try:
        container = annotated(crictl, handler, "sometimes", ALL)
        refused = crictl.execute(container, "true", check=False)
        message = refused.stdout + refused.stderr
    except CrictlError as error:
        message = str(error)
    assert "sometimes" in message
    assert "isolated-cpu-affinity-transition" in message


def exec_at_the_door(node: Node, container: str, affinity: dict[str, str]) -> str:
    """Run an exec with `execCPUAffinity`, which only the OCI process has, and return the CPUs it was allowed."""
    configuration = json.loads(
        (node.containerd.bundle(container) / "config.json").read_text(encoding="utf-8")
    )
    process: dict[str, Any] = configuration["process"]
    process["args"] = ["sh", "-c", "grep Cpus_allowed_list /proc/self/status > /tmp/allowed"]
    process["execCPUAffinity"] = affinity
    with TaskClient(*node.containerd.shim_address(container)) as door:
        door.add_exec(container, "affine", process)
        door.start(container, "affine")
        assert door.wait(container, "affine") == 0
        door.delete(container, "affine")
    init = node.crictl.pid(container)
    return Path(f"/proc/{init}/root/tmp/allowed").read_text(encoding="ascii").split()[1]


@pytest.mark.manor_only(
    "the runc shim of containerd 1.6 drops execCPUAffinity; with 2.3 this holds for runc too"
)
@pytest.mark.parametrize(
    ("value", "affinity", "expected"),
    [
        (None, {"initial": "0", "final": "1"}, "1"),  # final, after the join
        (None, {"initial": "1"}, "1"),  # only initial: nothing is changed after the join
        ("temporary", {"final": "1"}, "1"),  # final wins over the reset
        ("definitive", {"initial": "1"}, "1"),  # initial wins over the annotation
    ],
)
def test_the_process_own_affinity_wins_over_the_annotation(
    isolating_node: Node,
    checked: Checked,
    handler: str,
    value: str | None,
    affinity: dict[str, str],
    expected: str,
) -> None:
    crictl = checked(isolating_node)
    container = annotated(crictl, handler, value, ALL)
    assert exec_at_the_door(isolating_node, container, affinity) == expected
