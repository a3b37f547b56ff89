"""Signals to the members of a cgroup, with children of the test in place of a container's processes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator

import pytest

from runtime.cgroups import signals


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen(["sleep", "100"]) for _each in range(3)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def listings(monkeypatch: pytest.MonkeyPatch, *sets: set[int]) -> None:
    """Let the cgroup list these pids one time after the other, and the last for ever."""
    remaining = list(sets)
    monkeypatch.setattr(
        signals,
        "all_processes",
        lambda _directories: remaining.pop(0) if len(remaining) > 1 else remaining[0],
    )


def test_process_that_is_forked_meanwhile_is_signalled_too(
    monkeypatch: pytest.MonkeyPatch, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    first, late, _other = (each.pid for each in sleepers)
    listings(monkeypatch, {first}, {first}, {first, late})
    signals.signal_members(["/cgroup"], signal.SIGTERM)
    assert [each.wait(5) for each in sleepers[:2]] == [-signal.SIGTERM] * 2


def test_process_that_left_before_it_was_held_is_spared(
    monkeypatch: pytest.MonkeyPatch, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    member, stranger, _other = (each.pid for each in sleepers)
    listings(monkeypatch, {member, stranger}, {member})
    signals.signal_members(["/cgroup"], signal.SIGTERM)
    assert sleepers[0].wait(5) == -signal.SIGTERM
    with pytest.raises(subprocess.TimeoutExpired):
        sleepers[1].wait(0.05)


def test_process_that_is_gone_disturbs_nobody(
    monkeypatch: pytest.MonkeyPatch, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    gone, member, _other = (each.pid for each in sleepers)
    sleepers[0].kill()
    sleepers[0].wait()
    listings(monkeypatch, {gone, member})
    signals.signal_members(["/cgroup"], signal.SIGTERM)
    assert sleepers[1].wait(5) == -signal.SIGTERM


def test_each_process_is_signalled_once(
    monkeypatch: pytest.MonkeyPatch, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    sent: list[int] = []
    monkeypatch.setattr(signals, "_send", lambda _handle, signum: sent.append(signum))
    listings(monkeypatch, {each.pid for each in sleepers})
    signals.signal_members(["/cgroup"], signal.SIGTERM)
    assert sent == [signal.SIGTERM] * 3


def test_more_processes_than_descriptors_are_all_signalled(
    monkeypatch: pytest.MonkeyPatch, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    monkeypatch.setattr(signals, "_send", lambda handle, signum: sent.append(handle.fileno()))
    sent: list[int] = []
    listings(monkeypatch, {each.pid for each in sleepers})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    taken = [os.open("/dev/null", os.O_RDONLY) for _each in range(highest)]  # no gap is left below
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1 + signals._SPARE + 2, limits[1]))
    try:
        signals.signal_members(["/cgroup"], signal.SIGTERM)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)
    assert len(sent) == 3


def test_a_crowd_is_held_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    monkeypatch.setattr(signals, "_BATCH", 10)

    def hold(pids: list[int], _handles: object) -> list[int]:
        held.append(len(pids))
        return []

    monkeypatch.setattr(signals, "_hold", hold)
    listings(monkeypatch, set(range(1000, 1025)))
    signals.signal_members(["/cgroup"], signal.SIGTERM)
    assert held == [10, 10, 5]
