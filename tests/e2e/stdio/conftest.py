"""Streams at the shim's own door and through containerd's `ctr`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.api import task
from tests.e2e.shim.door import Door, opened
from tests.harness.waiting import eventually


def writers(door: Door) -> list[int]:
    """The processes that write logs for this world's shims."""
    mark = str(door.directory).encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "comm").read_text() == "manor:[LOG]\n":
                if mark in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        except OSError:
            continue  # it has ended
    return found


@pytest.fixture(scope="module")
def world() -> Iterator[Door]:
    """A world for one shim, with a container `c1` that sleeps, for all tests of a module."""
    with opened() as made:
        made.run("c1", ["sleep", "1000"])
        made.exec("c1", "first", ["true"])  # with the first exit comes what a shim keeps for its exits
        made.wait("c1", "first")
        made.delete("c1", "first")
        eventually(lambda: "exit first" in made.events.topics())  # and the connection that brings events
        yield made


@pytest.fixture
def running(world: Door) -> Iterator[Door]:
    """That world, with nothing in it but `c1` before and after."""
    before = (world.cgroups(), world.mounts(), world.shim_fds())
    yield world
    eventually(lambda: not writers(world), "a writer is left")
    eventually(lambda: not world.zombies(), "a dead child is left")
    eventually(lambda: (world.cgroups(), world.mounts(), world.shim_fds()) == before, "something is left")


def start(door: Door, container_id: str, args: list[str], uri: str, **streams: Any) -> None:
    """A running container whose outputs go to `uri`."""
    bundle = door.bundle(container_id, args)
    bundle.config["process"]["terminal"] = bool(streams.get("terminal"))
    bundle.write()
    if not door.address:
        door.start(container_id)
    door.create(container_id, stdout=uri, **({"stderr": uri} | streams))
    door.ask("Start", task.StartRequest(container_id))
