"""The event loop: descriptors, timers, signals and fairness, against the real kernel."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from shim.loop import EPOLLIN, EPOLLOUT, STEPS_PER_TURN, Loop
from tests.unit.shim.loops import turn_until


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    left.setblocking(False)
    with left, right:
        yield left, right


def test_a_watched_descriptor_is_reported_when_it_is_readable(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    left, right = pair
    seen: list[int] = []
    loop.watch(left.fileno(), EPOLLIN, seen.append)
    right.send(b"x")
    loop.turn()
    assert seen == [EPOLLIN]


def test_watching_again_changes_what_is_waited_for_and_who_is_told(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    left, _right = pair
    first: list[int] = []
    second: list[int] = []
    loop.watch(left.fileno(), EPOLLIN, first.append)
    loop.watch(left.fileno(), EPOLLOUT, second.append)
    loop.turn()
    assert (first, second) == ([], [EPOLLOUT])


def test_a_number_that_is_closed_and_reused_within_a_turn_gets_no_stale_event(loop: Loop) -> None:
    read_ends: list[int] = []
    stale: list[int] = []

    def reuse(_events: int) -> None:
        """Whichever of the two comes first closes the other and puts an empty pipe in its place."""
        for fd in read_ends:
            loop.unwatch(fd)
        empty, _keep = os.pipe()
        os.dup2(empty, read_ends[0])
        os.dup2(empty, read_ends[1])
        for fd in read_ends:
            loop.watch(fd, EPOLLIN, stale.append)

    for _ in range(2):
        readable, writable = os.pipe()
        os.write(writable, b"x")
        read_ends.append(readable)
        loop.watch(readable, EPOLLIN, reuse)
    loop.turn()
    assert stale == []


def test_timers_are_called_in_the_order_of_their_time(loop: Loop) -> None:
    seen: list[str] = []
    loop.call_later(0.02, lambda: seen.append("late"))
    loop.call_later(0.001, lambda: seen.append("early"))
    loop.call_later(0.02, lambda: seen.append("later"))
    turn_until(loop, lambda: len(seen) == 3)
    assert seen == ["early", "late", "later"]


def test_a_cancelled_timer_is_not_called_even_by_one_that_is_due_with_it(loop: Loop) -> None:
    seen: list[str] = []
    victim = loop.call_later(0.001, lambda: seen.append("victim"))
    killer = loop.call_later(0.0005, victim.cancel)
    time.sleep(0.005)
    loop.turn()
    assert seen == []
    killer.cancel()
    victim.cancel()


def test_cancelled_timers_do_not_pile_up(loop: Loop) -> None:
    for _ in range(10_000):
        loop.call_later(3600, lambda: None).cancel()
    assert len(loop._timers) < 200


def test_a_failing_callback_ends_neither_the_loop_nor_its_neighbours(loop: Loop) -> None:
    failures: list[Exception] = []
    seen: list[str] = []
    loop.on_failure = failures.append

    def fail() -> None:
        raise ValueError("mine")

    loop.call_soon(fail)
    loop.call_soon(seen.append, "neighbour")
    loop.turn()
    assert seen == ["neighbour"]
    assert [str(failure) for failure in failures] == ["mine"]


def test_a_call_that_calls_itself_lets_descriptors_have_their_turn(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    left, right = pair
    seen: list[int] = []
    right.send(b"x")
    loop.watch(left.fileno(), EPOLLIN, seen.append)

    def again() -> None:
        loop.call_soon(again)

    again()
    for _ in range(2):
        loop.turn()
    assert seen


def test_one_turn_does_a_bounded_share_of_what_is_ready(loop: Loop) -> None:
    seen: list[int] = []
    for number in range(10 * STEPS_PER_TURN):
        loop.call_soon(seen.append, number)
    loop.turn()
    assert seen == list(range(STEPS_PER_TURN))


def test_a_signal_wakes_the_loop_and_is_handled_outside_of_its_handler(loop: Loop) -> None:
    seen: list[str] = []
    loop.on_signal(signal.SIGUSR1, lambda: seen.append("came"))
    loop.call_later(0.01, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    turn_until(loop, lambda: bool(seen))
    assert seen == ["came"]


def test_a_flood_of_signals_neither_blocks_nor_loses_the_last(loop: Loop) -> None:
    seen: list[str] = []
    loop.on_signal(signal.SIGUSR1, lambda: seen.append("came"))
    for _ in range(100_000):
        os.kill(os.getpid(), signal.SIGUSR1)
    turn_until(loop, lambda: bool(seen))
    seen.clear()
    os.kill(os.getpid(), signal.SIGUSR1)
    turn_until(loop, lambda: bool(seen))


def test_after_close_signals_have_their_default_again() -> None:
    loop = Loop()
    loop.on_signal(signal.SIGUSR2, lambda: None)
    loop.close()
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


def test_a_timer_of_centuries_stops_nobody(loop: Loop) -> None:
    """A caller's deadline comes as 63 bits of nanoseconds; epoll_wait(2) takes 31 bits of milliseconds."""
    called: list[str] = []
    timer = loop.call_later((2**63 - 1) / 1e9, lambda: called.append("late"))
    left, right = socket.socketpair()
    with left, right:
        loop.watch(left.fileno(), EPOLLIN, lambda _events: called.append("now"))
        right.sendall(b"x")
        loop.turn()
        loop.unwatch(left.fileno())
    timer.cancel()
    assert called == ["now"]
