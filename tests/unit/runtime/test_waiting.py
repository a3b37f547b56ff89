"""Operations driven with blocking calls: what each kind of wait gives, and time limits."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime.waiting import Claim, Exit, Readable, Sleep, Writable, run

if TYPE_CHECKING:
    from collections.abc import Generator


def child(status: int, delay_s: float = 0) -> int:
    pid = os.fork()
    if not pid:
        time.sleep(delay_s)
        os._exit(status)
    return pid


def test_an_operation_returns_what_its_generator_returns() -> None:
    def operation() -> Generator[Any, Any, str]:
        yield Sleep(0)
        return "done"

    assert run(operation()) == "done"


def test_readable_resumes_when_there_is_something_to_read() -> None:
    reading, writing = os.pipe()

    def operation() -> Generator[Any, Any, bytes]:
        yield Writable(writing)
        os.write(writing, b"x")
        yield Readable(reading, 10)
        return os.read(reading, 1)

    assert run(operation()) == b"x"


def test_a_passed_time_limit_is_thrown_into_the_operation() -> None:
    reading, _writing = os.pipe()

    def operation() -> Generator[Any, Any, str]:
        try:
            yield Readable(reading, 0.01)
        except TimeoutError:
            return "timed out"
        return "resumed"

    assert run(operation()) == "timed out"


def test_exit_resumes_with_the_wait_status_and_reaps() -> None:
    def operation() -> Generator[Any, Any, int]:
        pid = child(7)
        yield Claim(pid)
        status = yield Exit(pid)
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)

    assert run(operation()) == 7


def test_exit_with_a_time_limit_gives_up_on_a_child_that_lives() -> None:
    pid = child(3, delay_s=30)

    def operation() -> Generator[Any, Any, None]:
        yield Exit(pid, timeout_s=0.05)

    with pytest.raises(TimeoutError, match=str(pid)):
        run(operation())
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def test_an_exception_of_the_operation_reaches_the_caller() -> None:
    def operation() -> Generator[Any, Any, None]:
        yield Sleep(0)
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        run(operation())
