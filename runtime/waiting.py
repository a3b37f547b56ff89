"""How an operation says that it must wait, without knowing who waits for it.

Operations are generators. Where something takes time they yield one of the records below and are
resumed when it has come true; a passed time limit is thrown in as TimeoutError. The command line and
the tests drive a generator with `run`, which blocks; a shim drives many from its loop. So no
operation can block a pod: it has no way to.
"""

from __future__ import annotations

import os
import select
import time

from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any, TypeVar

    Result = TypeVar("Result")


class Readable(Record):
    """Until `fd` has something to read or its other end is closed."""

    fd: int
    timeout_s: float | None = None


class Writable(Record):
    """Until `fd` takes a write or its other end is closed."""

    fd: int
    timeout_s: float | None = None


class Claim(Record):
    """Not a wait: `pid` is a child of ours whose exit will be asked for; resumes at once.

    Yielded right after a clone, before the loop can have reaped it: the loop keeps its wait status until
    somebody takes it, however early it ends.
    """

    pid: int


class Exit(Record):
    """Until the claimed child `pid` has ended; resumes with its raw wait status (waitpid(2)) and reaps it."""

    pid: int
    timeout_s: float | None = None


class Sleep(Record):
    """For `seconds`."""

    seconds: float


if TYPE_CHECKING:
    Wait = Readable | Writable | Claim | Exit | Sleep
    Operation = Generator[Wait, Any, Result]


def run(operation: Operation[Result]) -> Result:
    """Drive `operation` to its end with blocking calls and return what it returns."""
    answer: Any = None
    failure: BaseException | None = None
    while True:
        try:
            wait = operation.throw(failure) if failure else operation.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result
        answer, failure = None, None
        try:
            answer = _block_on(wait)
        except TimeoutError as error:
            failure = error


def _block_on(wait: Wait) -> int | None:
    if isinstance(wait, Claim):
        return None  # nobody else reaps here
    if isinstance(wait, Sleep):
        time.sleep(wait.seconds)
        return None
    if isinstance(wait, Exit):
        return _block_on_exit(wait)
    poll = select.poll()
    poll.register(wait.fd, select.POLLIN if isinstance(wait, Readable) else select.POLLOUT)
    if not poll.poll(None if wait.timeout_s is None else wait.timeout_s * 1000):
        raise TimeoutError(f"no answer within {wait.timeout_s} s")
    return None


def _block_on_exit(wait: Exit) -> int:
    if wait.timeout_s is not None:
        _await_end(wait.pid, wait.timeout_s)
    try:
        return os.waitpid(wait.pid, 0x40000000)[1]  # __WALL: a CLONE_PARENT sibling has no exit signal
    except ChildProcessError:
        # A sibling of ours: it is our parent's to reap. That it has ended is all we can know.
        _await_end(wait.pid, None)
        return 0


def _await_end(pid: int, timeout_s: float | None) -> None:
    """Until process `pid` has ended, whoever reaps it."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(None if timeout_s is None else timeout_s * 1000):
            raise TimeoutError(f"process {pid} did not end within {timeout_s} s")
    finally:
        os.close(pidfd)
