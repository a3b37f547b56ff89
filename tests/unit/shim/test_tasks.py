"""Generators on the loop: every kind of wait, time limits, calling off, and where failures go."""

from __future__ import annotations

import gc
import os
import socket
import tempfile
import weakref
from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.waiting import Exit, Readable, Sleep, Writable
from shim import loop as loops
from shim.loop import Loop
from shim.tasks import Cancelled, Mutex, Outcome, spawn, within
from tests.unit.shim.fake_container import Reaper
from tests.unit.shim.loops import drive, turn_until


@pytest.mark.parametrize("limit_s", [5, None])
def test_a_generator_is_resumed_when_its_descriptor_is_readable(loop: Loop, limit_s: float | None) -> None:
    left, right = socket.socketpair()

    def read() -> Generator[Any, Any, bytes]:
        yield Readable(left.fileno(), limit_s)
        return left.recv(10)

    with left, right:
        loop.call_later(0.01, lambda: right.sendall(b"now"))
        assert drive(loop, read()) == b"now"
        assert not loop.is_watched(left.fileno())


def test_a_time_limit_is_thrown_in_and_the_descriptor_is_free_again(loop: Loop) -> None:
    left, right = socket.socketpair()

    def read() -> Generator[Any, Any, str]:
        try:
            yield Readable(left.fileno(), 0.01)
        except TimeoutError as error:
            yield Writable(left.fileno(), 1)
            return str(error)
        return "no limit"

    with left, right:
        assert drive(loop, read()) == "no answer within 0.01 s"


def test_a_time_limit_ends_with_the_wait_that_it_was_for(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(loops, "time", SimpleNamespace(monotonic=lambda: now))
    reaper = Reaper(loop)
    loop.reaper = reaper  # type: ignore[assignment]
    left, right = socket.socketpair()
    seen: list[object] = []

    def run() -> Generator[Any, Any, None]:
        yield Readable(left.fileno(), 10)
        seen.append("readable")
        yield Exit(7, 10)
        seen.append("ended")
        yield Outcome()

    with left, right:
        right.sendall(b"now")
        task = spawn(loop, run(), lambda _value, failure: seen.append(failure))
        loop.turn()
        reaper.end(7)
        loop.turn()
        now = 100.0
        loop.call_soon(lambda: None)
        loop.turn()
        assert seen == ["readable", "ended"]
        task.cancel()


@pytest.mark.parametrize("kind", ["outcome", "exit"])
def test_who_was_told_that_it_took_too_long_is_not_resumed_by_what_has_come_meanwhile(
    loop: Loop, kind: str
) -> None:
    reaper = Reaper(loop)
    loop.reaper = reaper  # type: ignore[assignment]
    first, second = Outcome(), Outcome()
    seen: list[object] = []

    def run() -> Generator[Any, Any, None]:
        try:
            yield first if kind == "outcome" else Exit(7)
        except TimeoutError:
            seen.append("too late")
        seen.append((yield second))

    task = spawn(loop, run())
    first.set("the first")
    reaper.end(7)
    task.cancel(TimeoutError())
    loop.turn()
    assert seen == ["too late"]
    second.set("the second")
    loop.turn()
    assert seen == ["too late", "the second"]


def test_a_regular_file_is_always_ready(loop: Loop) -> None:
    def read(fd: int) -> Generator[Any, Any, bytes]:
        yield Readable(fd, 5)
        return os.read(fd, 10)

    with tempfile.TemporaryFile() as file:
        file.write(b"content")
        file.seek(0)
        assert drive(loop, read(file.fileno())) == b"content"


def test_a_wait_for_a_closed_descriptor_fails_in_the_generator(loop: Loop) -> None:
    readable, writable = os.pipe()
    os.close(readable)
    os.close(writable)

    def read() -> Generator[Any, Any, str]:
        try:
            yield Readable(readable)
        except OSError:
            return "refused"
        return "accepted"

    assert drive(loop, read()) == "refused"


def test_two_waits_for_one_descriptor_are_refused(loop: Loop) -> None:
    left, right = socket.socketpair()

    def wait() -> Generator[Any, Any, None]:
        yield Readable(left.fileno())

    with left, right:
        first = spawn(loop, wait(), lambda _value, _failure: None)
        with pytest.raises(RuntimeError, match="two waits"):
            drive(loop, wait())
        first.cancel()


def test_an_exit_without_a_reaper_is_an_error(loop: Loop) -> None:
    def wait() -> Generator[Any, Any, None]:
        yield Exit(1)

    with pytest.raises(RuntimeError, match="reaps"):
        drive(loop, wait())


def test_an_outcome_resumes_all_who_wait_in_their_order(loop: Loop) -> None:
    outcome = Outcome()
    seen: list[tuple[int, str]] = []

    def wait(number: int) -> Generator[Any, Any, None]:
        seen.append((number, (yield outcome)))

    for number in range(3):
        spawn(loop, wait(number))
    outcome.set("value")
    assert seen == []
    loop.turn()
    assert seen == [(0, "value"), (1, "value"), (2, "value")]


def test_an_outcome_that_is_known_costs_no_turn(loop: Loop) -> None:
    outcome = Outcome()
    outcome.set("value")

    def wait() -> Generator[Any, Any, str]:
        value: str = yield outcome
        return value

    ended: list[str | None] = []
    spawn(loop, wait(), lambda value, _failure: ended.append(value))
    assert ended == ["value"]


def test_a_generator_that_never_has_to_wait_still_gives_way(loop: Loop) -> None:
    outcome = Outcome()
    outcome.set()
    steps = 0

    def run() -> Generator[Any, Any, None]:
        nonlocal steps
        while True:
            steps += 1
            yield outcome

    task = spawn(loop, run(), lambda _value, _failure: None)
    after_spawn = steps
    loop.turn()
    assert after_spawn < steps < 100
    task.cancel()


def test_a_cancelled_generator_can_clean_up_and_is_not_resumed_again(loop: Loop) -> None:
    outcome = Outcome()
    seen: list[str] = []

    def run() -> Generator[Any, Any, None]:
        try:
            yield outcome
            seen.append("resumed")
        finally:
            seen.append("cleaned up")

    ended: list[Exception | None] = []
    task = spawn(loop, run(), lambda _value, failure: ended.append(failure))
    outcome.set()  # queued, but not resumed yet
    task.cancel()
    loop.turn()
    assert seen == ["cleaned up"]
    assert [type(failure) for failure in ended] == [Cancelled]
    task.cancel()


def test_a_task_that_cancels_itself_ends_at_its_next_wait(loop: Loop) -> None:
    seen: list[str] = []

    def run() -> Generator[Any, Any, None]:
        yield Sleep(0.001)
        task.cancel(TimeoutError("late"))
        seen.append("went on")
        yield Sleep(60)

    ended: list[Exception | None] = []
    task = spawn(loop, run(), lambda _value, failure: ended.append(failure))
    turn_until(loop, lambda: ended)
    assert seen == ["went on"]
    assert isinstance(ended[0], TimeoutError)


def test_a_failure_nobody_waits_for_goes_to_the_one_place(loop: Loop) -> None:
    failures: list[Exception] = []
    loop.on_failure = failures.append

    def run() -> Generator[Any, Any, None]:
        yield Sleep(0)
        raise ValueError("mine")

    spawn(loop, run())
    while not failures:
        loop.turn()
    assert str(failures[0]) == "mine"


def test_that_a_task_was_called_off_is_no_failure(loop: Loop) -> None:
    failures: list[Exception] = []
    loop.on_failure = failures.append

    def run() -> Generator[Any, Any, None]:
        yield Outcome()

    task = spawn(loop, run())
    before = task.done
    task.cancel()
    assert (before, task.done, failures) == (False, True, [])


def test_within_says_whether_the_outcome_came_in_time(loop: Loop) -> None:
    late, early = Outcome(), Outcome()
    loop.call_later(0.001, early.set)

    def wait(outcome: Outcome, limit_s: float) -> Generator[Any, Any, bool]:
        return (yield from within(loop, outcome, limit_s))

    assert drive(loop, wait(early, 5)) is True
    assert drive(loop, wait(late, 0.01)) is False
    assert late._waiters == []


def test_a_mutex_lets_one_in_at_a_time_in_the_order_of_asking(loop: Loop) -> None:
    mutex = Mutex()
    seen: list[str] = []

    def work(name: str) -> Generator[Any, Any, None]:
        yield from mutex.acquire()
        try:
            seen.append(f"{name} in")
            yield Sleep(0.001)
            seen.append(f"{name} out")
        finally:
            mutex.release()

    def all_of_them() -> Generator[Any, Any, None]:
        done = Outcome()
        left = 3

        def finished(_value: None, _failure: Exception | None) -> None:
            nonlocal left
            left -= 1
            if not left:
                done.set()

        for name in "abc":
            spawn(loop, work(name), finished)
        yield done

    drive(loop, all_of_them())
    assert seen == ["a in", "a out", "b in", "b out", "c in", "c out"]


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Garbage that nobody collects."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Owner:
    """Who has a task, and is told its end."""

    def __init__(self, loop: Loop, steps: Generator[Any, Any, Any]) -> None:
        self.ends: list[object] = []
        self.task = spawn(loop, steps, self.ended)

    def ended(self, _value: object, failure: Exception | None) -> None:
        self.ends.append(failure)


@pytest.mark.usefixtures("no_collection")
def test_a_task_that_has_ended_is_not_kept_by_whom_it_told(loop: Loop) -> None:
    def steps() -> Generator[Any, Any, None]:
        yield Sleep(0)

    def begun() -> weakref.ref[Owner]:
        owner = Owner(loop, steps())
        return weakref.ref(owner)

    gone = begun()
    turn_until(loop, lambda: gone() is None)


@pytest.mark.usefixtures("no_collection")
def test_a_failure_that_was_thrown_in_is_not_kept_by_where_it_passed(loop: Loop) -> None:
    def steps() -> Generator[Any, Any, None]:
        yield Outcome()

    owner = Owner(loop, steps())
    owner.task.cancel()
    gone = weakref.ref(owner.ends.pop())
    assert gone() is None
