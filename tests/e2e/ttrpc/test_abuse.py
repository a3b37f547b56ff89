"""A shim's socket, abused by somebody who may connect to it: memory is bounded, and others are answered meanwhile.

CI does it with fewer connections; `make soak` with `MANOR_CONNECTIONS` of them.
"""

from __future__ import annotations

import ctypes
import os
import resource
import time
from contextlib import ExitStack

import pytest

from shim.api import task
from shim.api.codec import encode
from shim.ttrpc.status import INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED
from tests.e2e.shim.door import Calls
from tests.e2e.ttrpc.abuse import (
    CONNECT,
    DATA,
    HEADER,
    LIMIT_S,
    MAX_PAYLOAD,
    REQUEST,
    RESPONSE,
    Peer,
    crowd,
    frame,
    request,
)
from tests.e2e.ttrpc.conftest import CONTAINER, Attacked
from tests.harness.processes import cpu_seconds
from tests.harness.waiting import eventually

CONNECTIONS = int(os.environ.get("MANOR_CONNECTIONS", "1200"))
SLOW_S = float(os.environ.get("MANOR_SLOW_S", "3"))
SOAK = CONNECTIONS >= 10_000
# Who holds what they can: for a soak more than are let in.
HOLDERS = 600 if SOAK else 100
# How much a shim may grow in the worst of cases, and what of that may stay.
PEAK_MB = 64
REST_MB = 8
WAITS = request("Wait", encode(task.WaitRequest(CONTAINER)))


def test_what_is_wrong_with_one_frame_is_answered_on_its_stream(attacked: Attacked) -> None:
    with attacked.attack("bad ids", PEAK_MB, REST_MB), Peer(attacked.address) as peer:
        assert peer.is_served(101)
        for stream_id in (0, 2, 100, 101, 99, 1, 0x7FFFFFFE, 0xFFFFFFFE):
            peer.send(frame(stream_id, CONNECT))
            assert peer.code() == (stream_id, INVALID_ARGUMENT)
        assert peer.is_served(103)
        # A stream whose id is used again while it is open is over, both times.
        peer.send(frame(105, WAITS) + frame(105, CONNECT))
        assert peer.code() == (105, INVALID_ARGUMENT)
        assert peer.is_served(107)
        peer.send(frame(0xFFFFFFFF, CONNECT))
        assert peer.code() == (0xFFFFFFFF, 0)
        peer.send(frame(109, CONNECT))
        assert peer.code() == (109, INVALID_ARGUMENT)


def test_other_types_and_flags_are_ignored(attacked: Attacked) -> None:
    with attacked.attack("types and flags", PEAK_MB, REST_MB), Peer(attacked.address) as peer:
        for kind in range(256):
            if kind not in (REQUEST, DATA):
                peer.send(frame(1, CONNECT, kind))
        assert peer.is_served(3)
        for flags in range(256):
            stream_id = 5 + 2 * flags
            peer.send(frame(stream_id, CONNECT, REQUEST, flags))
            assert peer.code() == (stream_id, 0)
        for flags in range(256):
            peer.send(frame(1, b"data", DATA, flags))
            assert peer.code() == (1, INVALID_ARGUMENT)
        peer.send(frame(1001, b"", RESPONSE))
        assert peer.is_served(1003)


def test_bad_lengths_cost_nothing(attacked: Attacked) -> None:
    with attacked.attack("bad lengths", PEAK_MB, REST_MB):
        with Peer(attacked.address) as peer:
            serial = 1
            for length in (MAX_PAYLOAD + 1, MAX_PAYLOAD * 2, (16 << 20) - 1):
                peer.send(frame(serial, bytes(length)))
                assert peer.code() == (serial, RESOURCE_EXHAUSTED)
                assert peer.is_served(serial + 2)
                serial += 4
            for padding in (b"", bytes(MAX_PAYLOAD - len(CONNECT))):  # the longest that is allowed
                peer.send(frame(serial, CONNECT + padding, REQUEST))
                answered = peer.code()
                assert answered == (serial, INVALID_ARGUMENT if padding else 0)  # zeros are no field
                serial += 2
        for length in (16 << 20, 1 << 31, 0xFFFFFFFF, 0x47455420):
            with Peer(attacked.address) as peer:
                peer.send(HEADER.pack(length, 1, REQUEST, 0))
                assert peer.has_been_hung_up_on()


def test_half_frames_are_held_within_a_limit(attacked: Attacked) -> None:
    """Each is sent but for its last byte; all together they would be gigabytes."""
    with attacked.attack("half frames", PEAK_MB, REST_MB) as told, crowd(attacked.address, HOLDERS) as peers:
        half = frame(1, bytes(MAX_PAYLOAD - 1), length=MAX_PAYLOAD)
        told["taken"] = sum(peer.send(half) for peer in peers)
        told["bytes_sent"] = len(half) * HOLDERS
        with Peer(attacked.address) as late:
            assert late.is_served(1)
            large = request("Connect", encode(task.ConnectRequest("x" * (MAX_PAYLOAD - 100))))
            assert late.send(frame(3, large))
            assert late.code() == (3, 0)


def test_answers_that_nobody_reads_are_held_within_a_limit(attacked: Attacked) -> None:
    """Each asks for as much as it can; among the answers are those that repeat what was asked for."""
    long_names = [
        request("x" * 1_000_000),
        request("State", encode(task.StateRequest("x" * 1_000_000))),
        request("Connect", service="x" * 1_000_000),
    ]
    with attacked.attack("unread answers", PEAK_MB, REST_MB) as told:
        bursts = [
            b"".join(frame(2 * serial + 1, asked) for serial in range((2 << 20) // len(asked)))
            for asked in (CONNECT, *long_names)
        ]
        with crowd(attacked.address, HOLDERS) as peers:
            told["bytes_sent"] = sum(
                peer.stuff(bursts[number % len(bursts)]) for number, peer in enumerate(peers)
            )
            with Peer(attacked.address) as late:
                assert late.is_served(1)


def test_calls_that_do_not_end_are_held_within_a_limit(attacked: Attacked) -> None:
    """Wait, as often as it is taken, each with as much around it as a frame may have."""
    padding = tuple((f"name-{number}", "x" * 1000) for number in range(100))
    kinds = (
        WAITS,
        request("Wait", encode(task.WaitRequest(CONTAINER)), metadata=padding),
        request("Wait", encode(task.WaitRequest(CONTAINER)) + b"\xfa\x7f\xa0\x8d\x06" + bytes(100_000)),
    )
    with attacked.attack("open calls", PEAK_MB, REST_MB) as told, crowd(attacked.address, 12) as peers:
        refused = 0
        for number, peer in enumerate(peers):
            asked = kinds[number % len(kinds)]
            count = 5000 if len(asked) < 1000 else 400
            for serial in range(count):
                assert peer.send(frame(2 * serial + 1, asked))
            refused += answers_before(peer, 2 * count + 1)
        told["refused"] = refused


def answers_before(peer: Peer, last: int) -> int:
    """Call once more, and read up to the answer; how many came before. All of those must have been refused."""
    peer.send(frame(last, CONNECT))
    count = 0
    while (answered := peer.code()) is not None and answered[0] != last:
        assert answered[1] == RESOURCE_EXHAUSTED
        count += 1
    assert answered == (last, 0)
    return count


def test_a_deadline_in_some_centuries_is_one(attacked: Attacked) -> None:
    with attacked.attack("late deadlines", PEAK_MB, REST_MB), Peer(attacked.address) as peer:
        asked = encode(task.WaitRequest(CONTAINER))
        for serial, timeout_ns in enumerate(((1 << 63) - 1, 1 << 62, 1 << 53)):
            peer.send(frame(4 * serial + 1, request("Wait", asked, timeout_ns=timeout_ns)))
            assert peer.is_served(4 * serial + 3)


def test_who_sends_a_byte_a_second_keeps_nobody_waiting(attacked: Attacked) -> None:
    with attacked.attack("slow writers", PEAK_MB, REST_MB) as told, crowd(attacked.address, 100) as peers:
        whole = frame(1, CONNECT)
        at, end = 0, time.monotonic() + SLOW_S
        while at < len(whole) - 1 and time.monotonic() < end:
            assert all(peer.send(whole[at : at + 1]) for peer in peers)
            at += 1
            time.sleep(1)
        told["bytes_each"] = at
        for peer in peers:
            peer.send(whole[at:])
        assert [peer.code() for peer in peers] == [(1, 0)] * len(peers)


def test_thousands_of_connections_that_say_nothing_keep_nobody_out(
    attacked: Attacked, many_descriptors: int
) -> None:
    assert many_descriptors > CONNECTIONS
    before = len(attacked.log.lines)
    with attacked.attack("connections", PEAK_MB, REST_MB) as told, Peer(attacked.address) as known:
        assert known.is_served(1)
        with ExitStack() as stack:
            for number in range(CONNECTIONS):
                stack.enter_context(Peer(attacked.address))
                if number % 100 == 0:
                    with Peer(attacked.address) as new:
                        assert new.is_served(1)
            assert known.is_served(3)
        told["connections"] = CONNECTIONS
        told["log_lines"] = len(attacked.log.lines) - before
        # It says so once in a while, and not each time: containerd's own log is where that goes.
        assert len(attacked.log.lines) - before < CONNECTIONS / 10


def test_connections_that_have_called_are_kept_and_others_shut_out(
    attacked: Attacked, many_descriptors: int
) -> None:
    """containerd takes the end of a connection for the end of its shim."""
    assert many_descriptors > CONNECTIONS
    with attacked.attack("connections that call", PEAK_MB, REST_MB) as told:
        with crowd(attacked.address, 0) as peers:
            served = 0
            for _ in range(600):  # more than are let in
                peers.append(Peer(attacked.address))
                served += peers[-1].is_served(1)
            told["served"] = served
            assert 0 < served < 600
            assert sum(peer.is_served(3) for peer in peers) == served

        def is_let_in() -> bool:
            with Peer(attacked.address) as late:
                return late.is_served(1)

        eventually(is_let_in, LIMIT_S)


def test_want_of_descriptors_neither_spins_nor_stops_the_accept_for_ever(attacked: Attacked) -> None:
    held = attacked.door.shim_fds()
    limits = resource.prlimit(attacked.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(attacked.pid, resource.RLIMIT_NOFILE, (held + 20, limits[1]))
    try:
        with attacked.attack("no descriptors", PEAK_MB, REST_MB) as told, ExitStack() as stack:
            peers = [stack.enter_context(Peer(attacked.address)) for _ in range(10)]
            assert all(peer.is_served(1) for peer in peers)
            for _ in range(100):
                stack.enter_context(Peer(attacked.address))
            start, used = time.monotonic(), cpu_seconds(attacked.pid)
            time.sleep(2)
            share = (cpu_seconds(attacked.pid) - used) / (time.monotonic() - start)
            told["cpu_share"] = round(share, 3)
            assert share < 0.5
            assert all(peer.is_served(3) for peer in peers)
            with Peer(attacked.address) as late:  # in the place of one that has not said anything
                assert late.is_served(1)
    finally:
        resource.prlimit(attacked.pid, resource.RLIMIT_NOFILE, limits)
    calls = Calls(attacked.address)
    try:
        assert calls.exec(CONTAINER, "after", ["true"]) > 0
        assert calls.wait(CONTAINER, "after") == 0
        calls.delete(CONTAINER, "after")
    finally:
        calls.client.close()


def test_the_hardest_message_to_read_keeps_others_waiting_for_a_moment_only(attacked: Attacked) -> None:
    """As many fields as a frame can hold: known and unknown ones, one within the other, and in groups."""
    count = MAX_PAYLOAD // 2 - 100
    soups = {
        "unknown fields": b"\x78\x01" * count,
        "the same field": b"\x0a\x00" * count,
        "groups": b"\x7b\x7c" * count,
        "long numbers": b"\x78\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01" * (MAX_PAYLOAD // 11 - 100),
    }
    with attacked.attack("field soup", PEAK_MB, REST_MB) as told, Peer(attacked.address) as peer:
        serial = 1
        for name, soup in soups.items():
            for asked in (request("Connect", soup), soup):
                start = time.monotonic()
                peer.send(frame(serial, asked))
                answered = peer.code()
                assert answered is not None
                assert answered[1] in (0, INVALID_ARGUMENT, UNIMPLEMENTED, RESOURCE_EXHAUSTED)
                told[name] = round(time.monotonic() - start, 3)
                serial += 2


@pytest.mark.parametrize(("uid", "gid"), [(65534, 65534), (65534, 0), (0, 65534)])
def test_another_user_or_group_is_refused_whatever_the_files_allow(
    attacked: Attacked, uid: int, gid: int
) -> None:
    libc = ctypes.CDLL(None)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        libc.setfsuid(
            0
        )  # file systems go by this one, so that all doors are open; peers by the effective ids
        stranger = Peer(attacked.address)
    finally:
        os.seteuid(0)
        os.setegid(0)
    with stranger:
        stranger.send(frame(1, CONNECT))
        assert stranger.has_been_hung_up_on()
