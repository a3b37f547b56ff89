"""Streams of a process with a terminal: real ptys and fifos, with this test as client and as process."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.linux.fds import OwnedFd
from shim import console
from shim.console import ConsoleIo, open_console
from shim.loop import Loop
from shim.stdio import Streams
from tests.unit.shim.loops import drive, settle, turn_until

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


class Terminal:
    """A terminal, the client's fifos, and the io under test between them. `slave` is the process's side."""

    def __init__(self, loop: Loop, directory: Path) -> None:
        self.streams = Streams(str(directory / "in"), str(directory / "out"), "", terminal=True)
        os.mkfifo(self.streams.stdin)
        os.mkfifo(self.streams.stdout)
        self.out = os.open(self.streams.stdout, os.O_RDONLY | os.O_NONBLOCK)
        self.io: ConsoleIo = drive(loop, open_console(loop, self.streams))
        self.into = os.open(self.streams.stdin, os.O_WRONLY | os.O_NONBLOCK)
        master, self.slave = pty.openpty()
        tty.setraw(self.slave)
        os.set_blocking(self.slave, False)
        self.io.attach(OwnedFd(master))

    def read_out(self) -> bytes | None:
        try:
            return os.read(self.out, 1 << 20)
        except BlockingIOError:
            return None

    def end_of_process(self) -> None:
        os.close(self.slave)
        self.slave = -1

    def close(self) -> None:
        self.io.close()
        for fd in (self.out, self.into, self.slave):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def terminal(loop: Loop, tmp_path: Path, no_descriptor_is_left: None) -> Iterator[Terminal]:
    made = Terminal(loop, tmp_path)
    yield made
    made.close()


def test_what_is_typed_reaches_the_process_and_its_output_the_client(loop: Loop, terminal: Terminal) -> None:
    os.write(terminal.into, b"typed")
    settle(loop)
    assert os.read(terminal.slave, 100) == b"typed"
    os.write(terminal.slave, b"shown")
    settle(loop)
    assert terminal.read_out() == b"shown"


def test_output_is_complete_before_the_end_is_seen(loop: Loop, terminal: Terminal) -> None:
    os.set_blocking(terminal.slave, True)
    sent = os.urandom(3000)
    os.write(terminal.slave, sent)
    terminal.end_of_process()
    terminal.io.process_ended()
    turn_until(loop, lambda: terminal.io.drained.done)
    assert terminal.read_out() == sent
    assert terminal.read_out() == b""


def test_a_slow_reader_stops_the_process_and_loses_nothing(loop: Loop, terminal: Terminal) -> None:
    sent = bytearray()
    block = os.urandom(1000)
    quiet = 0
    while quiet < 4:
        try:
            sent += block[: os.write(terminal.slave, block)]
            quiet = 0
        except BlockingIOError:
            settle(loop, 0.02)
            quiet += 1
    assert len(sent) < 200_000
    terminal.end_of_process()
    received = bytearray()
    while len(received) < len(sent):
        received += terminal.read_out() or b""
        settle(loop, 0.001)
    turn_until(loop, lambda: terminal.io.drained.done)
    assert received == sent


def test_a_process_that_does_not_read_stops_the_client_and_loses_nothing(
    loop: Loop, terminal: Terminal
) -> None:
    sent = bytearray()
    block = os.urandom(1000)
    quiet = 0
    while quiet < 4:
        try:
            sent += block[: os.write(terminal.into, block)]
            quiet = 0
        except BlockingIOError:
            settle(loop, 0.02)
            quiet += 1
    assert len(sent) < 200_000
    received = bytearray()
    while len(received) < len(sent):
        try:
            received += os.read(terminal.slave, 1 << 16)
        except BlockingIOError:
            settle(loop, 0.001)
    assert received == sent


def test_a_size_set_before_the_terminal_exists_is_not_forgotten(loop: Loop, tmp_path: Path) -> None:
    path = str(tmp_path / "out")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    io = drive(loop, open_console(loop, Streams(stdout=path, terminal=True)))
    io.resize(120, 40)
    master, slave = pty.openpty()
    io.attach(OwnedFd(master))
    assert struct.unpack("HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)))[:2] == (40, 120)
    io.resize(1 << 20, 24)
    assert struct.unpack("HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)))[:2] == (24, 0xFFFF)
    os.close(slave)
    io.close()
    os.close(reader)


def test_a_client_that_leaves_for_good_hangs_the_terminal_up(
    loop: Loop, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "HANG_UP_AFTER_S", 0.05)
    os.write(terminal.into, b"last words")
    terminal.io.close_stdin()
    os.close(terminal.into)
    terminal.into = -1
    settle(loop, 0.02)
    assert os.read(terminal.slave, 100) == b"last words"
    os.write(terminal.slave, b"answer")
    settle(loop, 0.2)
    assert os.read(terminal.slave, 100) == b""
    assert terminal.read_out() == b"answer"
    assert terminal.read_out() == b""


def test_a_client_that_is_restarted_does_not(
    loop: Loop, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "HANG_UP_AFTER_S", 0.01)
    os.close(terminal.into)
    settle(loop)
    terminal.into = os.open(terminal.streams.stdin, os.O_WRONLY | os.O_NONBLOCK)
    os.write(terminal.into, b"back")
    settle(loop)
    assert os.read(terminal.slave, 100) == b"back"


def test_a_terminal_that_something_in_the_background_keeps_open_ends_all_the_same(
    loop: Loop, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "DRAIN_AFTER_EXIT_S", 0.05)
    os.write(terminal.slave, b"said")
    terminal.io.process_ended()
    turn_until(loop, lambda: terminal.io.drained.done)
    assert terminal.read_out() == b"said"
    assert terminal.read_out() == b""


def test_a_slow_reader_gets_what_the_terminal_holds_after_its_process_has_ended(
    loop: Loop, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "DRAIN_AFTER_EXIT_S", 0.05)
    sent = bytearray()
    quiet = 0
    while quiet < 3:  # until terminal and fifo are full
        try:
            block = b"%09d\n" % len(sent)
            sent += block[: os.write(terminal.slave, block)]
            quiet = 0
        except BlockingIOError:
            settle(loop, 0.02)
            quiet += 1
    terminal.io.process_ended()
    settle(loop, 0.2)
    ended_early = terminal.io.drained.done
    assert not ended_early
    received = bytearray()
    while not terminal.io.drained.done:
        received += terminal.read_out() or b""
        settle(loop, 0.002)
    received += terminal.read_out() or b""
    assert received == sent


def test_without_a_client_the_output_is_thrown_away(loop: Loop) -> None:
    io = drive(loop, open_console(loop, Streams(terminal=True)))
    master, slave = pty.openpty()
    io.attach(OwnedFd(master))
    os.set_blocking(slave, False)
    written = 0
    while written < 1_000_000:
        try:
            written += os.write(slave, bytes(4096))
        except BlockingIOError:
            settle(loop, 0.001)
    os.close(slave)
    turn_until(loop, lambda: io.drained.done)
    io.close()
