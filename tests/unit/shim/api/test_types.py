"""Any and Timestamp."""

from __future__ import annotations

import pytest

from shim.api.codec import CodecError
from shim.api.events import TaskExit, TaskStart
from shim.api.types import Any, Timestamp, nanoseconds, pack, timestamp, unpack


def test_a_packed_message_carries_its_bare_name() -> None:
    assert pack(TaskStart("a", 1)) == Any("containerd.events.TaskStart", b"\n\x01a\x10\x01")


@pytest.mark.parametrize("host", ["", "type.googleapis.com/"])
def test_a_message_is_unpacked_with_or_without_a_host_in_its_type_url(host: str) -> None:
    packed = Any(host + "containerd.events.TaskStart", b"\n\x01a\x10\x01")
    assert unpack(packed, TaskStart) == TaskStart("a", 1)


def test_another_message_is_not_unpacked() -> None:
    with pytest.raises(
        CodecError, match=r"expected containerd\.events\.TaskStart, got 'containerd\.events\.TaskExit'"
    ):
        unpack(pack(TaskExit("a")), TaskStart)


@pytest.mark.parametrize("time_ns", [0, 1, 999_999_999, 1_000_000_000, 1_790_000_000_123_456_789, -1])
def test_timestamps_keep_nanoseconds(time_ns: int) -> None:
    moment = timestamp(time_ns)
    assert 0 <= moment.nanos < 1_000_000_000  # as protobuf wants it, before the epoch too
    assert nanoseconds(moment) == time_ns


def test_no_timestamp_is_zero() -> None:
    assert nanoseconds(None) == 0
    assert nanoseconds(Timestamp()) == 0
