"""process.scheduler: what the container's program runs under, and what stands in its way."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.e2e.oci.conftest import Oci

_DEADLINE = {"policy": "SCHED_DEADLINE", "runtime": 2_000_000, "deadline": 100_000_000, "period": 100_000_000}


def _with_deadline(config: dict[str, Any]) -> None:
    config["process"]["scheduler"] = _DEADLINE


def _on_one_cpu(config: dict[str, Any]) -> None:
    _with_deadline(config)
    config["linux"]["resources"]["cpu"] = {"cpus": "0"}


def test_a_deadline_is_the_programs(oci: Oci) -> None:
    name = oci.started(change=_with_deadline)
    pid = oci.state(name)["pid"]
    assert os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK == 6  # SCHED_DEADLINE of sched(7)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU is all of them here")
@pytest.mark.parametrize("_time", range(4))
def test_a_deadline_and_a_cpuset_exclude_each_other(oci: Oci, _time: int) -> None:
    """The kernel's rule (sched_setattr(2), EPERM). Set too early it is init that can't go to its CPUs: a race."""
    bundle = oci.bundle("true", change=_on_one_cpu)
    done = oci("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code == 1
    assert "process scheduler can't be used together with AllowedCPUs" in done.error
