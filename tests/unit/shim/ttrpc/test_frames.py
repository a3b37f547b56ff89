"""Bytes to frames, however they are cut."""

from __future__ import annotations

from random import Random

import pytest

from shim.ttrpc import frames
from shim.ttrpc.frames import (
    DATA,
    MAX_PAYLOAD,
    REQUEST,
    Frame,
    FrameReader,
    OversizedError,
    ProtocolError,
    pack_frame,
)
from tests.wire import tables

SAMPLES = [
    Frame(1, REQUEST, 0, b"hello", 5),
    Frame(0xFFFFFFFF, 0xFF, 0xFF, b"", 0),
    Frame(3, DATA, frames.REMOTE_CLOSED | frames.NO_DATA, b"\0" * 300, 300),
]


def packed(frame: Frame) -> bytes:
    assert frame.payload is not None
    return pack_frame(frame.stream_id, frame.kind, frame.flags, frame.payload)


def test_numbers_are_those_of_the_protocol() -> None:
    known = tables.constants("ttrpc")
    assert known == {
        "header_bytes": str(frames.HEADER_BYTES),
        "max_payload_bytes": str(MAX_PAYLOAD),
        "type_request": str(REQUEST),
        "type_response": str(frames.RESPONSE),
        "type_data": str(DATA),
        "flag_remote_closed": str(frames.REMOTE_CLOSED),
        "flag_remote_open": str(frames.REMOTE_OPEN),
        "flag_no_data": str(frames.NO_DATA),
        "namespace_metadata_key": "containerd-namespace-ttrpc",
    }
    assert frames.HEADER.size == frames.HEADER_BYTES


def test_a_frame_is_ten_bytes_of_header_and_the_payload() -> None:
    assert pack_frame(0x01020304, REQUEST, 5, b"abc") == b"\0\0\0\x03\x01\x02\x03\x04\x01\x05abc"


def test_frames_are_the_same_however_their_bytes_arrive() -> None:
    stream = b"".join(packed(frame) for frame in SAMPLES)
    for step in range(1, len(stream) + 1):
        reader = FrameReader()
        received = [
            frame
            for start in range(0, len(stream), step)
            for frame in reader.receive(stream[start : start + step])
        ]
        assert received == SAMPLES


def test_a_frame_comes_out_as_soon_as_it_is_whole() -> None:
    reader = FrameReader()
    data = packed(SAMPLES[0])
    assert reader.receive(data[:-1]) == []
    assert reader.receive(data[-1:]) == SAMPLES[:1]


def test_the_largest_payload_passes_and_one_byte_more_is_not_sent() -> None:
    largest = bytes(MAX_PAYLOAD)
    assert FrameReader().receive(pack_frame(1, REQUEST, 0, largest)) == [
        Frame(1, REQUEST, 0, largest, MAX_PAYLOAD)
    ]
    with pytest.raises(OversizedError, match="4194305 bytes exceeds 4194304"):
        pack_frame(1, REQUEST, 0, largest + b"x")


@pytest.mark.parametrize("step", [1_000_003, 65_536, MAX_PAYLOAD + 400])
def test_a_payload_that_is_too_large_is_thrown_away_and_the_next_frame_read(step: int) -> None:
    stream = (
        frames.HEADER.pack(MAX_PAYLOAD + 1, 7, REQUEST, 0) + b"x" * (MAX_PAYLOAD + 1) + packed(SAMPLES[0])
    )
    reader = FrameReader()
    received = []
    for start in range(0, len(stream), step):
        received += reader.receive(stream[start : start + step])
        assert len(reader._buffer) <= len(packed(SAMPLES[0]))
    assert received == [Frame(7, REQUEST, 0, None, MAX_PAYLOAD + 1), SAMPLES[0]]


def test_a_length_whose_first_byte_is_not_zero_is_no_ttrpc() -> None:
    with pytest.raises(ProtocolError, match="not ttrpc"):
        FrameReader().receive(b"GET / HTTP/1.1\r\n")
    reader = FrameReader()
    reader.receive(b"\1")
    with pytest.raises(ProtocolError):
        reader.receive(bytes(9))


def test_a_large_frame_in_small_pieces_is_not_copied_for_each() -> None:
    class Counting(bytearray):
        copies = 0

        def __bytes__(self) -> bytes:
            Counting.copies += 1
            return bytes(memoryview(self))

    reader = FrameReader()
    reader._buffer = Counting()
    data = pack_frame(1, DATA, 0, bytes(1_000_000))
    received = [
        frame for start in range(0, len(data), 1000) for frame in reader.receive(data[start : start + 1000])
    ]
    assert [frame.announced for frame in received] == [1_000_000]
    assert Counting.copies == 1


def test_any_bytes_are_frames_or_a_protocol_error() -> None:
    random = Random(11)
    for _ in range(2000):
        reader = FrameReader()
        stream = bytearray()
        for _ in range(random.randrange(5)):
            length = random.choice((0, 1, 5, 100, MAX_PAYLOAD + 3, 0x00FFFFFF, 0xFFFFFFFF))
            stream += frames.HEADER.pack(
                length, random.randrange(4), random.randrange(5), random.randrange(8)
            )
            stream += random.randbytes(random.choice((0, 1, 5, 100)))
        try:
            while stream:
                size = random.randint(1, 40)
                for frame in reader.receive(bytes(stream[:size])):
                    assert frame.payload is None or len(frame.payload) == frame.announced <= MAX_PAYLOAD
                del stream[:size]
        except ProtocolError:
            continue
