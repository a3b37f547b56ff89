"""Three pods by who is left with their orphans: the shim, a pod's landlord, or the container's own init."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shim.api import task
from tests.e2e.orphans.reaping import CONTAINER, Reaping
from tests.e2e.sandbox.conftest import PodDoor, door, netns, world
from tests.e2e.shim.door import Door, opened
from tests.harness.processes import children
from tests.harness.waiting import eventually

__all__ = ["door", "netns", "world"]  # fixtures of a pod without a pause process

# It waits for one child of its own, and so for all.
REAPS = ["sh", "-c", "sleep 1000000 & while :; do wait; done"]


@pytest.fixture
def single() -> Iterator[Door]:
    """A world for one shim of one container."""
    with opened() as made:
        yield made


@pytest.fixture
def in_the_hosts_pid_namespace(single: Door) -> Reaping:
    """The shim is a sub-reaper, and there is no other."""
    bundle = single.bundle(CONTAINER, ["sleep", "1000000"])
    namespaces = bundle.config["linux"]["namespaces"]
    bundle.config["linux"]["namespaces"] = [one for one in namespaces if one["type"] != "pid"]
    bundle.write()
    single.start(CONTAINER)
    single.create(CONTAINER)
    single.ask("Start", task.StartRequest(CONTAINER))
    return Reaping(single, single.shim_pid())


@pytest.fixture
def in_a_private_pid_namespace(single: Door) -> Reaping:
    """The container's init is the first of its namespace."""
    init = single.run(CONTAINER, REAPS)
    eventually(lambda: len(children(init)) == 1)
    return Reaping(single, init)


@pytest.fixture
def in_a_shared_pid_namespace(door: PodDoor, netns: str) -> Reaping:
    """The landlord is the first of the pod's namespace."""
    door.create_pod(door.config(pid=0), netns_path=netns)
    landlord = door.start_pod()
    door.tenant(CONTAINER, ["sleep", "1000000"], landlord, "network", "ipc", "uts", "pid")
    return Reaping(door, landlord)
