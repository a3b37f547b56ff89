"""Both sides of a process's pipes and fifos: containerd's, and its own."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import time
import tty
from collections.abc import Iterator
from pathlib import Path

from shim.loop import Loop
from shim.stdio import PipeIo, Streams
from tests.unit.shim.loops import settle


def fifo(directory: Path, name: str) -> str:
    path = directory / name
    os.mkfifo(path)
    return str(path)


class Client:
    """containerd's side: reads the output fifos, writes the input."""

    def __init__(self, directory: Path, *, stdin: bool = False) -> None:
        self.out_path, self.err_path = fifo(directory, "out"), fifo(directory, "err")
        self.out = os.open(self.out_path, os.O_RDONLY | os.O_NONBLOCK)
        self.err = os.open(self.err_path, os.O_RDONLY | os.O_NONBLOCK)
        self.in_path = fifo(directory, "in") if stdin else ""
        self.streams = Streams(self.in_path, self.out_path, self.err_path)

    def open_stdin(self) -> int:
        return os.open(self.in_path, os.O_WRONLY | os.O_NONBLOCK)

    def close(self) -> None:
        for fd in (self.out, self.err):
            os.close(fd)


class Child:
    """The process's side: its own copies of what it was given, as after a fork."""

    def __init__(self, io: PipeIo) -> None:
        self.stdin, self.stdout, self.stderr = (os.dup(fd) if fd >= 0 else -1 for fd in io.child_fds())

    def close(self) -> None:
        for fd in (self.stdin, self.stdout, self.stderr):
            if fd >= 0:
                os.close(fd)


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """What blocks in a system call fails instead of the whole run."""

    def interrupt(_number: int, _frame: object) -> None:
        raise AssertionError("it blocked")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fill(loop: Loop, fd: int) -> bytearray:
    """Write until nothing more is taken, by the reader of what is passed on either; what was written."""
    os.set_blocking(fd, False)
    sent, quiet = bytearray(), 0
    while quiet < 3:
        try:
            block = os.urandom(4096)
            sent += block[: os.write(fd, block)]
            quiet = 0
        except BlockingIOError:
            settle(loop, 0.02)
            quiet += 1
    return sent


def read_now(fd: int) -> bytes | None:
    """What is there; b"" at the end, None for nothing yet."""
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return None


def is_at_end(fd: int) -> bool:
    return read_now(fd) == b""


def turns_in(loop: Loop, seconds: float) -> int:
    """How often the loop wakes up; twenty times a second by itself."""
    turns = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        wake = loop.call_later(0.05, lambda: None)
        loop.turn()
        wake.cancel()
        turns += 1
    return turns


class Device:
    """A terminal that output goes to as to any device; `reader` is what it shows."""

    def __init__(self) -> None:
        self.reader, self._end = pty.openpty()
        tty.setraw(self._end)
        os.set_blocking(self.reader, False)
        self.path = os.ttyname(self._end)

    def close(self) -> None:
        os.close(self.reader)
        os.close(self._end)
