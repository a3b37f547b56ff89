"""Bounds of all callers together: who is cut off, in which order, and what is given back."""

from __future__ import annotations

import pytest

from shim import callers
from shim.callers import FREE_BYTES, MANY_CALLS, MUCH_BYTES, Callers


class Someone:
    def __init__(self, crowd: Crowd) -> None:
        self.held = 0
        self.closed = False
        self._crowd = crowd

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self._crowd.callers.leave(self)


class Crowd:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.relieved = 0
        self.callers = Callers(self.told.append, self._relieve)

    def _relieve(self) -> None:
        self.relieved += 1

    def come(self, count: int = 1) -> list[Someone]:
        made = [Someone(self) for _ in range(count)]
        for each in made:
            self.callers.join(each)
        return made


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> Crowd:
    monkeypatch.setattr(callers, "MAX_CALLERS", 3)
    monkeypatch.setattr(callers, "MAX_HELD_BYTES", 10 * FREE_BYTES)
    return Crowd()


def test_the_first_that_said_nothing_makes_room(crowd: Crowd) -> None:
    first, second, third = crowd.come(3)
    crowd.callers.has_called(first)
    assert crowd.callers.has_room()
    assert [each.closed for each in (first, second, third)] == [False, True, False]
    assert len(crowd.told) == 1


def test_nobody_who_has_called_makes_room(crowd: Crowd) -> None:
    everybody = crowd.come(3)
    for each in everybody:
        crowd.callers.has_called(each)
    assert not crowd.callers.has_room()
    assert not any(each.closed for each in everybody)
    everybody[1].close()
    assert crowd.callers.has_room()


def test_who_has_held_much_for_the_longest_time_is_cut_off(crowd: Crowd) -> None:
    old, new, small = crowd.come(3)
    crowd.callers.hold(old, 2 * FREE_BYTES)
    crowd.callers.hold(new, 8 * FREE_BYTES)
    assert not old.closed
    crowd.callers.hold(small, 1)
    assert [each.closed for each in (old, new, small)] == [True, False, False]
    assert crowd.callers.held == 8 * FREE_BYTES + 1
    crowd.callers.hold(new, 11 * FREE_BYTES)
    assert new.closed
    assert crowd.callers.held == 1


def test_who_has_let_go_begins_anew(crowd: Crowd) -> None:
    first, second = crowd.come(2)
    crowd.callers.hold(first, 2 * FREE_BYTES)
    crowd.callers.hold(second, 2 * FREE_BYTES)
    crowd.callers.hold(first, 0)
    crowd.callers.hold(first, 9 * FREE_BYTES)
    assert (first.closed, second.closed) == (False, True)


def test_nobody_is_cut_off_for_little(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "MAX_HELD_BYTES", 1)
    first, second = crowd.come(2)
    crowd.callers.hold(first, FREE_BYTES)
    crowd.callers.hold(second, FREE_BYTES)
    assert not first.closed
    assert not second.closed


def test_memory_is_given_back_once_after_a_high_tide(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "MAX_HELD_BYTES", 4 * MUCH_BYTES)
    (one,) = crowd.come()
    for tide in (1, 2):
        crowd.callers.hold(one, MUCH_BYTES + 1)
        crowd.callers.hold(one, MUCH_BYTES - 1)
        assert crowd.relieved == tide - 1
        crowd.callers.hold(one, 0)
        crowd.callers.hold(one, 1)
        assert crowd.relieved == tide
    for number in (MANY_CALLS + 1, 0, 1):
        crowd.callers.count_calls(number)
    assert crowd.relieved == 3
