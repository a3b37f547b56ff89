"""Calls whose handlers have to wait: each driven on the loop and held to its caller's deadline, all of them counted.

One caller's are bounded where it is served (`server`), those of all together here: waits, other calls, and what
they have brought.
"""

from __future__ import annotations

from runtime.record import Record
from shim.tasks import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from shim.api.message import Message
    from shim.loop import Loop, Timer
    from shim.tasks import Task
    from shim.ttrpc.connection import Call

    Handler = Callable[[Any, Call], Message | Generator[Any, Any, Message]]

MAX_WAITS_OF_ALL = 16_384
MAX_CALLS_OF_ALL = 16_384
MAX_CALL_BYTES_OF_ALL = 32 << 20


class Method(Record):
    """What a method takes and who does it. An answer that is a generator is driven on the loop.

    `abandon`: it only waits for something, and is called off when its caller goes away. All others are
    finished, whoever is left to hear of it.
    """

    request: type[Message]
    handler: Handler
    abandon: bool = False


class OpenCalls:
    """How many there are of all callers. `counted` is told each time that this changes."""

    def __init__(self, counted: Callable[[int], None]) -> None:
        self._counted = counted
        self.waits = 0
        self.others = 0
        self.brought_bytes = 0

    def excess(self, waits: bool, large: bool) -> str:
        """What there is too much of for one more, which brings much or not; "" if there is not."""
        number, most = (self.waits, MAX_WAITS_OF_ALL) if waits else (self.others, MAX_CALLS_OF_ALL)
        if number >= most:
            return f"{number} calls of all callers are open already"
        if large and self.brought_bytes > MAX_CALL_BYTES_OF_ALL:
            return f"open calls have brought {self.brought_bytes} bytes already"
        return ""

    def count(self, waits: bool, more: int, size: int) -> None:
        """So many more, or less, which have brought so many bytes each."""
        if waits:
            self.waits += more
        else:
            self.others += more
        self.brought_bytes += more * size
        self._counted(self.waits + self.others)


class OpenCall:
    """A call whose handler has to wait, with the time that the caller gives it. It brought `size` bytes.

    `answer` is told the stream and what the call came to, once.
    """

    __slots__ = ("_all", "_answer", "_call", "_deadline", "_size", "_task", "_timed_out", "waits")

    def __init__(
        self,
        everybodys: OpenCalls,
        call: Call,
        waits: bool,
        size: int,
        answer: Callable[[int, Message | None, Exception | None], None],
    ) -> None:
        self._all = everybodys
        self._call = call
        self._size = size
        self._answer = answer
        self.waits = waits
        self._deadline: Timer | None = None
        self._task: Task | None = None
        self._timed_out = False

    def run(self, loop: Loop, generator: Generator[Any, Any, Message]) -> None:
        """Drive the handler, and hold it to the deadline."""
        self._all.count(self.waits, 1, self._size)
        self._task = spawn(loop, generator, self._finished)
        if self._call.timeout_ns > 0 and not self._task.done:
            self._deadline = loop.call_later(self._call.timeout_ns / 1e9, self._time_is_up)

    def abandon(self) -> None:
        """Nobody waits for the answer any more."""
        if self.waits and self._task is not None:
            self._task.cancel()

    def _time_is_up(self) -> None:
        """Let the handler undo what it did; the caller is told that it took too long, whatever comes of that."""
        self._timed_out = True
        if self._task is not None:
            self._task.cancel(TimeoutError(f"{self._call.method}: the caller's deadline has passed"))

    def _finished(self, message: Message | None, error: Exception | None) -> None:
        self._all.count(self.waits, -1, self._size)
        if self._deadline is not None:
            self._deadline.cancel()
        if self._timed_out and error is not None:
            error = TimeoutError(f"{self._call.method}: deadline exceeded: {error}")
        self._answer(self._call.stream_id, message, error)
