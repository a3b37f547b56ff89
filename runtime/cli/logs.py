"""What the command says when something is wrong, where and how runc's callers look for it.

With `--log FILE` lines go to that file, as text (logfmt) or as JSON, one object a line; containerd and podman
read the last one. Without, they go to standard error. An error that ends the command is also told on standard
error when the log is elsewhere.
"""

from __future__ import annotations

import os
import time

from runtime.errors import ManorError, StageError, describe
from runtime.spec.json import dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cli.arguments import Globals
    from runtime.trace import Marks

ERROR, WARNING, INFO, DEBUG = "error", "warning", "info", "debug"
EXECUTE = "execute"  # the last step of a start

# What logfmt writes without quotes.
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._/@^+")
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Log:
    """Where lines go and how they look. It stays open for the life of the process."""

    __slots__ = ("_fd", "_notes", "debugging", "format")

    def __init__(self) -> None:
        self._fd = 2
        self._notes: list[str] = []
        self.format = "text"
        self.debugging = False

    def note(self, message: str) -> None:
        """A warning from before it was known where warnings go."""
        self._notes.append(message)

    def open(self, settings: Globals) -> None:
        """Go by the global options. OSError with the file's name where it cannot be opened."""
        self.format = settings.log_format
        self.debugging = settings.debug
        if settings.log:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
            self._fd = os.open(settings.log, flags, 0o644)
        for message in self._notes:
            self.write(WARNING, message)

    @property
    def elsewhere(self) -> bool:
        """True where lines do not go to standard error."""
        return self._fd != 2

    def write(self, level: str, message: str) -> None:
        """One line. A log that cannot be written stops nothing."""
        if level == DEBUG and not self.debugging:
            return
        line = _json_line(level, message) if self.format == "json" else _text_line(level, message)
        write_all(self._fd, line)


log = Log()


def warn(message: str) -> None:
    """Log a warning."""
    log.write(WARNING, message)


def debug(message: str) -> None:
    """Log what only `--debug` shows."""
    log.write(DEBUG, message)


def error(message: str) -> None:
    """Log an error that does not end the command."""
    log.write(ERROR, message)


def fatal(failure: BaseException | str, code: int = 1) -> int:
    """Tell the error that ends the command, in the log and on standard error; gives `code` back."""
    message = failure if isinstance(failure, str) else explain(failure)
    log.write(ERROR, message)
    if log.elsewhere:
        write_all(2, f"{message}\n".encode(errors="replace"))
    return code


def fatal_in(what: str, failure: BaseException) -> int:
    """`fatal` for a verb, named by `what`; the program's own failure to run is told by itself, as in runc."""
    if isinstance(failure, StageError) and failure.operation == EXECUTE and not log.elsewhere:
        write_all(2, f"{failure.message}\n".encode(errors="replace"))
        return 1
    return fatal(f"{what} failed: {explain(failure)}")


def explain(failure: BaseException) -> str:
    """One line for a failure: ours as they are, an OSError as "open /x: no such file or directory"."""
    if isinstance(failure, OSError) and not isinstance(failure, ManorError) and failure.errno is not None:
        text = describe(failure)
        head, colon, tail = text.rpartition(": ")
        return f"{head}{colon}{tail[:1].lower()}{tail[1:]}"
    return describe(failure)


def write_all(fd: int, data: bytes) -> None:
    """Write to a log or to standard error; who does not listen any more is no concern of ours."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        pass


def _text_line(level: str, message: str) -> bytes:
    return f"time={_quoted(_now())} level={level} msg={_quoted(message)}\n".encode(errors="replace")


def _json_line(level: str, message: str) -> bytes:
    clean = message.encode(errors="replace").decode()
    return dump({"level": level, "msg": clean, "time": _now()}) + b"\n"


def _now() -> str:
    """RFC 3339 with the local offset, "Z" for none."""
    offset = time.strftime("%z")
    zone = "Z" if offset in ("", "+0000", "-0000") else f"{offset[:3]}:{offset[3:]}"
    return time.strftime("%Y-%m-%dT%H:%M:%S") + zone


def _quoted(text: str) -> str:
    if text and _PLAIN.issuperset(text):
        return text
    made = "".join(
        _ESCAPES.get(each) or (each if each.isprintable() else f"\\u{ord(each):04x}") for each in text
    )
    return f'"{made}"'


def tell(warnings: tuple[str, ...], marks: Marks = ()) -> None:
    """Log the warnings of an operation, and for --debug its steps with the time that each has taken."""
    for warning in warnings:
        warn(warning)
    before = marks[0][1] if marks else 0
    for step, when in marks:
        debug(f"{step}: {(when - before) / 1e6:.2f} ms")
        before = when
