"""A shim that is attacked at its socket while somebody else is served, and what it wrote into its log."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shim.api import task
from tests.e2e.shim.door import Door, opened
from tests.e2e.ttrpc.abuse import LIMIT_S, Bystander, Growth
from tests.harness import measured
from tests.harness.waiting import eventually

CONTAINER = "c1"


class ShimLog:
    """The fifo that containerd reads a shim's log from."""

    def __init__(self, path: str) -> None:
        self.lines: list[str] = []
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._keeper = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.set_blocking(self._reader, True)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with os.fdopen(self._reader, encoding="utf-8") as file:
            self.lines.extend(file)

    def bugs(self) -> list[str]:
        """What nobody meant to raise."""
        return [line for line in self.lines if 'msg="unexpected' in line]

    def close(self) -> None:
        """No more is wanted."""
        os.close(self._keeper)
        self._thread.join(LIMIT_S)


class Attacked:
    """A door whose shim has a running container and a log."""

    def __init__(self, door: Door, log: ShimLog) -> None:
        self.door = door
        self.log = log
        self.address = door.address
        self.pid = door.shim_pid()

    @contextmanager
    def attack(self, name: str, peak_mb: float, rest_mb: float) -> Iterator[dict[str, object]]:
        """Inside, the shim is attacked. Others are answered, and its memory is bounded: at its peak, and after.

        What is put into the dictionary is told with what was measured.
        """
        growth = Growth(self.pid)
        told: dict[str, object] = {}
        with Bystander(self.address, CONTAINER) as bystander:
            yield told
        peak = growth.peak_kb()
        deadline = time.monotonic() + LIMIT_S
        while (rest := growth.now_kb()) > rest_mb * 1024 and time.monotonic() < deadline:
            time.sleep(0.1)
        measured.note(
            f"ttrpc {name}",
            **told,
            peak_growth_kb=peak,
            lasting_growth_kb=rest,
            others_answered=bystander.answers,
            others_waited_at_most_s=round(bystander.longest_s, 3),
        )
        assert bystander.failure is None
        assert bystander.answers > 0
        assert peak <= peak_mb * 1024
        assert rest <= rest_mb * 1024
        assert self.log.bugs() == []


@pytest.fixture(scope="module")
def shim() -> Iterator[Attacked]:
    """One shim for all attacks: what one of them leaves the next would find."""
    with opened() as door:
        door.bundle(CONTAINER, ["sleep", "1000000"])
        log = ShimLog(str(door.directory / "bundles" / CONTAINER / "log"))
        try:
            door.start(CONTAINER)
            door.create(CONTAINER)
            door.ask("Start", task.StartRequest(CONTAINER))
            # What a shim opens when it is needed for the first time.
            door.exec(CONTAINER, "first", ["true"])
            door.wait(CONTAINER, "first")
            door.delete(CONTAINER, "first")
            eventually(lambda: "exit first" in door.events.topics(), LIMIT_S)
            yield Attacked(door, log)
            door.end(CONTAINER)
            assert (door.cgroups(), door.mounts(), door.zombies()) == ([], [], [])
        finally:
            log.close()


@pytest.fixture
def attacked(shim: Attacked) -> Iterator[Attacked]:
    """The shim; afterwards it has not one descriptor more, and nothing in it was not meant to be raised."""
    before = shim.door.shim_fds()
    yield shim
    eventually(lambda: shim.door.shim_fds() <= before, LIMIT_S)
    assert shim.log.bugs() == []


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """How many connections this process may have: as many as root is given."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 16_000), max(hard, 16_000)))
    yield 16_000
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
