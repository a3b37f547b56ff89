"""Our codec against protobuf's own, and against bytes that nobody should send."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any as Any_

import pytest
from google.protobuf.message import DecodeError

from shim.api import (
    bootstrap,
    codec,
    events,
    metrics_v1,
    metrics_v2,
    options,
    runtime_info,
    sandbox,
    task,
    ttrpc,
)
from shim.api.codec import CodecError, decode, encode
from shim.api.message import Message, MessageType, message, messages, string_map
from shim.api.types import Any, Empty, Mount, ProcessInfo, Timestamp
from tests.wire import oracle
from tests.wire.samples import contents, from_protobuf, random_message, to_protobuf

MODULES = (bootstrap, events, metrics_v1, metrics_v2, options, runtime_info, sandbox, task, ttrpc)
CLASSES = sorted(
    {
        found
        for module in MODULES
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, Message) and found is not Message
    },
    key=lambda found: found.NAME,
)
by_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.NAME)

OVERFLOW = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"  # 65 bits


# --- the same as protobuf ----------------------------------------------------------------------------


def assert_same(message: Message) -> None:
    """What we write protobuf reads, and the other way round, with the same contents."""
    kind = type(message)
    theirs = to_protobuf(message)
    written = encode(message)
    assert oracle.message_class(kind.NAME).FromString(written) == theirs
    assert decode(kind, theirs.SerializeToString()) == message
    assert decode(kind, written) == message


@by_class
def test_a_fully_populated_message_is_the_same_for_protobuf(kind: type[Message]) -> None:
    assert_same(random_message(Random(kind.NAME), kind, density=1))


@by_class
def test_an_empty_message_is_no_bytes(kind: type[Message]) -> None:
    assert encode(kind()) == b""
    assert decode(kind, b"") == kind()


@by_class
def test_random_messages_are_the_same_for_protobuf(kind: type[Message]) -> None:
    random = Random(f"2 {kind.NAME}")
    for _ in range(12):
        assert_same(random_message(random, kind, density=random.random()))


@pytest.mark.parametrize("kind", [task.StateResponse, ttrpc.Request, events.ForwardRequest, options.Options])
def test_bytes_are_exactly_those_of_protobuf(kind: type[Message]) -> None:
    random = Random(3)
    for _ in range(20):
        message = random_message(random, kind, density=random.random())
        assert encode(message) == to_protobuf(message).SerializeToString(deterministic=True)


@by_class
def test_any_bytes_are_decoded_as_protobuf_does_or_refused(kind: type[Message]) -> None:
    random = Random(f"4 {kind.NAME}")
    for _ in range(60):
        data = bytearray(encode(random_message(random, kind, density=random.random())))
        for _ in range(random.randint(1, 4)):
            _damage(random, data)
        _compare_with_protobuf(kind, bytes(data))


def _damage(random: Random, data: bytearray) -> None:
    at = random.randrange(len(data) + 1)
    match random.randrange(5):
        case 0:
            del data[at : at + random.choice((1, 2, 50))]
        case 1:
            data[at:at] = random.randbytes(random.choice((1, 2, 12)))
        case 2:
            data[at : at + 1] = bytes([random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))])
        case 3:
            data += data[at : at + 40]
        case _:
            data[at:at] = random.choice(
                (b"\x0b\x0c", b"\x0b", b"\x0c", b"\xf8\x80\x80\x80\x80\x00", b"\x99\x06", b"\x95\x06")
            )


def _compare_with_protobuf(kind: type[Message], data: bytes) -> None:
    try:
        theirs = from_protobuf(kind, oracle.message_class(kind.NAME).FromString(data))
    except DecodeError:
        with pytest.raises(CodecError):
            decode(kind, data)
        return
    try:
        found: object = contents(decode(kind, data))  # and not the record: damage makes NaNs
    except CodecError as error:
        found = str(error)
    # The two that we refuse as protobuf's Go code does, while its C code is lenient.
    assert found in (contents(theirs), "number is longer than 64 bits", "field number 0"), data


# --- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        (b"\x08\x80\x00", 0),  # longer than it need be, which is allowed
        (b"\x08" + b"\xff" * 9 + b"\x01", -1),
        (b"\x08" + b"\x80" * 9 + b"\x01", -(2**63)),
        (b"\x08" + b"\xff" * 8 + b"\x7f", 2**63 - 1),
    ],
)
def test_64_bit_numbers_keep_their_sign(data: bytes, seconds: int) -> None:
    assert decode(Timestamp, data).seconds == seconds


def test_a_number_is_cut_to_the_width_of_its_field() -> None:
    assert decode(Timestamp, b"\x10\xff\xff\xff\xff\x7f").nanos == -1
    assert decode(Timestamp, b"\x10\x80\x80\x80\x80\x08").nanos == -(2**31)
    assert decode(Timestamp, b"\x10\xff\xff\xff\xff\x07").nanos == 2**31 - 1
    assert decode(task.StartResponse, b"\x08\xff\xff\xff\xff\x7f").pid == 0xFFFFFFFF
    assert decode(task.KillRequest, b"\x20\x80\x02").all is True


@pytest.mark.parametrize(
    "message",
    [
        task.StartResponse(2**32),
        task.StartResponse(-1),
        Timestamp(2**63),
        Timestamp(-(2**63) - 1),
        Timestamp(nanos=2**31),
        metrics_v1.CPUUsage(per_cpu=(1, -1)),
        metrics_v1.CPUUsage(total=2**64),
        bootstrap.BootstrapParams(log_level=-(2**31) - 1),
    ],
    ids=repr,
)
def test_a_number_out_of_its_fields_range_is_not_written(message: Message) -> None:
    with pytest.raises(CodecError, match="is not within"):
        encode(message)


def test_negative_enums_are_written_and_read() -> None:
    params = bootstrap.BootstrapParams(log_level=bootstrap.LOG_LEVEL_TRACE)
    assert encode(params) == b"\x18\xf8" + b"\xff" * 8 + b"\x01"
    assert decode(bootstrap.BootstrapParams, encode(params)) == params


def test_a_field_with_presence_tells_empty_from_absent() -> None:
    empty = bootstrap.BootstrapParams(socket_dir="")
    assert encode(empty) == b"\x4a\x00"
    assert decode(bootstrap.BootstrapParams, b"\x4a\x00") == empty
    assert decode(bootstrap.BootstrapParams, b"").socket_dir is None


def test_minus_zero_is_not_a_default() -> None:
    assert encode(metrics_v2.PSIData(avg10=-0.0)) == b"\x09" + b"\0" * 7 + b"\x80"
    assert encode(metrics_v2.PSIData(avg10=0.0)) == b""


def test_an_empty_message_field_is_not_an_absent_one() -> None:
    assert encode(task.StatsResponse(Any())) == b"\x0a\x00"
    assert decode(task.StatsResponse, b"\x0a\x00").stats == Any()
    assert decode(task.StatsResponse, b"").stats is None


def test_repeated_numbers_are_read_packed_or_not() -> None:
    packed, loose = b"\x22\x03\x01\x80\x01", b"\x20\x01\x20\x80\x01"
    assert decode(metrics_v1.CPUUsage, packed).per_cpu == (1, 128)
    assert decode(metrics_v1.CPUUsage, loose).per_cpu == (1, 128)
    assert decode(metrics_v1.CPUUsage, packed + loose).per_cpu == (1, 128, 1, 128)
    assert decode(bootstrap.BootstrapResult, b"\x20\x00\x22\x01\x07").capabilities == (0, 7)


def test_a_scalar_that_comes_twice_has_its_last_value() -> None:
    assert decode(task.StartRequest, b"\x0a\x01a\x12\x01x\x0a\x01b") == task.StartRequest("b", "x")


def test_a_message_that_comes_twice_is_merged() -> None:
    first = encode(task.StatsResponse(Any("a", b"1")))
    second = encode(task.StatsResponse(Any(value=b"2")))
    assert decode(task.StatsResponse, first + second) == task.StatsResponse(Any("a", b"2"))
    limits = encode(metrics_v2.Metrics(rdma=metrics_v2.RdmaStat(limit=(metrics_v2.RdmaEntry("x"),))))
    merged = decode(metrics_v2.Metrics, limits + limits)
    assert merged.rdma == metrics_v2.RdmaStat(limit=(metrics_v2.RdmaEntry("x"),) * 2)


@pytest.mark.parametrize(
    ("entry", "annotations"),
    [
        (b"", {"": ""}),
        (b"\x0a\x01k", {"k": ""}),
        (b"\x12\x01v", {"": "v"}),
        (b"\x12\x01v\x0a\x01k", {"k": "v"}),
        (b"\x0a\x01k\x12\x01v\x12\x01w\x1a\x01?", {"k": "w"}),
    ],
)
def test_a_map_entry_may_lack_parts_or_have_them_in_any_order(
    entry: bytes, annotations: dict[str, str]
) -> None:
    data = b"\x1a" + bytes([len(entry)]) + entry
    assert decode(task.UpdateTaskRequest, data).annotations == annotations


def test_the_last_of_two_map_entries_wins() -> None:
    one = encode(task.UpdateTaskRequest(annotations={"k": "1"}))
    two = encode(task.UpdateTaskRequest(annotations={"k": "2"}))
    assert decode(task.UpdateTaskRequest, one + two).annotations == {"k": "2"}


@pytest.mark.parametrize(
    "unknown",
    [
        b"\xf8\x07\x01",
        b"\xf9\x07" + b"12345678",
        b"\xfa\x07\x03abc",
        b"\xfd\x07" + b"1234",
        b"\xfb\x07\xf8\x07\x01\xfb\x07\xfc\x07\xfc\x07",  # a group, with a group in it
        b"\x08\x05",  # a known number with another wire type
    ],
    ids=["varint", "fixed64", "delimited", "fixed32", "group", "wire type"],
)
def test_unknown_fields_are_skipped(unknown: bytes) -> None:
    known = encode(task.StartRequest("a", "b"))
    assert decode(task.StartRequest, unknown + known + unknown) == task.StartRequest("a", "b")
    assert decode(Empty, unknown) == Empty()


def test_buffers_of_any_kind_are_decoded() -> None:
    data = encode(task.StartRequest("a"))
    assert decode(task.StartRequest, bytearray(data)) == decode(task.StartRequest, memoryview(data))


def test_long_parts_have_long_lengths() -> None:
    for size in (127, 128, 16_383, 16_384, 3_000_000):
        assert_same(events.TaskCreate(rootfs=(Mount(source="x" * size, options=("y" * size,)),)))
        assert_same(Any("t", b"\0" * size))


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"\x0a", "truncated"),
        (b"\x0a\x05a", "5 bytes announced, 1 left"),
        (b"\x0a\xff\xff\xff\xff\x0f", "4294967295 bytes announced, 0 left"),
        (b"\x0a\xff", "truncated"),
        (b"\x0a\x01\xff", "not UTF-8"),
        (b"\x0a\x03\xed\xa0\x80", "not UTF-8"),  # a surrogate
        (b"\x0a" + OVERFLOW, "longer than 64 bits"),
        (b"\x0a" + b"\x80" * 10 + b"\x00", "longer than 64 bits"),
        (b"\x02\x00", "field number 0"),
        (b"\x80\x80\x80\x80\x10\x00", "field number is longer than 32 bits"),
        (b"\x88\x80\x80\x80\x80\x00\x01", "field number is longer than 32 bits"),
        (b"\x0e", "wire type 6"),
        (b"\x0f", "wire type 7"),
        (b"\x0c", "never began"),
        (b"\x0b", "truncated"),
        (b"\x0b\x14", "never began"),  # the end of another group
        (b"\x7a\x05abc", "passes the end"),
        (b"\x79abc", "passes the end"),
        (b"\x7dabc", "passes the end"),
    ],
)
def test_damaged_bytes_are_refused(data: bytes, cause: str) -> None:
    with pytest.raises(CodecError, match=cause):
        decode(task.StartRequest, data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x02\x0a\x05hello",  # the inner length passes the end of the inner message, not of the bytes
        b"\x0a\x02\x0a\x81\x00\x00",
        b"\x0a\x01\x0a\x00\x00",
        b"\x0a\x03\x12\x01",
    ],
)
def test_what_passes_the_end_of_an_inner_message_is_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode(task.StatsResponse, data)
    with pytest.raises(DecodeError):
        oracle.message_class(task.StatsResponse.NAME).FromString(data)


def test_a_packed_number_that_passes_the_end_is_refused() -> None:
    with pytest.raises(CodecError, match="packed number passes the end"):
        decode(metrics_v1.CPUUsage, b"\x22\x01\x80\x00")


def test_a_double_that_passes_the_end_is_refused() -> None:
    with pytest.raises(CodecError, match="passes the end"):
        decode(metrics_v2.PSIData, b"\x091234567")
    with pytest.raises(CodecError, match="passes the end"):
        decode(metrics_v2.PSIStats, b"\x0a\x08\x0912345678")


def test_groups_nested_deeper_than_the_limit_are_refused() -> None:
    def nested(depth: int) -> bytes:
        return b"\x7b" * depth + b"\x7c" * depth

    assert decode(Empty, nested(codec.MAX_DEPTH - 1)) == Empty()
    with pytest.raises(CodecError, match="nested deeper than 100"):
        decode(Empty, nested(codec.MAX_DEPTH))
    with pytest.raises(CodecError, match="nested deeper than 100"):
        decode(Empty, b"\x7b" * 100_000)


def test_messages_nested_deeper_than_the_limit_are_refused() -> None:
    class Innermost(Message):
        NAME = "innermost"
        names: Mapping[str, str] = string_map(1)

    chain: list[type[Message]] = [Innermost]
    for depth in range(codec.MAX_DEPTH):
        declared = (message, messages)[depth % 2](1, chain[-1])
        outer: Any_ = MessageType("Outer", (Message,), {"NAME": "outer", "inner": declared})
        chain.append(outer)

    def nested(depth: int) -> bytes:
        data = b""
        for _ in range(depth - 1):
            length = bytearray()
            codec._append_varint(length, len(data))
            data = b"\x0a" + bytes(length) + data
        return data

    decode(chain[codec.MAX_DEPTH - 2], nested(codec.MAX_DEPTH))
    for depth in (codec.MAX_DEPTH - 1, codec.MAX_DEPTH):  # the entry of a map is a message, too
        with pytest.raises(CodecError, match="nested deeper than 100"):
            decode(chain[depth], nested(depth + 2))


@pytest.mark.parametrize(
    ("kind", "element"),
    [
        (task.PidsResponse, b"\x0a\x00"),
        (Mount, b"\x22\x00"),
        (task.UpdateTaskRequest, b"\x1a\x00"),
        (metrics_v1.CPUUsage, b"\x20\x01"),
    ],
    ids=["messages", "strings", "map", "numbers"],
)
def test_more_elements_than_the_limit_are_refused(kind: type[Message], element: bytes) -> None:
    decode(kind, element * codec.MAX_ELEMENTS)
    with pytest.raises(CodecError, match="more than 65536 elements"):
        decode(kind, element * (codec.MAX_ELEMENTS + 1))


@pytest.mark.parametrize(
    "field",
    [b"\x78\x01", b"\x7b\x7c", b"\x0a\x00", b"\x12\x00", b"\x08\x01"],
    ids=["unknown", "unknown groups", "text again", "bytes again", "a number again"],
)
def test_fields_that_nobody_wants_so_often_are_refused(field: bytes) -> None:
    """They take no memory, but time: a shim has one thread."""
    decode(task.WaitResponse if field == b"\x08\x01" else Any, field * (codec.MAX_ELEMENTS - 1))
    with pytest.raises(CodecError, match="or fields that are unknown or come again"):
        decode(task.WaitResponse if field == b"\x08\x01" else Any, field * (codec.MAX_ELEMENTS + 2))


def test_packed_numbers_count_as_elements() -> None:
    count = codec.MAX_ELEMENTS + 1
    with pytest.raises(CodecError, match="more than 65536 elements"):
        decode(metrics_v1.CPUUsage, b"\x22\x81\x80\x04" + b"\x01" * count)


def test_a_message_merged_many_times_takes_linear_time() -> None:
    piece = encode(metrics_v2.Metrics(rdma=metrics_v2.RdmaStat(limit=(metrics_v2.RdmaEntry(),))))
    merged = decode(metrics_v2.Metrics, piece * 30_000)  # quadratic time would be minutes
    assert merged.rdma is not None
    assert len(merged.rdma.limit) == 30_000


def test_lone_surrogates_are_not_written() -> None:
    with pytest.raises(CodecError, match="not valid Unicode"):
        encode(task.PidsResponse((ProcessInfo(1, Any("\udc80")),)))
