"""Streams of a process without a terminal: real fifos and pipes, with this test as client and as process."""

from __future__ import annotations

import errno
import gc
import os
import select
import weakref
from pathlib import Path

import pytest

from runtime.errors import Unsupported
from shim import flow, stdio
from shim.console import open_console
from shim.loop import Loop
from shim.stdio import PipeIo, StdioError, Streams, open_pipes
from tests.unit.shim.loops import drive, settle, turn_until
from tests.unit.shim.stdio_peer import (
    Child,
    Client,
    Device,
    fifo,
    fill,
    is_at_end,
    read_now,
    turns_in,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


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


@pytest.mark.parametrize("terminal", [False, True])
def test_stdin_that_is_no_fifo_is_refused(loop: Loop, tmp_path: Path, terminal: bool) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"text")
    with pytest.raises(StdioError, match=rf"open stdin {path}: not a fifo"):
        drive(loop, (open_console if terminal else open_pipes)(loop, Streams(stdin=str(path))))


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
