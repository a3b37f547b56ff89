"""Generators on the loop: how an operation is driven from one wait to the next.

A task resumes its generator when what it waits for has come true, throws TimeoutError in when the time
is over, and ends it early when nobody wants it any more. To the vocabulary of `runtime.waiting` it adds
`Outcome`, for what another part of the shim will know later. Waiting itself is the loop's business.
"""

from __future__ import annotations

from runtime.waiting import Claim, Exit, Readable, Sleep, Writable
from shim.loop import EPOLLIN, EPOLLOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any, TypeVar

    from runtime.waiting import Wait
    from shim.loop import Loop, Timer

    Result = TypeVar("Result")
    # An operation that may also wait for an Outcome: what handlers are made of.
    Steps = Generator["Wait | Outcome", Any, Result]

# A generator may go on at once this often where what it waits for is already there.
STEPS_PER_RUN = 16


class Cancelled(Exception):
    """Thrown into a generator whose result nobody wants any more."""


class Outcome:
    """A value that is not there yet. A generator yields it and is resumed with the value, once it is set."""

    __slots__ = ("_waiters", "done", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self._waiters: list[Callable[[Any], None]] = []

    def set(self, value: Any = None) -> None:
        """The value is here: resume everybody who waits, in the order in which they came. Once only."""
        self.done, self.value = True, value
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter(value)

    def subscribe(self, waiter: Callable[[Any], None]) -> None:
        """Call `waiter` with the value, at once if it is there already."""
        if self.done:
            waiter(self.value)
        else:
            self._waiters.append(waiter)

    def unsubscribe(self, waiter: Callable[[Any], None]) -> None:
        """Forget `waiter`; it need not be there."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)


class _Wake:
    """A resumption that is already queued, and void once its task goes on for another reason."""

    __slots__ = ("_task",)

    def __init__(self, task: Task) -> None:
        self._task: Task | None = task

    def __call__(self, value: Any = None, failure: Exception | None = None) -> None:
        if self._task is not None:
            self._task.resume(value, failure)

    def cancel(self) -> None:
        self._task = None


class Task:
    """One generator on the loop. `finished` is told its result or the exception that ended it, once."""

    __slots__ = ("_finished", "_generator", "_loop", "_release", "_running", "done")

    def __init__(
        self,
        loop: Loop,
        generator: Generator[Any, Any, Any],
        finished: Callable[[Any, Exception | None], None] | None,
    ) -> None:
        self._loop = loop
        self._generator = generator
        self._finished = finished
        self._release: Callable[[], None] | None = None  # calls off what it waits for
        self._running = False
        self.done = False

    def cancel(self, reason: Exception | None = None) -> None:
        """Throw `reason`, or a Cancelled, in where it waits, so that it can clean up and end."""
        if self._running:  # it called off itself, by some detour: let it come to a wait first
            self._loop.call_soon(self.cancel, reason)
        elif not self.done:
            self.resume(None, reason or Cancelled())

    def resume(self, value: Any = None, failure: Exception | None = None) -> None:
        """Go on with `value`, or with `failure` thrown in, until it has to wait again or ends."""
        if self._release is not None:
            release, self._release = self._release, None
            release()
        for _ in range(STEPS_PER_RUN):
            self._running = True
            try:
                wait = self._generator.send(value) if failure is None else self._generator.throw(failure)
            except StopIteration as end:
                self._end(end.value, None)
                return
            except Exception as error:
                self._end(None, error)
                return
            finally:
                self._running = False
                # A failure must not be kept by the frame that its traceback keeps.
                value, failure = None, None
            if isinstance(wait, Claim):
                self._claim(wait.pid)
            elif isinstance(wait, Outcome) and wait.done:
                value = wait.value
            else:
                self._wait_for(wait)
                return
        self._release = _resume_soon(self._loop, self, value)

    def _claim(self, pid: int) -> None:
        if self._loop.reaper is not None:
            self._loop.reaper.claim(pid)

    def _end(self, value: Any, failure: Exception | None) -> None:
        self.done = True
        # Whoever holds this task is held by it no longer: what is over goes at once, and not with a collection.
        finished, self._finished = self._finished, None
        if finished is not None:
            finished(value, failure)
        elif failure is not None and not isinstance(failure, Cancelled):
            self._loop.on_failure(failure)

    def _wait_for(self, wait: Any) -> None:
        try:
            self._release = _WAITS[type(wait)](self._loop, self, wait)
        except Exception as error:
            # The wait itself is impossible (a closed descriptor, say): the generator must hear of it,
            # but not from within its own frame.
            self._release = _resume_soon(self._loop, self, None, error)


def spawn(
    loop: Loop,
    generator: Generator[Any, Any, Result],
    finished: Callable[[Result | None, Exception | None], None] | None = None,
) -> Task:
    """Drive `generator` on `loop`, starting now; what it returns or raises goes to `finished`.

    Without `finished` a failure goes to the loop's `on_failure`, as that of every callback does.
    """
    task = Task(loop, generator, finished)
    task.resume()
    return task


# --- how each kind of wait is begun; every function returns what calls it off ---------------------------


def _resume_soon(loop: Loop, task: Task, value: Any, failure: Exception | None = None) -> Callable[[], None]:
    wake = _Wake(task)
    loop.call_soon(wake, value, failure)
    return wake.cancel


def _wait_for_fd(loop: Loop, task: Task, fd: int, events: int, timeout_s: float | None) -> Callable[[], None]:
    if loop.is_watched(fd):
        raise RuntimeError(f"two waits for file descriptor {fd}")
    try:
        loop.watch(fd, events, lambda _events: task.resume())
    except PermissionError:  # a regular file is always ready
        return _resume_soon(loop, task, None)
    if timeout_s is None:
        return lambda: loop.unwatch(fd)
    text = f"no answer within {timeout_s} s"
    timer = loop.call_later(timeout_s, lambda: task.resume(None, TimeoutError(text)))

    def release() -> None:
        timer.cancel()
        loop.unwatch(fd)

    return release


def _wait_readable(loop: Loop, task: Task, wait: Readable) -> Callable[[], None]:
    return _wait_for_fd(loop, task, wait.fd, EPOLLIN, wait.timeout_s)


def _wait_writable(loop: Loop, task: Task, wait: Writable) -> Callable[[], None]:
    return _wait_for_fd(loop, task, wait.fd, EPOLLOUT, wait.timeout_s)


def _wait_sleep(loop: Loop, task: Task, wait: Sleep) -> Callable[[], None]:
    return loop.call_later(wait.seconds, task.resume).cancel


def _wait_exit(loop: Loop, task: Task, wait: Exit) -> Callable[[], None]:
    if loop.reaper is None:
        raise RuntimeError("nobody reaps children on this loop")
    wake = _Wake(task)
    watch = loop.reaper.watch(wait.pid, lambda status, _when_ns: loop.call_soon(wake, status))
    text = f"process {wait.pid} did not end within {wait.timeout_s} s"
    timer: Timer | None = None
    if wait.timeout_s is not None:
        timer = loop.call_later(wait.timeout_s, lambda: task.resume(None, TimeoutError(text)))

    def release() -> None:
        wake.cancel()
        watch.cancel()
        if timer is not None:
            timer.cancel()

    return release


def _wait_outcome(loop: Loop, task: Task, wait: Outcome) -> Callable[[], None]:
    wake = _Wake(task)

    def wake_soon(value: Any) -> None:
        loop.call_soon(wake, value)  # never from within the frame that sets the value

    def release() -> None:
        wake.cancel()
        wait.unsubscribe(wake_soon)

    wait.subscribe(wake_soon)
    return release


_WAITS: dict[type, Callable[[Loop, Task, Any], Callable[[], None]]] = {
    Readable: _wait_readable,
    Writable: _wait_writable,
    Sleep: _wait_sleep,
    Exit: _wait_exit,
    Outcome: _wait_outcome,
}


def within(loop: Loop, outcome: Outcome, timeout_s: float) -> Steps[bool]:
    """Wait for `outcome`, but no longer than `timeout_s`. True if it came."""
    first = Outcome()
    timer = loop.call_later(timeout_s, lambda: first.set(False))

    def came(_value: Any) -> None:
        if not first.done:
            first.set(True)

    outcome.subscribe(came)
    try:
        answer: bool = yield first
        return answer
    finally:
        timer.cancel()
        outcome.unsubscribe(came)


class Mutex:
    """Lets one generator at a time do something that takes several steps; the others wait for their turn.

    yield from mutex.acquire()
    try: …
    finally: mutex.release()
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: Outcome | None = None

    def acquire(self) -> Steps[None]:
        """Wait until nobody has it, and take it."""
        while self._held is not None:
            yield self._held
        self._held = Outcome()

    def release(self) -> None:
        """Give it back; whoever came first goes on."""
        held, self._held = self._held, None
        if held is not None:
            held.set()
