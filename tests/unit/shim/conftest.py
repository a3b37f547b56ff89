"""Fixtures of the tests of the shim's parts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.linux.constants import WALL
from shim import container as containers
from shim.loop import Loop
from tests.harness.processes import descriptors
from tests.unit.shim.fake_container import Reaper, Runtime, Shim
from tests.unit.shim.log_io import LIMIT_S, children
from tests.unit.shim.serving import Served
from tests.unit.shim.stream_peer import Street


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop of the test's own."""
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def shim(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shim:
    """A pod whose containers are played."""
    reaper = Reaper(loop)
    runtime = Runtime(reaper)
    for name in ("create_apart", "start", "exec_", "kill", "pause", "resume", "update", "delete"):
        monkeypatch.setattr(containers, name, getattr(runtime, name))
    return Shim(loop, tmp_path, runtime, reaper)


@pytest.fixture
def no_descriptor_is_left() -> Iterator[None]:
    """What the test has opened is closed when it is over."""
    before = descriptors()
    yield
    assert not descriptors() - before


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """No descriptor, and no writer: all of them end by themselves. One that a failed test leaves is killed."""
    before = descriptors()
    yield
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG | WALL)
        except ChildProcessError:
            break
        if time.monotonic() > deadline:
            for child in children():
                os.kill(child, signal.SIGKILL)
            raise AssertionError("a child is left")
        time.sleep(0 if pid else 0.005)
    assert not descriptors() - before


@pytest.fixture
def street(loop: Loop, tmp_path: Path) -> Iterator[Street]:
    """A door with clients of streams, whom no descriptor is left of."""
    before = descriptors()
    made = Street(loop, tmp_path)
    yield made
    made.close()
    assert not descriptors() - before


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A server of its own, on a loop in a thread."""
    made = Served(tmp_path)
    yield made
    made.close()
