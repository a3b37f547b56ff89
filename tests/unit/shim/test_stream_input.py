"""stdin over the shim's own door: a real server, with this test as its client and as the process."""

from __future__ import annotations

import os

import pytest

from tests.unit.shim.loops import settle, turn_until
from tests.unit.shim.stdio_peer import read_now, turns_in
from tests.unit.shim.stream_peer import LIMIT_S, Street, opened

ROOM = 64 * 1024


def test_what_the_client_sends_is_what_the_process_reads_and_then_the_end(street: Street) -> None:
    into = street.peer("in")
    io, child = opened(street, stdin="in")
    into.wait_for_room(8)
    into.write(b"typed")
    settle(street.loop)
    assert os.read(child.stdin, 100) == b"typed"
    into.say_all()
    settle(street.loop)
    assert os.read(child.stdin, 100) == b""
    child.close()
    io.close()


def test_more_than_a_pipe_holds_gets_through_whole(street: Street) -> None:
    into = street.peer("in")
    io, child = opened(street, stdin="in")
    os.set_blocking(child.stdin, False)
    data, sent, got = os.urandom(1 << 20), 0, bytearray()
    while len(got) < len(data):
        if sent < len(data) and into.turn().room_at_shim:
            piece = data[sent : sent + min(into.room_at_shim, 32 * 1024)]
            into.write(piece)
            sent += len(piece)
            if sent == len(data):
                into.say_all()
                into.hang_up()  # at once, and with updates unread, as containerd does
        settle(street.loop, 0.001)
        try:
            got += os.read(child.stdin, 1 << 20)
        except BlockingIOError:
            pass
    assert bytes(got) == data
    settle(street.loop)
    assert os.read(child.stdin, 1) == b""
    child.close()
    io.close()


def test_what_was_sent_before_a_client_hung_up_is_read_although_nothing_can_be_said_to_it(
    street: Street,
) -> None:
    into = street.peer("in")
    io, child = opened(street, stdin="in")
    into.wait_for_room(ROOM)
    data = os.urandom(ROOM)
    into.write(data[: ROOM // 2])
    into.write(data[ROOM // 2 :])
    into.say_all()
    into.hang_up()
    got = bytearray()
    os.set_blocking(child.stdin, False)
    while len(got) < len(data):
        settle(street.loop, 0.001)
        try:
            more = os.read(child.stdin, ROOM)
        except BlockingIOError:
            continue
        assert more, "the input ends too early"
        got += more
    assert bytes(got) == data
    child.close()
    io.close()


def test_a_process_that_does_not_read_stops_the_client(street: Street) -> None:
    into = street.peer("in")
    io, child = opened(street, stdin="in")
    sent, quiet = 0, 0
    while quiet < 5:
        if into.turn().room_at_shim:
            quiet, size = 0, min(into.room_at_shim, 4096)
            into.write(bytes(size))
            sent += size
        else:
            settle(street.loop, 0.01)
            quiet += 1
    assert sent <= 3 * ROOM
    child.close()
    io.close()


def test_a_process_that_begins_to_read_late_gets_all_and_the_loop_is_quiet_then(street: Street) -> None:
    into = street.peer("in")
    io, child = opened(street, stdin="in")
    sent, quiet = bytearray(), 0
    while quiet < 5:
        if size := into.turn().room_at_shim:  # all of it, at once
            quiet, data = 0, os.urandom(size)
            into.write(data)
            sent += data
        else:
            settle(street.loop, 0.01)
            quiet += 1
    os.set_blocking(child.stdin, False)
    got = bytearray()

    def read_on() -> bool:
        got.extend(read_now(child.stdin) or b"")
        return len(got) >= len(sent)

    turn_until(street.loop, read_on, LIMIT_S)
    assert got == sent
    assert turns_in(street.loop, 0.2) < 20
    child.close()
    io.close()


def test_a_client_that_has_said_all_before_there_is_a_process_ends_its_input(street: Street) -> None:
    into = street.peer("in")
    into.say_all()
    settle(street.loop)
    io, child = opened(street, stdin="in")
    os.set_blocking(child.stdin, False)
    turn_until(street.loop, lambda: read_now(child.stdin) == b"", LIMIT_S)
    child.close()
    io.close()


def test_a_client_may_come_again_after_stdin_was_closed(street: Street) -> None:
    into = street.peer("in")
    io, child = opened(street, stdin="in")
    io.close_stdin()
    into.hang_up()
    settle(street.loop)
    again = street.peer("in")
    again.wait_for_room()
    again.write(b"for nobody")
    settle(street.loop)
    assert not again.turn().failure
    assert os.read(child.stdin, 100) == b""
    child.close()
    io.close()


def test_a_client_that_sends_more_than_it_may_is_told_so_and_costs_nothing(street: Street) -> None:
    into = street.peer("in")
    io, child = opened(street, stdin="in")
    into.wait_for_room()
    into.write(bytes(into.room_at_shim + 1))
    assert "where there was room for" in into.wait_for_failure()
    os.set_blocking(child.stdin, False)
    with pytest.raises(BlockingIOError):
        os.read(child.stdin, 1)
    child.close()
    io.close()


def test_a_client_that_is_lost_does_not_end_the_input(street: Street) -> None:
    into = street.peer("in")
    io, child = opened(street, stdin="in")
    os.set_blocking(child.stdin, False)
    into.wait_for_room()
    into.write(b"before ")
    into.hang_up()
    settle(street.loop)
    assert os.read(child.stdin, 100) == b"before "
    with pytest.raises(BlockingIOError):
        os.read(child.stdin, 1)
    again = street.peer("in")
    again.wait_for_room()
    again.write(b"after")
    again.say_all()
    settle(street.loop)
    assert os.read(child.stdin, 100) == b"after"
    assert os.read(child.stdin, 100) == b""
    child.close()
    io.close()


def test_once_stdin_is_closed_the_loss_of_the_client_ends_the_input(street: Street) -> None:
    into = street.peer("in")
    io, child = opened(street, stdin="in")
    into.wait_for_room()
    io.close_stdin()
    into.write(b"still read")
    into.hang_up()
    settle(street.loop)
    assert os.read(child.stdin, 100) == b"still read"
    assert os.read(child.stdin, 100) == b""
    child.close()
    io.close()


@pytest.mark.parametrize("again", [False, True])
def test_a_process_that_reads_no_more_does_not_hold_up_the_client(street: Street, again: bool) -> None:
    """containerd's writer waits for room, and for nothing else: it could not be told to stop."""
    into = street.peer("in")
    io, child = opened(street, stdin="in")
    child.close()
    if again:
        into.hang_up()
        settle(street.loop)
        into = street.peer("in")
    for _ in range(20):
        into.wait_for_room(32 * 1024)
        into.write(bytes(32 * 1024))
    io.close()
