"""Running a command: its end is seen at once, and what it leaves running is not waited for."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.harness.commands import ended, in_files


def test_its_code_its_input_and_what_it_wrote() -> None:
    words = ["sh", "-c", "cat; echo no >&2; exit 3"]
    assert in_files(words, b"given") == (3, "given", "no\n")
    assert in_files(words) == (3, "", "no\n")


def test_one_that_takes_too_long_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        in_files(["sleep", "1000"], limit_s=0.05)


def test_what_it_leaves_running_keeps_nobody_waiting() -> None:
    code, out, _err = in_files(["sh", "-c", "sleep 1000 & echo $!"], limit_s=60)
    subprocess.run(["kill", out.strip()], check=True)
    assert code == 0


def test_the_end_is_seen_without_looking_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", None)
    running = subprocess.Popen(["sh", "-c", "sleep 0.1; exit 4"])
    assert [ended(running), ended(running)] == [4, 4]
