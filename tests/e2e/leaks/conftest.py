"""A shim at its own door, and commands that look at its node."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from manor import leaks
from manor.leaks import Found
from manor.sweep import Sweep
from runtime.cgroups.layout import detect_layout
from shim.api import task
from shim.api.codec import encode
from tests.e2e.shim.door import Door, Events, opened, room_in
from tests.harness.bundles import Bundle
from tests.harness.waiting import eventually


class LedgerDoor(Door):
    """Whose shims can be killed, and are forgotten then by the containerd that they never had."""

    def __init__(self, world: Door, directory: Path) -> None:
        self.directory = directory
        self.run_dir, self.program = world.run_dir, world.program
        self.cgroup_parent = f"mnr-{secrets.token_hex(4)}"
        self.address = ""
        self.environ = {**world.environ, "TTRPC_ADDRESS": str(directory / "events")}
        directory.mkdir()
        self.events = Events(str(directory / "events"))

    def kill_shim(self) -> int:
        """SIGKILL; its pid."""
        pid = self.shim_pid()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not alive(pid))
        return pid

    def cut_short(self, bundle: Bundle) -> None:
        """Begin to create the container c1, and kill the shim while a hook of its runs."""
        there = self.directory / "there"
        script = f"touch {there}; exec sleep 60"
        bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
        bundle.write()
        self.start("c1")
        request = task.CreateTaskRequest(id="c1", bundle=str(bundle.path))
        self.client.begin(task.SERVICE_V2, "Create", encode(request))
        eventually(there.exists)
        self.kill_shim()

    def look(self) -> Found:
        """What `manor leaks` finds, twice and at once."""
        return leaks.look(str(self.run_dir), 0)

    def collect(self) -> Found:
        """What `manor leaks --gc` leaves of what it has found."""
        return leaks.collect(str(self.run_dir), self.look())

    def pod_directory(self) -> Path:
        """Of the one pod."""
        (found,) = (self.run_dir / "pods").iterdir()
        return found


def alive(pid: int) -> bool:
    """Whether it runs: one that has ended counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kinds(found: Found) -> list[str]:
    """What was found, by kind."""
    return sorted(each.kind for each in found.leaks)


@pytest.fixture(scope="session")
def world() -> Iterator[Door]:
    """What the nodes of these tests have in common: a warden takes seconds, a shim of its does not.

    On a machine that is busy the first one may come too late, and leave a socket, which is a leak.
    """
    with opened() as made:
        eventually(lambda: _has_warden(made))
        yield made


def _has_warden(door: Door) -> bool:
    command = [str(door.program), "-info"]
    subprocess.run(command, env=door.environ, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    Sweep(str(door.run_dir), detect_layout()).wardens()
    return any(door.run_dir.glob("warden-*.lock"))


@pytest.fixture
def door(world: Door) -> Iterator[LedgerDoor]:
    """A node without pods; a test starts their shims."""
    made = LedgerDoor(world, room_in(world))
    try:
        yield made
    finally:
        made.close()
        for left in (made.run_dir / "pods").glob("*"):
            shutil.rmtree(left, ignore_errors=True)  # the warden may be about it, too


@pytest.fixture
def containerd(door: LedgerDoor) -> Iterator[None]:
    """Somebody listens where the shim was told that its containerd does: it lives, and has not come for it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(door.directory / "grpc"))
        listener.listen(64)
        yield
