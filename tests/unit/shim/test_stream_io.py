"""Standard streams over the shim's own door: a real server, with this test as its clients and as the process."""

from __future__ import annotations

import contextlib
import os
import pty
import tty

import pytest

from runtime.linux.fds import OwnedFd
from shim import stdio, stream_io
from shim.console import open_console
from shim.stdio import Streams
from shim.ttrpc.status import RpcError
from tests.unit.shim.loops import drive, settle, turn_until
from tests.unit.shim.stdio_peer import fill
from tests.unit.shim.stream_peer import LIMIT_S, Street, opened

ROOM = 64 * 1024


# --- output ------------------------------------------------------------------------------------------


def test_what_the_process_writes_reaches_the_client_and_then_the_end(street: Street) -> None:
    out, err = street.peer("c1-stdout", ROOM), street.peer("c1-stderr", ROOM)
    io, child = opened(street, stdout="c1-stdout", stderr="c1-stderr")
    os.write(child.stdout, b"to out")
    os.write(child.stderr, b"to err")
    assert out.read_until(6) == b"to out"
    assert err.read_until(6) == b"to err"
    child.close()
    assert (out.read_all(), err.read_all()) == (b"to out", b"to err")
    io.close()


def test_all_is_drained_once_the_client_says_that_it_has_it(street: Street) -> None:
    out = street.peer("out", ROOM)
    io, child = opened(street, stdout="out")
    os.write(child.stdout, b"last words")
    child.close()
    out.read_all()
    settle(street.loop)
    assert not io.drained.done
    assert io.is_awaited()
    out.say_all()
    turn_until(street.loop, lambda: io.drained.done, LIMIT_S)
    assert not io.is_awaited()
    io.close()


def test_a_client_that_says_nothing_of_the_end_is_not_waited_for_long(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_io, "FAREWELL_S", 0.01)
    out = street.peer("out", ROOM)
    io, child = opened(street, stdout="out")
    child.close()
    out.read_all()
    turn_until(street.loop, lambda: io.drained.done, LIMIT_S)
    io.close()


def test_no_more_is_sent_than_there_is_room_for(street: Street) -> None:
    out = street.peer("out", 1000)
    io, child = opened(street, stdout="out")
    os.write(child.stdout, bytes(range(250)) * 8)
    assert len(out.read_until(1000)) == 1000
    settle(street.loop)
    assert len(out.turn().received) == 1000
    out.make_room(10)
    assert len(out.read_until(1010)) == 1010
    out.make_room(ROOM)
    child.close()
    assert out.read_all() == bytes(range(250)) * 8
    io.close()


def test_a_piece_fits_the_buffer_of_a_client_that_counts_no_more(street: Street) -> None:
    out = street.peer("out", 1 << 20)
    io, child = opened(street, stdout="out")
    os.write(child.stdout, bytes(ROOM))
    child.close()
    assert out.read_all() == bytes(ROOM)
    assert out.largest == 32 * 1024
    io.close()


@pytest.mark.parametrize("room", [1 << 30, ROOM])
def test_a_slow_reader_stops_the_writer_and_nothing_is_buffered_or_lost(street: Street, room: int) -> None:
    """However much room the client claims to have: it is the socket that is full."""
    out = street.peer("out", room)
    io, child = opened(street, stdout="out")
    sent = fill(street.loop, child.stdout)
    assert len(sent) < 300_000
    assert out.read_until(len(sent) if room > ROOM else ROOM) == sent[: len(out.received)]
    out.make_room(1 << 20)
    child.close()
    assert out.read_all() == sent
    io.close()


def test_waiting_for_room_takes_no_cpu(street: Street) -> None:
    street.peer("out", ROOM)
    io, child = opened(street, stdout="out")
    fill(street.loop, child.stdout)
    turns = 0
    over = street.loop.call_later(0.2, lambda: None)
    while over.callback is not None:
        street.loop.turn()
        turns += 1
    assert turns < 20
    child.close()
    io.close()


def test_a_client_that_is_lost_comes_back_and_nothing_is_missing_or_doubled(street: Street) -> None:
    out = street.peer("out", ROOM)
    io, child = opened(street, stdout="out")
    os.write(child.stdout, b"before ")
    out.read_until(7)
    out.hang_up()
    settle(street.loop)
    os.write(child.stdout, b"while away ")
    settle(street.loop)
    again = street.peer("out", ROOM)
    assert again.read_until(11) == b"while away "
    os.write(child.stdout, b"and after")
    child.close()
    assert again.read_all() == b"while away and after"
    io.close()


def test_a_piece_that_did_not_leave_as_a_whole_is_sent_again(street: Street) -> None:
    out = street.peer("out")
    io, child = opened(street, stdout="out")
    sent = fill(street.loop, child.stdout)
    out.make_room(1 << 20)
    out.read_until(1)
    settle(street.loop)
    whole = len(out.received)
    out.hang_up()  # with the first part of a message before it, of which the rest is with the shim
    settle(street.loop)
    again = street.peer("out", 10)
    settle(street.loop)
    assert bytes(again.turn().received) == sent[whole : whole + 10]
    again.make_room(1 << 20)
    child.close()
    assert again.read_all() == sent[whole:]
    io.close()


def test_no_more_is_lost_with_a_client_than_the_kernel_held_for_it(street: Street) -> None:
    out = street.peer("out", 1 << 20)
    io, child = opened(street, stdout="out")
    sent = fill(street.loop, child.stdout)
    out.hang_up()
    settle(street.loop)
    again = street.peer("out", 1 << 20)
    child.close()
    rest = again.read_all()
    assert sent.endswith(rest)
    assert len(sent) - len(rest) <= 2 * stream_io.KERNEL_BYTES
    io.close()


def test_a_client_that_returns_after_the_end_gets_what_was_left_and_the_end(street: Street) -> None:
    street.peer("out").hang_up()
    street.peer("out")
    io, child = opened(street, stdout="out")
    os.write(child.stdout, b"last words")
    child.close()
    io.process_ended()
    settle(street.loop)
    assert not io.drained.done
    assert io.pending()
    assert street.peer("out", ROOM).read_all() == b"last words"
    io.close()


def test_another_client_takes_the_place_of_one_that_is_still_there(street: Street) -> None:
    first = street.peer("out", ROOM)
    io, child = opened(street, stdout="out")
    second = street.peer("out", ROOM)
    assert "another client has opened it" in first.wait_for_failure()
    os.write(child.stdout, b"to the second")
    assert second.read_until(13) == b"to the second"
    child.close()
    io.close()


def test_a_client_that_wants_no_more_is_not_waited_for_once_the_process_has_ended(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.01)
    out = street.peer("out")
    io, child = opened(street, stdout="out")
    out.say_all()
    settle(street.loop)
    os.write(child.stdout, b"nobody wants it")
    io.process_ended()
    turn_until(street.loop, lambda: io.drained.done, LIMIT_S)
    child.close()
    io.close()


def test_after_the_end_of_the_process_what_is_there_is_passed_on_and_no_more(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.01)
    out = street.peer("out")
    io, child = opened(street, stdout="out")
    os.write(child.stdout, b"said in time")
    io.process_ended()
    settle(street.loop)
    out.make_room(ROOM)
    assert out.read_all() == b"said in time"  # somebody else has it open still
    child.close()
    io.close()


@pytest.mark.parametrize("slow", [True, False])
def test_what_is_taken_out_of_the_pipe_again_is_not_waited_for(
    street: Street, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.01)
    out = street.peer("out", 0 if slow else ROOM)
    io, child = opened(street, stdout="out")
    (sink,) = io._sinks
    counted = sink.finish

    def finish_and_steal(_sink: stream_io.StreamOutput) -> None:
        os.write(child.stdout, b"mine")
        counted()
        os.read(thief, ROOM)

    monkeypatch.setattr(stream_io.StreamOutput, "finish", finish_and_steal)
    thief = os.open(f"/proc/self/fd/{child.stdout}", os.O_RDONLY | os.O_NONBLOCK)
    io.process_ended()
    settle(street.loop, 0.1)
    if slow:
        out.make_room(ROOM)
    assert out.read_all() == b""
    os.close(thief)
    child.close()
    io.close()


def test_an_event_with_nothing_behind_it_is_not_the_end(street: Street) -> None:
    """Somebody else has read from the pipe between the event and us."""
    out = street.peer("out", ROOM)
    io, child = opened(street, stdout="out")
    (sink,) = io._sinks
    assert isinstance(sink, stream_io.StreamOutput)
    turn_until(street.loop, lambda: street.loop.is_watched(sink._source.fileno()), LIMIT_S)
    sink._on_source(0)
    os.write(child.stdout, b"here")
    assert out.read_until(4) == b"here"
    child.close()
    io.close()


def test_somebody_in_the_background_who_goes_on_writing_is_cut_off(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.01)
    out = street.peer("out")
    io, child = opened(street, stdout="out")
    sent = fill(street.loop, child.stdout)
    io.process_ended()
    settle(street.loop, 0.1)
    out.make_room(1 << 30)

    def read_and_go_on() -> bool:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while True:  # the pipe is never empty
                os.write(child.stdout, bytes(4096))
        return out.turn().ended

    turn_until(street.loop, read_and_go_on, LIMIT_S)
    assert bytes(out.received[: len(sent)]) == sent
    child.close()
    io.close()


def test_a_client_that_has_left_before_there_is_a_process_is_not_waited_for(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.01)
    street.peer("out").say_all()
    settle(street.loop)
    io, child = opened(street, stdout="out")
    os.write(child.stdout, b"nobody wants it")
    io.process_ended()
    turn_until(street.loop, lambda: io.drained.done, LIMIT_S)
    child.close()
    io.close()


def test_a_client_that_hangs_up_on_what_is_left_ends_it(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.01)
    out = street.peer("out")
    io, child = opened(street, stdout="out")
    os.write(child.stdout, b"nobody wants it")
    io.process_ended()
    settle(street.loop, 0.1)
    assert not io.drained.done
    out.say_all()
    turn_until(street.loop, lambda: io.drained.done, LIMIT_S)
    child.close()
    io.close()


def test_closing_while_the_rest_is_on_its_way_stops_it(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "DRAIN_AFTER_EXIT_S", 0.02)
    street.peer("out", 1 << 20)
    io, child = opened(street, stdout="out")
    fill(street.loop, child.stdout)
    io.process_ended()
    street.loop.call_later(0.02, io.close)  # right behind the end of the drain
    settle(street.loop, 0.1)
    assert io.drained.done
    child.close()


def test_a_client_that_returns_when_all_was_said_is_told_the_end(street: Street) -> None:
    out = street.peer("out", ROOM)
    io, child = opened(street, stdout="out")
    os.write(child.stdout, b"all")
    child.close()
    assert out.read_all() == b"all"
    out.hang_up()
    turn_until(street.loop, lambda: io.drained.done, LIMIT_S)
    assert street.peer("out").read_all() == b""
    io.close()


def test_who_takes_the_place_of_a_client_that_does_not_read_gets_the_piece_that_was_on_its_way(
    street: Street,
) -> None:
    first = street.peer("out", 1 << 20)
    io, child = opened(street, stdout="out")
    sent = fill(street.loop, child.stdout)
    second = street.peer("out", 1 << 20)
    child.close()
    rest = second.read_all()
    assert "another client has opened it" in first.wait_for_failure()
    assert sent == bytes(first.received[: len(sent) - len(rest)]) + rest
    io.close()


def test_the_streams_of_one_process_leave_nothing_in_the_way_of_the_next(street: Street) -> None:
    """The next gets descriptors of the same numbers, and may have streams of the same names."""
    for _ in range(3):
        street.peer("of nobody", ROOM).hang_up()
        street.peer("in")
        street.peer("out")
        io, child = opened(street, stdin="in", stdout="out")
        out, into = street.peer("out", ROOM), street.peer("in")
        into.wait_for_room()
        into.write(b"typed")
        os.write(child.stdout, b"said")
        assert out.read_until(4) == b"said"
        assert os.read(child.stdin, 100) == b"typed"
        child.close()
        assert out.read_all() == b"said"
        io.close()
        assert into.read_all() == b""
        for peer in (out, into):
            peer.hang_up()
        settle(street.loop)
        assert (street.exchange._ends, street.exchange._arrivals, street.exchange.early_bytes) == ({}, {}, 0)


def test_closing_tells_a_client_the_end_although_a_grandchild_keeps_it_open(street: Street) -> None:
    out = street.peer("out", ROOM)
    io, child = opened(street, stdout="out")
    io.close()
    assert out.read_all() == b""
    child.close()


def test_there_is_no_log_to_reopen(street: Street) -> None:
    street.peer("out", ROOM)
    io, child = opened(street, stdout="out")
    with pytest.raises(RpcError, match="reopen: stdout streaming_id=out is no log"):
        drive(street.loop, io.reopen())
    child.close()
    io.close()


# --- terminals ---------------------------------------------------------------------------------------


def test_a_terminal_is_typed_on_and_read_over_streams(street: Street) -> None:
    into, out = street.peer("in"), street.peer("out", ROOM)
    streams = Streams(street.uri("in"), street.uri("out"), "", terminal=True)
    io = drive(street.loop, open_console(street.loop, streams, exchange=street.exchange))
    master, slave = pty.openpty()
    tty.setraw(slave)
    io.attach(OwnedFd(master))
    into.wait_for_room()
    into.write(b"typed")
    settle(street.loop)
    assert os.read(slave, 100) == b"typed"
    os.write(slave, b"printed")
    assert out.read_until(7) == b"printed"
    os.close(slave)
    assert out.read_all() == b"printed"
    out.say_all()
    turn_until(street.loop, lambda: io.drained.done, LIMIT_S)
    io.close()


def test_a_terminal_waits_for_its_reader(street: Street) -> None:
    out = street.peer("out")
    streams = Streams("", street.uri("out"), "", terminal=True)
    io = drive(street.loop, open_console(street.loop, streams, exchange=street.exchange))
    master, slave = pty.openpty()
    tty.setraw(slave)
    io.attach(OwnedFd(master))
    sent = fill(street.loop, slave)
    assert len(sent) < 400_000
    out.make_room(1 << 20)
    assert out.read_until(len(sent)) == sent
    os.close(slave)
    out.read_all()
    io.close()
