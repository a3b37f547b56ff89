"""Output to devices, and what of it still reaches its reader when the process has ended."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from shim import flow, stdio
from shim.loop import Loop
from shim.stdio import PipeIo, Streams, open_pipes
from tests.unit.shim.loops import drive, settle, turn_until
from tests.unit.shim.stdio_peer import (
    Child,
    Client,
    Device,
    fill,
    interrupted_after,
    is_at_end,
    read_now,
)

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


def test_output_to_a_device_is_written_there(loop: Loop) -> None:
    io = drive(loop, open_pipes(loop, Streams(stdout="/dev/null")))
    child = Child(io)
    io.attach(None)
    os.write(child.stdout, bytes(10_000))
    child.close()
    turn_until(loop, lambda: io.drained.done)


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
