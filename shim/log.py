"""Lines for whoever runs the node, through the `log` fifo that containerd keeps open in the bundle.

A line is rare and the fifo may be gone or full at any time, so it is opened for each line, never waited
for, and what it does not take is dropped. The form is logrus', which is what containerd's own log has.
"""

from __future__ import annotations

import os
import time

from runtime.errors import describe

DEBUG = "debug"
INFO = "info"
WARNING = "warning"
ERROR = "error"

_MAX_LINE = 4096  # PIPE_BUF: up to here a write to a fifo is whole or not at all


class Log:
    """`path` is the fifo, "" for none; debug lines are written only if `debugging`."""

    __slots__ = ("_debugging", "_name", "_path")

    def __init__(self, path: str, name: str, debugging: bool = False) -> None:
        self._path = path
        self._name = name
        self._debugging = debugging

    def write(self, level: str, message: str) -> None:
        """One line of `message`."""
        if level != DEBUG or self._debugging:
            self._write(level, message)

    def bug(self, error: BaseException) -> None:
        """An exception that nobody meant to raise, with the lines it passed."""
        places: list[str] = []
        trace = error.__traceback__
        while trace is not None and len(places) < 16:
            code = trace.tb_frame.f_code
            places.append(f"{code.co_qualname}:{trace.tb_lineno}")
            trace = trace.tb_next
        self._write(ERROR, f"unexpected {describe(error)} (at {' > '.join(places)})")

    def _write(self, level: str, message: str) -> None:
        if not self._path:
            return
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"
        quoted = message.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        line = f'time="{when}" level={level} msg="{quoted}" runtime={self._name}'.encode(errors="replace")
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return  # nobody listens
        try:
            os.write(fd, line[: _MAX_LINE - 1] + b"\n")
        except OSError:
            pass  # full, or the reader left: a line is not worth waiting for
        finally:
            os.close(fd)
