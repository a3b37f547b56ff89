"""The terminal that the command was called on, while a container has a terminal of its own behind it.

Ours becomes raw, so that every key goes to the container's, which makes of it what it likes; it is put back
however the container ends. What is copied between the two is `foreground`'s.
"""

from __future__ import annotations

import fcntl
import os
import termios

from runtime.errors import InvalidState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.linux.fds import OwnedFd

_IFLAG, _OFLAG, _CFLAG, _LFLAG, _CC = 0, 1, 2, 3, 6  # termios(3), as the module lays it out


class HostTerminal:
    """Our controlling terminal; `restore` once it is not needed any more."""

    __slots__ = ("_before", "_fd")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[Any] | None = None

    @classmethod
    def find(cls) -> HostTerminal:
        """By standard error, output or input, else by /dev/tty. InvalidState where we have none."""
        for number in (2, 1, 0):
            if os.isatty(number):
                return cls(number)
        try:
            return cls(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise InvalidState(
                f"a terminal is asked for, and we have none: open /dev/tty: {reason}"
            ) from error

    def make_raw(self) -> None:
        """Let every key through as it is (cfmakeraw(3)). OSError, termios.error."""
        self._before = termios.tcgetattr(self._fd)
        raw = termios.tcgetattr(self._fd)
        raw[_IFLAG] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        raw[_OFLAG] &= ~termios.OPOST
        raw[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[_CFLAG] = raw[_CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        raw[_CC][termios.VMIN], raw[_CC][termios.VTIME] = 1, 0
        termios.tcsetattr(self._fd, termios.TCSANOW, raw)

    def restore(self) -> None:
        """Make it what it was before `make_raw`; nothing happens where it is gone."""
        if self._before is None:
            return
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, self._before)
        except termios.error:
            pass
        self._before = None

    def pass_size_to(self, console: int) -> None:
        """Give the container's terminal our size; without one (it was hung up) nothing happens."""
        try:
            size = fcntl.ioctl(self._fd, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(console, termios.TIOCSWINSZ, size)
        except OSError:
            pass


def leave_newlines(console: OwnedFd) -> None:
    """Let the container's terminal write a line feed as it is: ours makes a new line of it, or a program reads it.

    Else it would reach whoever reads our output through a pipe with a carriage return before. termios.error.
    """
    settings = termios.tcgetattr(console.fileno())
    settings[_OFLAG] &= ~termios.ONLCR
    termios.tcsetattr(console.fileno(), termios.TCSANOW, settings)
