"""`execCPUAffinity.initial` on CPUs that the runtime itself may not use: they belong to another cpuset than its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import StageError
from tests.harness.waiting import remove_cgroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.runtime.conftest import Runner

SHOW = ("sh", "-c", "grep Cpus_allowed_list /proc/self/status")


@pytest.fixture
def confined_to_cpu_0(runner: Runner) -> Iterator[Callable[[], None]]:
    """What a child calls to be in a cpuset of CPU 0 alone."""
    cpuset = runner.host.layout.find("cpuset")
    assert cpuset is not None, "this machine has no cpuset controller"
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one CPU")
    directory = Path(cpuset.mountpoint) / "manor-tests" / f"confined-{os.getpid()}"
    directory.mkdir(parents=True)
    if cpuset.version == 1:
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not (directory.parent / name).read_text().strip():
                (directory.parent / name).write_text((directory.parent.parent / name).read_text())
        (directory / "cpuset.mems").write_text((directory.parent / "cpuset.mems").read_text())
    (directory / "cpuset.cpus").write_text("0")

    def confine() -> None:
        (directory / "cgroup.procs").write_text("0")

    yield confine
    remove_cgroup(directory)


def with_cpus(config: dict[str, Any]) -> None:
    config["linux"]["resources"]["cpu"] = {"cpus": "0-1"}


def in_a_child(confine: Callable[[], None], act: Callable[[], None]) -> str:
    """`act` in a confined child; what went wrong."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            confine()
            act()
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as said:
        text = said.read().decode()
    os.waitpid(pid, 0)
    return text


def test_an_exec_is_bound_to_them_before_its_join_and_nothing_stays(
    runner: Runner, confined_to_cpu_0: Callable[[], None]
) -> None:
    container = runner.started(change=with_cpus)

    def act() -> None:
        output = runner.exec(container, *SHOW, execCPUAffinity={"initial": "1"})
        assert output.stdout.split()[-1] == "1", output

    assert in_a_child(confined_to_cpu_0, act) == ""
    cpuset = runner.host.layout.find("cpuset")
    assert cpuset is not None
    left = [path for path in Path(container.cgroup.paths[cpuset.name]).iterdir() if path.is_dir()]
    assert left == []


def test_the_final_ones_hold_after_the_join(runner: Runner, confined_to_cpu_0: Callable[[], None]) -> None:
    container = runner.started(change=with_cpus)

    def act() -> None:
        output = runner.exec(container, *SHOW, execCPUAffinity={"initial": "1", "final": "0-1"})
        assert output.stdout.split()[-1] == "0-1", output

    assert in_a_child(confined_to_cpu_0, act) == ""


def test_cpus_that_the_container_has_not_either_are_refused(
    runner: Runner, confined_to_cpu_0: Callable[[], None]
) -> None:
    def narrow(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["cpu"] = {"cpus": "0"}

    container = runner.started(change=narrow)

    def act() -> None:
        with pytest.raises(StageError, match=r"bind to CPUs to 1: Invalid argument"):
            runner.exec_tenant(container, *SHOW, execCPUAffinity={"initial": "1"})

    assert in_a_child(confined_to_cpu_0, act) == ""
