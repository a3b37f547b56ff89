"""Containers with hardly any memory: what the runtime itself needs inside must fit."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.oci.conftest import Oci, cgroup_directories


def _limited(kib: int) -> Any:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["memory"] = {"limit": kib << 10}

    return change


def _skip_what_is_too_little_for_runc(oci: Oci, kib: int) -> None:
    if not oci.is_manor and kib < 4096:
        pytest.skip("runc's init does not fit")


@pytest.mark.parametrize("kib", [2048, 4096])
def test_a_container_of_few_megabytes_runs(oci: Oci, kib: int) -> None:
    _skip_what_is_too_little_for_runc(oci, kib)
    bundle = oci.bundle("echo", "small", change=_limited(kib))
    for _time in range(5):
        done = oci("run", "-b", bundle.path, "c")
        assert (done.code, done.stdout) == (0, "small\n"), done.stderr


@pytest.mark.parametrize("kib", [2048, 4096])
def test_an_exec_works_in_it(oci: Oci, kib: int) -> None:
    _skip_what_is_too_little_for_runc(oci, kib)
    name = oci.started(change=_limited(kib))
    for _time in range(5):
        assert oci.ok("exec", name, "echo", "small") == "small\n"
    assert oci.state(name)["status"] == "running"


def test_a_limit_that_is_too_small_is_told_and_leaves_nothing(oci: Oci) -> None:
    bundle = oci.bundle("true", change=_limited(64))
    done = oci("run", "-b", bundle.path, "c")
    assert done.code != 0
    assert done.error
    assert oci("state", "c").code == 1
    assert not cgroup_directories(bundle.path.name)


@pytest.mark.parametrize("most", [1, 2])
def test_a_container_of_few_processes_runs(oci: Oci, most: int) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["pids"] = {"limit": most}

    if not oci.is_manor:
        pytest.skip("runc's init has more threads than that")
    bundle = oci.bundle("echo", "alone", change=change)
    assert oci.ok("run", "-b", bundle.path, "c") == "alone\n"
