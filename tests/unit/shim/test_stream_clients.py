"""Clients of streams: who comes when, what they say that makes no sense, and what is refused them."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from runtime.errors import InvalidArgument, Unsupported
from runtime.record import replace
from shim import exchange, stream_io
from shim.api.streaming import Data, WindowUpdate
from shim.stdio import Streams, open_pipes
from shim.stream_io import StreamError
from shim.streams import DEAF, Stream
from shim.ttrpc.status import RpcError
from tests.unit.shim.loops import drive, settle
from tests.unit.shim.stream_peer import Peer, Street, opened

ROOM = 64 * 1024


# --- who comes when ----------------------------------------------------------------------------------


def test_a_client_may_come_after_its_process(street: Street) -> None:
    peers = []
    street.loop.call_later(0.02, lambda: peers.append(street.peer("out", ROOM)))
    io, child = opened(street, stdout="out")
    os.write(child.stdout, b"hello")
    assert peers[0].read_until(5) == b"hello"
    child.close()
    io.close()


def test_a_client_that_never_comes_is_an_error_that_names_the_stream(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_io, "CLIENT_TIMEOUT_S", 0.01)
    street.peer("other")
    with pytest.raises(StreamError, match="open stderr streaming_id=err: no client opened it at this shim"):
        opened(street, stdin="other", stderr="err")


def test_a_stream_is_of_one_process(street: Street) -> None:
    out = street.peer("out", ROOM)
    io, child = opened(street, stdout="out")
    with pytest.raises(RpcError, match="stream out: already exists"):
        opened(street, stdout="out")
    os.write(child.stdout, b"untouched")
    assert out.read_until(9) == b"untouched"
    out.hang_up()
    settle(street.loop)
    os.write(child.stdout, b" and found again")
    assert street.peer("out", ROOM).read_until(16) == b" and found again"
    child.close()
    io.close()


def test_of_two_clients_without_a_process_the_later_one_gets_it(street: Street) -> None:
    first, second = street.peer("out", ROOM), street.peer("out", ROOM)
    assert "another client has opened it" in first.wait_for_failure()
    io, child = opened(street, stdout="out")
    os.write(child.stdout, b"hello")
    assert second.read_until(5) == b"hello"
    child.close()
    io.close()


def test_what_a_client_says_before_its_process_is_there_is_not_lost_and_not_endless(street: Street) -> None:
    out = street.peer("out")
    for _ in range(40):
        out.make_room(1)
    assert "no process has it yet" in out.wait_for_failure()


def test_a_client_whose_process_is_not_there_has_little_kept_for_it(street: Street) -> None:
    peer = street.peer("in")
    peer.say(Data(bytes(16 << 10)))
    assert "no process has it yet" in peer.wait_for_failure()
    nameless = Peer(street, "x" * 1025)
    assert "its id is longer than 1024 bytes" in nameless.wait_for_failure()
    nameless.hang_up()


def test_a_client_that_does_not_begin_with_the_name_of_a_stream_is_told_so(street: Street) -> None:
    peer = Peer(street, "", Data(b"x"))
    assert "expected containerd.services.streaming.v1.StreamInit" in peer.wait_for_failure()
    peer.hang_up()
    peer = Peer(street, "")
    assert "it has no id" in peer.wait_for_failure()
    peer.hang_up()


def test_neither_have_all_of_them_together(street: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MOST_EARLY_BYTES_OF_ALL", 10_000)
    peers = [street.peer(f"in{number}") for number in range(4)]
    for peer in peers[:2]:
        peer.say(Data(bytes(3000)))
    settle(street.loop, 0.05)
    peers[2].say(Data(bytes(4000)))
    assert "no process has it yet" in peers[2].wait_for_failure()
    peers[0].hang_up()
    street.peer("in1")  # in the place of the second
    assert "another client has opened it" in peers[1].wait_for_failure()
    settle(street.loop, 0.05)
    for number in range(3):  # what was kept is not counted for ever, whatever has become of it
        client = street.peer(f"out{number}")
        client.say(Data(bytes(4000)))
        settle(street.loop, 0.05)
        street.exchange.claim(f"out{number}", Forgetful())
    peers[3].say(Data(bytes(4000)))
    settle(street.loop, 0.05)
    assert not peers[3].turn().failure


class Forgetful:
    """The side of a process that heeds nothing."""

    def attach(self, stream: Stream) -> None:
        stream.listener = DEAF

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_arguments: None


@pytest.mark.parametrize(
    ("stream", "message", "why"),
    [
        ("out", Data(b"x"), "expected containerd.types.transfer.WindowUpdate"),
        ("out", WindowUpdate(-1), "a window of"),
        ("out", WindowUpdate(0x7FFFFFFF), "a window of"),
        ("in", WindowUpdate(1), "expected containerd.types.transfer.Data"),
    ],
)
def test_a_client_that_says_what_makes_no_sense_is_told_so_and_lost(
    street: Street, stream: str, message: Data | WindowUpdate, why: str
) -> None:
    peers = {"out": street.peer("out", 1), "in": street.peer("in")}
    io, child = opened(street, stdin="in", stdout="out")
    peers[stream].say(message)
    assert why in peers[stream].wait_for_failure()
    again = street.peer("out", ROOM)
    os.write(child.stdout, b"goes on")
    assert again.read_until(7) == b"goes on"
    child.close()
    io.close()


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("ttrpc+vsock://3:1024?streaming_id=x", "streams over ttrpc.vsock are not supported"),
        ("ttrpc+hvsock:///run/s:1024?streaming_id=x", "streams over ttrpc.hvsock are not supported"),
        ("grpc+unix:///run/s?streaming_id=x", "streams over grpc.unix are not supported"),
        ("grpc+vsock://3:1024?streaming_id=x", "streams over grpc.vsock are not supported"),
        ("ttrpc+unix:///run/s", "it has no streaming_id"),
        ("ttrpc+unix:///run/s?streaming_id=", "it has no streaming_id"),
    ],
)
@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_what_cannot_be_served_is_refused_by_the_name_of_its_field(
    street: Street, name: str, uri: str, why: str
) -> None:
    with pytest.raises((Unsupported, InvalidArgument), match=rf"open {name} .*{why}"):
        drive(
            street.loop, open_pipes(street.loop, replace(Streams(), **{name: uri}), exchange=street.exchange)
        )
