"""Streams of a process without a terminal: real fifos and pipes, with this test as client and as process."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pty
import select
import signal
import time
import tty
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import Unsupported
from shim import flow, stdio
from shim.console import open_console
from shim.loop import Loop
from shim.stdio import PipeIo, StdioError, Streams, open_pipes
from tests.harness.processes import descriptors
from tests.unit.shim.loops import drive, settle, turn_until


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = descriptors()
    yield
    assert not descriptors() - before


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


def test_what_the_process_writes_reaches_the_client_and_then_the_end(loop: Loop, tmp_path: Path) -> None:
    client = Client(tmp_path)
    io = drive(loop, open_pipes(loop, client.streams))
    child = Child(io)
    io.attach(None)
    os.write(child.stdout, b"to out")
    os.write(child.stderr, b"to err")
    settle(loop)
    assert (read_now(client.out), read_now(client.err)) == (b"to out", b"to err")
    assert not io.drained.done
    child.close()
    turn_until(loop, lambda: io.drained.done)
    assert is_at_end(client.out)
    assert is_at_end(client.err)
    assert not io.pending()
    client.close()


def test_output_written_before_the_reader_opens_its_end_is_not_lost(loop: Loop, tmp_path: Path) -> None:
    path = fifo(tmp_path, "out")
    opened: list[int] = []
    loop.call_later(0.03, lambda: opened.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK)))
    io = drive(loop, open_pipes(loop, Streams(stdout=path)))
    assert opened, "the fifo was opened before there was a reader"
    child = Child(io)
    io.attach(None)
    os.write(child.stdout, b"early")
    child.close()
    turn_until(loop, lambda: io.drained.done)
    assert read_now(opened[0]) == b"early"
    os.close(opened[0])


def test_a_reader_that_never_comes_is_an_error_that_names_the_stream(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "READER_TIMEOUT_S", 0.01)
    path = fifo(tmp_path, "out")
    with pytest.raises(StdioError, match=rf"open stdout {path}: no reader came"):
        drive(loop, open_pipes(loop, Streams(stdout=path)))


def test_a_path_that_is_not_there_is_an_error_and_nothing_stays_open(loop: Loop, tmp_path: Path) -> None:
    client = Client(tmp_path, stdin=True)
    streams = Streams(client.in_path, client.out_path, str(tmp_path / "nowhere"))
    with pytest.raises(StdioError, match="open stderr .*nowhere: No such file"):
        drive(loop, open_pipes(loop, streams))
    client.close()


def test_a_kind_of_stream_that_nobody_knows_is_refused(loop: Loop) -> None:
    with pytest.raises(Unsupported, match="streams of kind nothing are not supported"):
        drive(loop, open_pipes(loop, Streams(stdout="nothing:///bin/logger")))


def test_a_slow_reader_stops_the_writer_and_nothing_is_buffered_or_lost(loop: Loop, tmp_path: Path) -> None:
    client = Client(tmp_path)
    io = drive(loop, open_pipes(loop, client.streams))
    child = Child(io)
    io.attach(None)
    sent = fill(loop, child.stdout)
    assert len(sent) < 300_000
    received = bytearray()
    child_open = True
    while not (received == sent and not child_open):
        data = read_now(client.out)
        received += data or b""
        settle(loop, 0.001)
        if child_open and len(received) > 50_000:
            os.write(child.stdout, b"last")
            sent += b"last"
            child.close()
            child_open = False
    turn_until(loop, lambda: io.drained.done)
    assert received == sent
    client.close()


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


def test_waiting_for_room_or_for_output_takes_no_cpu(loop: Loop, tmp_path: Path) -> None:
    client = Client(tmp_path)
    io = drive(loop, open_pipes(loop, client.streams))
    child = Child(io)
    io.attach(None)
    os.set_blocking(child.stdout, False)
    quiet = 0
    while quiet < 3:
        try:
            os.write(child.stdout, bytes(4096))
        except BlockingIOError:
            settle(loop, 0.02)
            quiet += 1
    assert turns_in(loop, 0.2) < 20
    while read_now(client.out):
        settle(loop, 0.002)
    assert turns_in(loop, 0.2) < 20
    child.close()
    io.close()
    client.close()


def test_the_reader_may_go_and_come_back(loop: Loop, tmp_path: Path) -> None:
    client = Client(tmp_path)
    io = drive(loop, open_pipes(loop, client.streams))
    child = Child(io)
    io.attach(None)
    client.close()
    os.write(child.stdout, b"while away")
    settle(loop)
    again = os.open(client.out_path, os.O_RDONLY | os.O_NONBLOCK)
    assert read_now(again) == b"while away"
    os.write(child.stdout, b" and after")
    settle(loop)
    assert read_now(again) == b" and after"
    child.close()
    turn_until(loop, lambda: io.drained.done)
    assert is_at_end(again)
    os.close(again)


def test_closing_ends_the_stream_although_a_grandchild_keeps_it_open(loop: Loop, tmp_path: Path) -> None:
    client = Client(tmp_path)
    io = drive(loop, open_pipes(loop, client.streams))
    child = Child(io)
    io.attach(None)
    io.process_ended()
    settle(loop)
    assert not is_at_end(client.out)
    io.close()
    assert is_at_end(client.out)
    with pytest.raises(BrokenPipeError):
        os.write(child.stdout, b"too late")
    child.close()
    client.close()


def test_stdin_reaches_the_process_and_ends_only_when_client_and_close_io_say_so(
    loop: Loop, tmp_path: Path
) -> None:
    client = Client(tmp_path, stdin=True)
    io = drive(loop, open_pipes(loop, client.streams))
    child = Child(io)
    io.attach(None)
    os.set_blocking(child.stdin, False)
    writer = client.open_stdin()
    os.write(writer, b"typed")
    settle(loop)
    assert read_now(child.stdin) == b"typed"
    os.close(writer)  # containerd is restarted, say
    settle(loop)
    assert read_now(child.stdin) is None
    writer = client.open_stdin()
    io.close_stdin()
    os.write(writer, b" more")
    os.close(writer)
    settle(loop)
    assert read_now(child.stdin) == b" more"
    assert is_at_end(child.stdin)
    child.close()
    turn_until(loop, lambda: io.drained.done)
    io.close()
    client.close()


def test_a_process_that_closes_its_stdin_is_noticed_by_the_client(loop: Loop, tmp_path: Path) -> None:
    client = Client(tmp_path, stdin=True)
    io = drive(loop, open_pipes(loop, client.streams))
    child = Child(io)
    io.attach(None)
    os.close(child.stdin)
    child.stdin = -1
    writer = client.open_stdin()
    os.write(writer, b"for nobody")
    settle(loop)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"and again")
    os.close(writer)
    child.close()
    io.close()
    client.close()


def test_without_streams_everything_is_drained_at_once(loop: Loop) -> None:
    io = drive(loop, open_pipes(loop, Streams()))
    assert io.child_fds() == (-1, -1, -1)
    io.attach(None)
    assert io.drained.done


def test_two_files_are_two_files(loop: Loop, tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    out.touch()
    io = drive(loop, open_pipes(loop, Streams(stdout=str(out), stderr=f"file://{err}")))
    child = Child(io)
    io.attach(None)
    os.write(child.stdout, b"to out")
    os.write(child.stderr, b"to err")
    child.close()
    turn_until(loop, lambda: io.drained.done)
    assert (out.read_bytes(), err.read_bytes()) == (b"to out", b"to err")


def test_a_log_takes_stderr_as_well_unless_that_goes_elsewhere(loop: Loop, tmp_path: Path) -> None:
    path = fifo(tmp_path, "err")
    log = f"file://{tmp_path}/log"
    assert [numbers for _to, numbers in stdio.plan_outputs(Streams(stdout=log))] == [(1, 2)]
    assert [numbers for _to, numbers in stdio.plan_outputs(Streams(stdout=log, stderr=log))] == [(1, 2)]
    assert [numbers for _to, numbers in stdio.plan_outputs(Streams(stderr=log))] == [(2,)]
    assert [numbers for _to, numbers in stdio.plan_outputs(Streams(stdout=log, stderr=path))] == [(1,), (2,)]


def test_output_to_a_device_is_written_there(loop: Loop) -> None:
    io = drive(loop, open_pipes(loop, Streams(stdout="/dev/null")))
    child = Child(io)
    io.attach(None)
    os.write(child.stdout, bytes(10_000))
    child.close()
    turn_until(loop, lambda: io.drained.done)


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


@pytest.mark.parametrize("left_behind", [False, True])
def test_a_device_that_takes_a_little_at_a_time_gets_all_of_it_in_order(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, left_behind: bool
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.05)
    device = Device()
    io: PipeIo = drive(loop, open_pipes(loop, Streams(stdout=device.path)))
    child = Child(io)
    io.attach(None)
    sent = fill(loop, child.stdout)
    assert len(sent) < 300_000
    if left_behind:
        io.process_ended()
        settle(loop, 0.2)
    else:
        child.close()
    assert io.pending()
    received = bytearray()

    def read_all() -> bool:
        received.extend(read_now(device.reader) or b"")
        return io.drained.done and len(received) >= len(sent)

    turn_until(loop, read_all)
    assert received == sent
    if left_behind:
        child.close()
    device.close()


def test_what_is_taken_out_of_the_pipe_of_a_device_is_not_waited_for(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.05)
    device = Device()
    io = drive(loop, open_pipes(loop, Streams(stdout=device.path)))
    child = Child(io)
    io.attach(None)
    fill(loop, child.stdout)
    io.process_ended()
    settle(loop, 0.2)
    thief = os.open(f"/proc/self/fd/{child.stdout}", os.O_RDONLY | os.O_NONBLOCK)
    while read_now(thief):
        pass
    os.close(thief)
    with interrupted_after(30):
        turn_until(loop, lambda: [read_now(device.reader)] and io.drained.done)
    child.close()
    device.close()


def test_what_is_left_behind_keeps_the_reader_waiting_for_a_while_only(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.05)
    client = Client(tmp_path)
    io = drive(loop, open_pipes(loop, client.streams))
    child = Child(io)  # which somebody in the background keeps
    io.attach(None)
    os.write(child.stdout, b"a last word")
    io.process_ended()
    turn_until(loop, lambda: io.drained.done)
    assert read_now(client.out) == b"a last word"
    assert is_at_end(client.out)
    child.close()
    client.close()


def test_a_slow_reader_gets_all_that_was_written_before_the_end_of_the_drain(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.05)
    client = Client(tmp_path)
    io = drive(loop, open_pipes(loop, client.streams))
    child = Child(io)
    io.attach(None)
    sent = fill(loop, child.stdout)
    io.process_ended()
    settle(loop, 0.2)
    assert not io.drained.done
    received = bytearray()
    while data := read_now(client.out):
        received += data
        settle(loop, 0.002)
    turn_until(loop, lambda: io.drained.done)
    received += read_now(client.out) or b""
    assert received == sent
    with pytest.raises(BrokenPipeError):
        os.write(child.stdout, b"too late")
    child.close()
    client.close()


def test_somebody_in_the_background_who_goes_on_writing_is_cut_off(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.05)
    client = Client(tmp_path)
    io: PipeIo = drive(loop, open_pipes(loop, client.streams))
    child = Child(io)
    io.attach(None)
    sent = fill(loop, child.stdout)
    io.process_ended()
    settle(loop, 0.2)
    received = bytearray()

    def read_and_go_on() -> bool:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while True:
                os.write(child.stdout, bytes(4096))
        with contextlib.suppress(BlockingIOError):
            received.extend(os.read(client.out, 4096))  # so slowly that the pipe is never empty
        return io.drained.done

    turn_until(loop, read_and_go_on)
    received += read_now(client.out) or b""
    assert received[: len(sent)] == sent
    child.close()
    client.close()


@pytest.mark.parametrize("terminal", [False, True])
def test_stdin_that_is_no_fifo_is_refused(loop: Loop, tmp_path: Path, terminal: bool) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"text")
    with pytest.raises(StdioError, match=rf"open stdin {path}: not a fifo"):
        drive(loop, (open_console if terminal else open_pipes)(loop, Streams(stdin=str(path))))


@pytest.mark.parametrize("slow", [True, False])
def test_what_is_taken_out_of_the_pipe_again_is_not_waited_for(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """Whoever is left behind has the pipe's other end, by its name in /proc, and may be quicker than we are."""
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.05)
    client = Client(tmp_path)
    io = drive(loop, open_pipes(loop, client.streams))
    child = Child(io)
    io.attach(None)
    if slow:
        fill(loop, child.stdout)
    thief = os.open(f"/proc/self/fd/{child.stdout}", os.O_RDONLY | os.O_NONBLOCK)
    settle(loop)
    counted = io._flows[0].finish

    def finish_and_steal() -> None:
        if not slow:
            os.write(child.stdout, b"mine")
        counted()
        os.read(thief, 1 << 20)

    monkeypatch.setattr(
        flow.Flow, "finish", lambda each: finish_and_steal() if each is io._flows[0] else None
    )
    io.process_ended()
    settle(loop, 0.1)
    turn_until(loop, lambda: [read_now(client.out)] and io._flows[0].closed)
    os.close(thief)
    io.close()
    child.close()
    client.close()


def test_an_event_with_nothing_behind_it_is_not_the_end(loop: Loop, tmp_path: Path) -> None:
    """Somebody else has read from the pipe between the event and us."""
    client = Client(tmp_path)
    io = drive(loop, open_pipes(loop, client.streams))
    child = Child(io)
    io.attach(None)
    io._flows[0]._on_source(0)
    os.write(child.stdout, b"here")
    settle(loop)
    assert read_now(client.out) == b"here"
    child.close()
    turn_until(loop, lambda: io.drained.done)
    client.close()


def test_closing_while_the_rest_is_on_its_way_stops_it(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.05)
    client = Client(tmp_path)
    io = drive(loop, open_pipes(loop, client.streams))
    child = Child(io)
    io.attach(None)
    fill(loop, child.stdout)
    io.process_ended()
    loop.call_later(0.05, io.close)  # right behind the end of the drain
    settle(loop, 0.2)
    assert io.drained.done
    child.close()
    client.close()


def test_the_streams_of_one_process_leave_nothing_in_the_way_of_the_next(loop: Loop, tmp_path: Path) -> None:
    """The next gets descriptors of the same numbers."""
    client = Client(tmp_path, stdin=True)

    def use() -> None:
        io: PipeIo = drive(loop, open_pipes(loop, client.streams))
        child = Child(io)
        io.attach(None)
        writer = client.open_stdin()
        os.write(writer, b"typed")
        os.write(child.stdout, b"said")
        settle(loop)
        assert (read_now(child.stdin), read_now(client.out)) == (b"typed", b"said")
        child.close()
        turn_until(loop, lambda: io.drained.done)
        io.close()
        os.close(writer)

    for _ in range(3):
        use()
    client.close()


def test_a_terminal_that_is_named_as_stdin_does_not_become_the_shims_own(loop: Loop) -> None:
    """It is refused. But a shim leads its session, and would be hung up with what it has opened to look at it."""
    device = Device()
    pid = os.fork()
    if not pid:
        try:
            os.setsid()
            with pytest.raises(StdioError, match="not a fifo"):
                drive(loop, open_pipes(loop, Streams(stdin=device.path)))
            os.open("/dev/tty", os.O_RDONLY)
        except OSError as error:
            os._exit(0 if error.errno == errno.ENXIO else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    device.close()


def test_a_fifo_uri_is_a_path(loop: Loop, tmp_path: Path) -> None:
    client = Client(tmp_path)
    io = drive(loop, open_pipes(loop, Streams(stdout=f"fifo://{client.out_path}")))
    io.close()
    client.close()


def test_nothing_of_an_io_that_was_never_attached_is_left(loop: Loop, tmp_path: Path) -> None:
    client = Client(tmp_path, stdin=True)
    io = drive(loop, open_pipes(loop, client.streams))
    io.close()
    io.close()
    poll = select.poll()
    poll.register(client.out)
    assert poll.poll(0) == [(client.out, select.POLLHUP)]
    client.close()


def test_streams_that_have_ended_go_at_once_and_not_with_a_collection(loop: Loop, tmp_path: Path) -> None:
    paths = [fifo(tmp_path, name) for name in ("stdin", "stdout", "stderr")]
    readers = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in paths[1:]]
    gc.collect()
    gc.disable()
    try:
        made = [drive(loop, open_pipes(loop, Streams(paths[0], paths[1], paths[2])))]
        made[0].attach(None)
        turn_until(loop, lambda: made[0].drained.done)
        made[0].close()
        gone = weakref.ref(made.pop())
        assert gone() is None
        assert not any(isinstance(each, flow.Flow) for each in gc.get_objects())
    finally:
        gc.enable()
        for reader in readers:
            os.close(reader)
