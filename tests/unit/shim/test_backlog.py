"""The queue on disk: order, bounds, and what happens when the disk has no room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import backlog
from shim.backlog import Backlog


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Backlog]:
    made = Backlog(str(tmp_path))
    yield made
    made.close()


def drain(waiting: Backlog) -> list[bytes]:
    found: list[bytes] = []
    while waiting.count:
        found += waiting.take()
    return found


def test_events_come_back_in_order_and_the_file_goes_with_the_last(tmp_path: Path, waiting: Backlog) -> None:
    events = [str(number).encode() * (number % 50) for number in range(20_000)]
    assert all(waiting.append(event) for event in events)
    assert len(waiting.take()) < len(events)
    waiting.append(b"late")
    found = drain(waiting)
    assert found == [*events, b"late"][-len(found) :]
    assert os.listdir(tmp_path) == []


def test_an_event_that_is_larger_than_what_is_read_at_once_is_whole(waiting: Backlog) -> None:
    events = [b"a", b"b" * (3 * backlog._READ_BYTES), b"c"]
    for event in events:
        waiting.append(event)
    assert drain(waiting) == events


def test_it_is_used_again_after_it_was_empty(waiting: Backlog) -> None:
    for _ in range(2):
        waiting.append(b"event")
        assert drain(waiting) == [b"event"]


def test_it_takes_no_more_than_its_limit(waiting: Backlog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MAX_BYTES", 100)
    taken = [waiting.append(b"x" * 16) for _ in range(10)]
    assert taken == [True] * 5 + [False] * 5
    assert len(drain(waiting)) == 5


def test_a_full_disk_leaves_the_others_whole(waiting: Backlog, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    waiting.append(b"first")
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:3], at))
    assert not waiting.append(b"second")
    monkeypatch.setattr(os, "pwrite", real)
    waiting.append(b"third")
    assert drain(waiting) == [b"first", b"third"]


def test_what_a_full_disk_has_cut_off_is_not_taken_for_events(
    waiting: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record that comes next is shorter, and leaves some of it standing."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:-1], at))
    assert not waiting.append(bytes(100))
    monkeypatch.setattr(os, "pwrite", real)
    waiting.append(b"event")
    assert waiting.take() == [b"event"]
    assert waiting.count == 0


def test_without_a_directory_it_takes_nothing() -> None:
    assert not Backlog("").append(b"event")
    assert not Backlog("/nowhere").append(b"event")


def test_a_file_that_somebody_has_cut_is_an_error(tmp_path: Path, waiting: Backlog) -> None:
    waiting.append(b"event")
    os.truncate(tmp_path / backlog.FILE, 3)
    with pytest.raises(OSError, match="damaged"):
        waiting.take()


def test_closing_it_takes_the_file_away(tmp_path: Path, waiting: Backlog) -> None:
    waiting.append(b"event")
    waiting.close()
    assert (os.listdir(tmp_path), waiting.count, waiting.take()) == ([], 0, [])
