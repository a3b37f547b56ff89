"""When a shim ends that nobody ends."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shim import daemon
from shim.daemon import end_when_left
from shim.loop import Loop
from shim.tasks import Outcome, spawn
from tests.unit.shim.loops import settle, turn_until


class Server:
    """Who is connected is what a test says."""

    def __init__(self, connected: bool) -> None:
        self.connected = connected
        self.outcome = Outcome()

    def deserted(self) -> Outcome:
        if self.outcome.done:
            self.outcome = Outcome()
        if not self.connected:
            self.outcome.set()
        return self.outcome

    def hang_up(self) -> None:
        self.connected = False
        self.outcome.set()


class Pod(list[str]):
    """Its containers, and perhaps itself."""

    sandbox: Any = None


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    monkeypatch.setattr(daemon, "LEFT_S", 0.02)
    made = Loop()
    yield made
    made.close()


def begin(loop: Loop, server: Server, pod: Pod) -> list[str]:
    ended: list[str] = []
    spawn(loop, end_when_left(server, pod, lambda: ended.append("ended")))  # type: ignore[arg-type]
    return ended


def test_a_shim_that_nobody_has_come_to_ends(loop: Loop) -> None:
    ended = begin(loop, Server(connected=False), Pod())
    turn_until(loop, lambda: ended)


def test_one_that_has_been_left_with_nothing_ends(loop: Loop) -> None:
    server = Server(connected=True)
    ended = begin(loop, server, Pod())
    settle(loop, 0.1)
    assert not ended
    server.hang_up()
    turn_until(loop, lambda: ended)


@pytest.mark.parametrize("what", ["a container", "a pod"])
def test_one_that_holds_something_waits_for_containerd(loop: Loop, what: str) -> None:
    pod = Pod(["c1"] if what == "a container" else [])
    pod.sandbox = SimpleNamespace() if what == "a pod" else None
    ended = begin(loop, Server(connected=False), pod)
    settle(loop, 0.2)
    assert not ended
    pod.clear()
    pod.sandbox = None
    turn_until(loop, lambda: ended)


def test_one_that_somebody_has_come_back_to_stays(loop: Loop) -> None:
    server = Server(connected=False)
    ended = begin(loop, server, Pod())
    server.connected = True
    settle(loop, 0.2)
    assert not ended
