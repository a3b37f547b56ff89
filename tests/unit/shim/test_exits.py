"""The reaper: real children, each test in a process of its own because a reaper takes all children."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from runtime.linux import constants as c
from runtime.linux.process import clone3
from runtime.waiting import Claim, Exit, Sleep
from shim import exits
from shim.exits import Reaper, exit_code
from shim.loop import Loop
from shim.tasks import spawn


def in_a_process(scenario: Callable[[Loop, Reaper], Generator[Any, Any, str]]) -> str:
    """What `scenario`, driven on a loop with a reaper in a forked child, returns; its failure as text."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writable)
        with os.fdopen(readable) as answers:
            answer = answers.read()
        os.waitpid(pid, 0)
        return answer
    try:
        loop = Loop()
        reaper = Reaper(loop)

        def finished(value: str | None, failure: Exception | None) -> None:
            os.write(writable, (repr(failure) if value is None else value).encode())
            os._exit(0)

        spawn(loop, scenario(loop, reaper), finished)
        loop.call_later(10, loop.stop)
        loop.run()
    finally:
        os._exit(1)


def child(status: int, delay_s: float = 0.0) -> int:
    pid = os.fork()
    if not pid:
        time.sleep(delay_s)
        os._exit(status)
    return pid


def let_it_end(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_a_child_is_reaped_and_its_status_told() -> None:
    def scenario(_loop: Loop, _reaper: Reaper) -> Generator[Any, Any, str]:
        status = yield Exit(child(7, 0.01), 5)
        return str(exit_code(status))

    assert in_a_process(scenario) == "7"


def test_a_claimed_child_that_ended_before_it_was_asked_for_is_not_lost() -> None:
    def scenario(_loop: Loop, _reaper: Reaper) -> Generator[Any, Any, str]:
        pid = child(3)
        yield Claim(pid)
        let_it_end(pid)
        yield Sleep(0.02)
        status = yield Exit(pid, 5)
        return str(exit_code(status))

    assert in_a_process(scenario) == "3"


def test_within_a_hold_even_an_unclaimed_exit_is_kept_until_it_is_told() -> None:
    def scenario(_loop: Loop, reaper: Reaper) -> Generator[Any, Any, str]:
        with reaper.hold():
            pid = child(5)
            let_it_end(pid)
            yield Sleep(0.02)
            first = yield Exit(pid, 5)
            try:
                yield Exit(pid, 5)
            except ChildProcessError:
                return f"{exit_code(first)} gone"
        return "still there"

    assert in_a_process(scenario) == "5 gone"


def test_of_exits_that_nobody_claims_the_latest_are_kept_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exits, "MOST_UNCLAIMED", 8)

    def scenario(_loop: Loop, reaper: Reaper) -> Generator[Any, Any, str]:
        told = []
        with reaper.hold():
            ours = child(7)
            yield Claim(ours)
            pids = [child(5) for _ in range(20)]
            for pid in pids:
                let_it_end(pid)
            yield Sleep(0.1)
            yield Claim(pids[-1])
            for pid in (ours, *pids):
                try:
                    told.append(exit_code((yield Exit(pid, 5))))
                except ChildProcessError:
                    pass
        return str(told)

    assert in_a_process(scenario) == str([7] + [5] * 8)


@pytest.mark.parametrize("when", ["before it was asked for", "after it was asked for"])
def test_an_exit_that_was_told_is_forgotten_although_something_else_is_being_started(when: str) -> None:
    """Its pid may be another process's next: that one has not ended."""

    def scenario(_loop: Loop, reaper: Reaper) -> Generator[Any, Any, str]:
        with reaper.hold():
            pid = child(5, 0.0 if when.startswith("before") else 0.05)
            yield Claim(pid)
            if when.startswith("before"):
                let_it_end(pid)
                yield Sleep(0.02)
            yield Exit(pid, 5)
        try:
            yield Exit(pid, 5)
        except ChildProcessError:
            return "forgotten"
        return "told again"

    assert in_a_process(scenario) == "forgotten"


def test_children_that_live_on_neither_stop_the_loop_nor_keep_it_busy() -> None:
    def scenario(_loop: Loop, _reaper: Reaper) -> Generator[Any, Any, str]:
        waitpid, calls = os.waitpid, []

        def counted(pid: int, options: int) -> tuple[int, int]:
            calls.append(pid)
            return waitpid(pid, options)

        long_lived = child(0, 60)
        os.waitpid = counted
        yield Exit(child(3, 0.01), 5)
        yield Sleep(0.1)
        os.kill(long_lived, signal.SIGKILL)
        yield Exit(long_lived, 5)
        return "quiet" if len(calls) < 10 else f"{len(calls)} calls"

    assert in_a_process(scenario) == "quiet"


def test_nothing_is_kept_of_those_that_were_told_called_off_or_not_wanted() -> None:
    """It would be taken for the exit of whoever has the pid next, and a shim lives for months."""

    def scenario(loop: Loop, reaper: Reaper) -> Generator[Any, Any, str]:
        with reaper.hold():
            early, late, unwanted, called_off = (child(5, delay_s) for delay_s in (0.0, 0.05, 0.0, 0.05))
            for pid in (early, late):
                yield Claim(pid)
            for pid in (early, unwanted):
                let_it_end(pid)
            yield Sleep(0.02)
            for pid in (early, late):
                yield Exit(pid, 5)
            reaper.watch(called_off, lambda _status, _when: None).cancel()
            holding = reaper.holding
            left_in_it = list(reaper._unclaimed)
        kept = [*reaper._watches, *reaper._claimed, *reaper._kept, *reaper._unclaimed]
        return str((holding, reaper.holding, unwanted in left_in_it, kept))

    assert in_a_process(scenario) == "(True, False, True, [])"


def test_an_orphan_that_nobody_asked_for_is_reaped_silently() -> None:
    def scenario(_loop: Loop, _reaper: Reaper) -> Generator[Any, Any, str]:
        readable, writable = os.pipe()
        parent = os.fork()
        if not parent:
            if not os.fork():
                os.write(writable, str(os.getpid()).encode())
                time.sleep(0.05)
                os._exit(0)
            os._exit(0)
        orphan = int(os.read(readable, 16))
        yield Exit(parent, 5)
        for _ in range(100):
            if not os.path.exists(f"/proc/{orphan}"):
                return "reaped"
            yield Sleep(0.01)
        return "zombie"

    assert in_a_process(scenario) == "reaped"


def test_a_sibling_made_without_an_exit_signal_is_reaped_too() -> None:
    def scenario(_loop: Loop, _reaper: Reaper) -> Generator[Any, Any, str]:
        readable, writable = os.pipe()
        stage, _pidfd = clone3(0, signal.SIGCHLD)
        if not stage:
            sibling, _pidfd = clone3(c.CLONE_PARENT, 0)
            if not sibling:
                time.sleep(0.05)
                os._exit(9)
            os.write(writable, str(sibling).encode())
            os._exit(0)
        yield Claim(stage)
        sibling = int(os.read(readable, 16))
        yield Claim(sibling)
        yield Exit(stage, 5)
        status = yield Exit(sibling, 5)
        return str(exit_code(status))

    assert in_a_process(scenario) == "9"


def test_a_child_that_signals_nothing_at_its_end_is_taken_with_the_next_that_does() -> None:
    def scenario(_loop: Loop, _reaper: Reaper) -> Generator[Any, Any, str]:
        silent, _pidfd = clone3(0, 0)
        if not silent:
            os._exit(4)
        yield Claim(silent)
        while Path(f"/proc/{silent}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            yield Sleep(0.005)
        yield Exit(child(0), 5)
        status = yield Exit(silent, 5)
        return str(exit_code(status))

    assert in_a_process(scenario) == "4"


def test_everybody_who_watches_a_process_is_told_once() -> None:
    def scenario(_loop: Loop, reaper: Reaper) -> Generator[Any, Any, str]:
        pid = child(1, 0.01)
        seen: list[str] = []
        reaper.watch(pid, lambda status, _when: seen.append(f"first {exit_code(status)}"))
        cancelled = reaper.watch(pid, lambda _status, _when: seen.append("cancelled"))
        cancelled.cancel()
        cancelled.cancel()
        yield Exit(pid, 5)
        return ", ".join(seen)

    assert in_a_process(scenario) == "first 1"


def test_a_time_limit_on_an_exit_leaves_the_child_to_be_reaped_later() -> None:
    def scenario(_loop: Loop, _reaper: Reaper) -> Generator[Any, Any, str]:
        pid = child(0, 0.1)
        yield Claim(pid)
        try:
            yield Exit(pid, 0.01)
        except TimeoutError:
            status = yield Exit(pid, 5)
            return str(status)
        return "no limit"

    assert in_a_process(scenario) == "0"


def test_a_thousand_exits_at_once_are_all_told() -> None:
    def scenario(_loop: Loop, reaper: Reaper) -> Generator[Any, Any, str]:
        seen: list[int] = []
        pids = [child(number % 200) for number in range(300)]
        for pid in pids:
            reaper.watch(pid, lambda status, _when: seen.append(exit_code(status)))
        while len(seen) < len(pids):
            yield Sleep(0.01)
        return str(sorted(seen) == sorted(number % 200 for number in range(300)))

    assert in_a_process(scenario) == "True"


@pytest.mark.parametrize(("status", "code"), [(0, 0), (7 << 8, 7), (9, 137), (15, 143), (0x8B, 139)])
def test_an_exit_code_counts_signals_from_128(status: int, code: int) -> None:
    assert exit_code(status) == code
