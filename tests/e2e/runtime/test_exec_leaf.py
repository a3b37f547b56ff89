"""An exec that is to be in a cgroup of its own, in containers that do with it what they like."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.cgroups.files import parse_pairs
from runtime.cgroups.leaf import Leaf, make_leaf
from runtime.container import Container, ExecOptions, ExecRequest, Tenant
from runtime.errors import StageError
from runtime.operations import exec as operation
from runtime.operations.exec import exec_
from runtime.operations.kill import kill
from runtime.operations.update import pause
from runtime.spec.load import load_process
from runtime.stages.plan import Stdio
from runtime.waiting import run
from tests.harness.bundles import Bundle
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from tests.e2e.runtime.conftest import Runner


def execute(runner: Runner, container: Container, *args: str, **changes: Any) -> Tenant:
    import json

    process = load_process(json.dumps(Bundle.process(list(args)) | changes).encode())
    return run(exec_(container, ExecRequest(process, Stdio(), runner.shape, ExecOptions(leaf=True))))


def own(container: Container) -> Path:
    """The v2 cgroup of a container."""
    unified = container.cgroup.layout.unified
    assert unified is not None
    return Path(container.cgroup.paths[unified.name])


def v2_place(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def end(tenant: Tenant) -> None:
    if tenant.leaf is not None:
        tenant.leaf.kill()
    else:
        os.kill(tenant.pid, 9)
    os.waitpid(tenant.pid, 0x40000000)
    tenant.pidfd.close()
    if tenant.leaf is not None:
        eventually(tenant.leaf.remove)
        tenant.leaf.close()


def test_it_is_born_in_it_and_its_time_is_counted_there(runner: Runner) -> None:
    container = runner.started()
    tenant = execute(runner, container, "sh", "-c", "while :; do :; done")
    assert tenant.leaf is not None
    assert tenant.cgroup == "leaf"
    assert v2_place(tenant.pid) == f"{v2_place(container.pid)}/{tenant.leaf.name}"
    assert tenant.leaf.holds(tenant.pid)
    assert not tenant.leaf.holds(container.pid)
    eventually(lambda: used(tenant) > 100_000)
    text = (own(container) / "cpu.stat").read_text()
    assert parse_pairs(text)["usage_usec"] >= 100_000  # what is in a leaf counts as the container's
    assert set(container.cgroup.pids()) == {container.pid, tenant.pid}
    end(tenant)


def used(tenant: Tenant) -> int:
    assert tenant.leaf is not None
    counted = tenant.leaf.cpu_time()
    assert counted is not None
    return counted.usage_us


def test_no_leaf_is_made_for_who_does_not_ask(runner: Runner) -> None:
    container = runner.started()
    tenant = runner.exec_tenant(container, "sleep", "1000")
    assert (tenant.leaf, tenant.cgroup, list(own(container).glob("exec-*"))) == (None, "own", [])
    end(tenant)


def test_where_its_first_cpus_may_take_a_cpuset_of_threads_there_is_none(runner: Runner) -> None:
    container = runner.started()
    tenant = execute(runner, container, "sleep", "1000", execCPUAffinity={"initial": "0"})
    cpuset = runner.host.layout.find("cpuset")
    assert tenant.cgroup == ("own" if cpuset is not None and cpuset.version == 2 else "leaf")
    end(tenant)


def removed(leaf: Leaf, _place: Path) -> None:
    assert leaf.remove()


def of_threads(leaf: Leaf, place: Path) -> None:
    """What a container does that makes a cgroup of threads beside it: a leaf can have no processes then."""
    (place / "threads").mkdir()
    (place / "threads/cgroup.type").write_text("threaded")
    assert (place / leaf.name / "cgroup.type").read_text().strip() == "domain invalid"


@pytest.mark.parametrize("misuse", [removed, of_threads])
def test_a_leaf_that_does_not_take_it_means_the_containers_own_cgroup(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, misuse: Callable[[Leaf, Path], None]
) -> None:
    container = runner.started()

    def made(*about: Any) -> Leaf | None:
        leaf = make_leaf(*about)
        assert leaf is not None
        misuse(leaf, own(container))
        return leaf

    monkeypatch.setattr(operation, "make_leaf", made)
    tenant = execute(runner, container, "sleep", "1000")
    assert (tenant.leaf, tenant.cgroup) == (None, "own")
    assert v2_place(tenant.pid) == v2_place(container.pid)
    assert list(own(container).glob("exec-*")) == []
    end(tenant)


def test_a_command_that_is_not_there_leaves_no_leaf(runner: Runner) -> None:
    container = runner.started()
    with pytest.raises(StageError, match="nope"):
        execute(runner, container, "nope")
    assert list(own(container).glob("exec-*")) == []


def test_it_is_paused_and_killed_with_its_container(runner: Runner) -> None:
    container = runner.started()
    tenant = execute(runner, container, "sh", "-c", "while :; do sleep 0.01; done")
    assert tenant.leaf is not None
    run(pause(container))
    assert str(tenant.pid) in (own(container) / tenant.leaf.name / "cgroup.procs").read_text().split()
    kill(container, 9)
    os.waitpid(tenant.pid, 0x40000000)  # first: the end of a PID namespace waits for all that were in it
    tenant.pidfd.close()
    tenant.leaf.close()
    runner.stop(container)
    runner.delete(container)
    assert not own(container).exists()
