"""What a shim tells the scribe: one message for each operation that is over, with the times of its steps.

A shim has no tracing library and makes no spans; `shim/scribe.py` does, in a process of its own. Nothing
here ever waits: where nobody listens, or the scribe is behind, a message is dropped and counted.
"""

from __future__ import annotations

import _socket
import os
import time

from runtime.spec.json import dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.trace import Marks

SOCKET = "scribe.sock"  # in the run directory; SEQPACKET, one operation a message
SWITCH = "MANOR_TRACE"  # in the environment of whoever runs us; "off" is the only value that means anything
LONGEST_MESSAGE = 65536
RETRY_S = 1.0  # between looks for a scribe
# The first operations of a container are one trace even if the caller has none of its own; so is all of an exec's life.
CREATE, START = "create", "start"
EXEC, RUN = "exec", "run"
_CONTINUES = {START: CREATE, RUN: EXEC}


class Spans:
    """The way to the scribe. `later` is to call a function when the answer has been sent: the loop's call_soon.

    `dropped` counts the operations that nobody could be told of; the scribe hears the number with the next.
    """

    def __init__(
        self, run_dir: str, later: Callable[[Callable[[], None]], None], enabled: bool = True
    ) -> None:
        self.dropped = 0
        self._run_dir = run_dir
        self._later = later
        self._enabled = enabled
        self._connection: _socket.socket | None = None
        self._next_look = 0.0
        self._waiting: list[tuple[str, str, Marks, dict[str, str]]] = []
        # (operation, container id, exec id): trace of a create until its start, and of an exec until its end.
        self._begun: dict[tuple[str, str, str], str] = {}

    def emit(self, name: str, traceparent: str, marks: Marks, attributes: dict[str, str]) -> None:
        """An operation is over. The first mark is its begin, each other the end of a step, the last one its own.

        `traceparent` is the caller's, as W3C Trace Context writes it, or "". Costs nothing before the answer.
        """
        if not self._enabled:
            return
        self._waiting.append((name, traceparent, marks, attributes))
        if len(self._waiting) == 1:
            self._later(self._flush)

    def close(self) -> None:
        """Send what there is, and no more."""
        self._flush()
        self._hang_up()
        self._enabled = False

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for operation in waiting:
            if not self._send(operation):
                self.dropped += 1

    def _send(self, operation: tuple[str, str, Marks, dict[str, str]]) -> bool:
        name, traceparent, marks, attributes = operation
        process = attributes.get("container.id", ""), attributes.get("exec.id", "")
        trace, parent, sampled = self._context(name, traceparent, process)
        connection = self._connect()
        if connection is None:
            return False
        message = dump([name, trace, parent, sampled, marks, attributes, self.dropped])
        try:
            connection.send(message)
        except BlockingIOError:  # the scribe is behind
            return False
        except OSError:  # it has gone, or the message is larger than a socket takes
            self._hang_up()
            return False
        self.dropped = 0
        return True

    def _context(self, name: str, traceparent: str, process: tuple[str, str]) -> tuple[str, str, bool]:
        """(trace id, id of the parent span or "", whether the caller samples)."""
        if context := parse_traceparent(traceparent):
            return context
        if trace := self._begun.pop((_CONTINUES.get(name, ""), *process), ""):
            return trace, "", True
        trace = os.urandom(16).hex()
        if name in (CREATE, EXEC):
            self._begun[name, *process] = trace
        return trace, "", True

    def _connect(self) -> _socket.socket | None:
        if self._connection is None and (now := time.monotonic()) >= self._next_look:
            self._next_look = now + RETRY_S
            self._connection = connect(self._run_dir)
        return self._connection

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def enabled(environ: Mapping[str, str]) -> bool:
    """Whether the environment has nothing against it."""
    return environ.get(SWITCH) != "off"


def connect(run_dir: str) -> _socket.socket | None:
    """A connection that never waits, or None without a scribe."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    connection.setblocking(False)
    try:
        # By way of a descriptor: the directory's name may be longer than an address holds.
        directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{SOCKET}")
        finally:
            os.close(directory)
    except OSError:
        connection.close()
        return None
    return connection


def parse_traceparent(text: str) -> tuple[str, str, bool] | None:
    """(trace id, parent id, sampled) of a W3C `traceparent` header, or None for anything else.

    00-<32 hex digits>-<16>-<2>; a later version may have more to say at the end.
    """
    version, *fields = text.split("-")
    if len(version) != 2 or version == "ff" or len(fields) < 3 or (version == "00" and len(fields) > 3):
        return None
    trace, parent, flags = fields[:3]
    for field, digits in ((version, 2), (trace, 32), (parent, 16), (flags, 2)):
        if len(field) != digits or field.strip("0123456789abcdef"):
            return None
    if not trace.strip("0") or not parent.strip("0"):
        return None
    return trace, parent, bool(int(flags, 16) & 1)
