"""When a shim ends that nobody ends."""

from __future__ import annotations

import itertools
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
    """What it was asked, and what of that is still being done, is what a test says."""

    def __init__(self) -> None:
        self.answered = 0
        self.open_calls = SimpleNamespace(others=0)


class Pod(list[str]):
    """Its containers, and perhaps itself."""

    sandbox: Any = None

    def __init__(self, containers: list[str]) -> None:
        super().__init__(containers)
        self.outcome = Outcome()

    def emptied(self) -> Outcome:
        if self.outcome.done:
            self.outcome = Outcome()
        if not self:
            self.outcome.set()
        return self.outcome

    def empty(self) -> None:
        self.clear()
        self.outcome.set()


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


def test_a_shim_that_nobody_asks_for_anything_ends(loop: Loop) -> None:
    ended = begin(loop, Server(), Pod([]))
    turn_until(loop, lambda: ended)


def test_one_whose_last_container_was_deleted_and_that_nobody_shut_down_ends(loop: Loop) -> None:
    pod = Pod(["c1"])
    ended = begin(loop, Server(), pod)
    settle(loop, 0.1)
    assert not ended
    pod.empty()
    turn_until(loop, lambda: ended)


def test_one_that_holds_a_pod_waits_for_containerd(loop: Loop) -> None:
    pod = Pod([])
    pod.sandbox = SimpleNamespace()
    ended = begin(loop, Server(), pod)
    settle(loop, 0.2)
    assert not ended
    pod.sandbox = None
    turn_until(loop, lambda: ended)


def test_one_that_is_asked_again_and_again_stays(loop: Loop) -> None:
    class Asked(Server):
        calls = itertools.count(1)

        def __getattribute__(self, name: str) -> Any:
            return next(Asked.calls) if name == "answered" else super().__getattribute__(name)

    ended = begin(loop, Asked(), Pod([]))
    settle(loop, 0.2)
    assert not ended
    assert next(Asked.calls) > 2


def test_one_that_is_doing_something_stays(loop: Loop) -> None:
    server = Server()
    server.open_calls.others = 1
    ended = begin(loop, server, Pod([]))
    settle(loop, 0.2)
    assert not ended
    server.open_calls.others = 0
    turn_until(loop, lambda: ended)
