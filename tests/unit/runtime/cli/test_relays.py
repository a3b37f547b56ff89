"""Copying bytes between descriptors: all of them, in order, without waiting for who does not read."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.cli.relays import Relay, step_all
from runtime.linux.fds import OwnedFd, pipe


def _drive(*relays: Relay) -> None:
    while any(not relay.ended for relay in relays):
        assert step_all(relays, timeout_ms=5000)


def test_everything_arrives_and_the_end_too(tmp_path: Path) -> None:
    source, given = pipe()
    taken, sink = pipe()
    os.write(given.fileno(), b"x" * 30000)
    given.close()
    relay = Relay(source, sink)
    _drive(relay)
    assert os.read(taken.fileno(), 65536) == b"x" * 30000
    assert os.read(taken.fileno(), 1) == b""
    assert source.closed
    assert sink.closed
    taken.close()


def test_a_borrowed_descriptor_is_neither_closed_nor_changed(tmp_path: Path) -> None:
    with open(tmp_path / "in", "w+b") as given, open(tmp_path / "out", "w+b") as out:
        given.write(bytes(200000))
        given.seek(0)
        relay = Relay(given.fileno(), out.fileno())
        _drive(relay)
        assert os.fstat(out.fileno()).st_size == 200000
        assert os.get_blocking(given.fileno())
        assert os.get_blocking(out.fileno())


def test_a_sink_that_nobody_reads_holds_up_its_own_relay_only() -> None:
    full_source, full_given = pipe()
    _unread, full_sink = pipe()
    source, given = pipe()
    taken, sink = pipe()
    with full_given, _unread, taken:
        stuck = Relay(full_source, full_sink.fileno())
        other = Relay(source, sink)
        os.set_blocking(full_given.fileno(), False)
        try:
            while True:
                os.write(full_given.fileno(), bytes(4096))
                step_all((stuck,), timeout_ms=0)
        except BlockingIOError:
            pass
        os.write(given.fileno(), b"other")
        given.close()
        while not other.ended:
            step_all((stuck, other), timeout_ms=1000)
        assert os.read(taken.fileno(), 10) == b"other"
        assert not stuck.ended
        stuck.close()
        full_sink.close()


def test_a_reader_that_goes_ends_the_source() -> None:
    source, given = pipe()
    taken, sink = pipe()
    taken.close()
    os.write(given.fileno(), b"x")
    relay = Relay(source, sink)
    _drive(relay)
    assert source.closed
    given.close()


def test_a_closed_descriptor_ends_the_relay() -> None:
    taken, sink = pipe()
    number = os.dup(sink.fileno())
    os.close(number)
    relay = Relay(number, sink)
    _drive(relay)
    assert os.read(taken.fileno(), 1) == b""
    taken.close()


def test_the_others_are_told() -> None:
    readable, given = pipe()
    with readable, given:
        assert step_all((), (readable.fileno(),), 0) == set()
        os.write(given.fileno(), b"x")
        assert step_all((), (readable.fileno(),), 0) == {readable.fileno()}


def test_an_owned_source_that_has_nothing_yet_is_waited_for() -> None:
    source, given = pipe()
    taken, sink = pipe()
    relay = Relay(source, sink)
    assert not relay.step()
    assert not relay.ended
    relay.close()
    for fd in (given, taken, OwnedFd(-1)):
        fd.close()
