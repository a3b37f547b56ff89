"""Messages as bytes and back, and bytes that are no message."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from runtime.errors import StageError
from runtime.stages.messages import (
    KINDS,
    MAX_MESSAGE,
    Created,
    Failed,
    HostDone,
    HostRequest,
    InitPid,
    Knock,
    LimitsSet,
    Listener,
    ListenerAt,
    ListenerTaken,
    MappingRequest,
    MappingWritten,
    Namespaces,
    Ready,
    Source,
    SourceRequest,
    SourcesRequest,
    Start,
    decode,
    encode,
)

if TYPE_CHECKING:
    from runtime.record import Record

EXAMPLES = [
    InitPid(4711),
    MappingRequest(),
    MappingWritten(),
    LimitsSet(),
    HostRequest(),
    HostDone("eth0 10.0.0.1/8"),
    SourcesRequest(),
    SourceRequest(7),
    Source(),
    ListenerAt(7),
    ListenerTaken(1),
    Listener(),
    Ready(),
    Ready(("console", "seccomp"), (("clone", 12), ("pivot into", 2**62)), ("a warning", "")),
    Start(),
    Knock("enter"),
    Namespaces("268435456 131072"),
    Created(7, "gate pid"),
    Failed("2:INIT", "look up", "sh ö", "not found", 2, "invalid-config"),
    Failed("2:INIT", "", "", ""),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: Record) -> None:
    assert decode(encode(message)) == message


def test_every_kind_has_an_example() -> None:
    assert {type(message).__name__ for message in EXAMPLES} == set(KINDS)


def test_bytes_that_are_no_text_survive_in_a_path() -> None:
    path = b"/a/\xff\xfe".decode("utf-8", "surrogateescape")
    assert decode(encode(Failed("2:INIT", "mount", path, "no"))) == Failed("2:INIT", "mount", path, "no")


def test_a_nul_in_a_text_cannot_forge_another_field() -> None:
    decoded = decode(encode(Failed("2:INIT", "a\0b", "c", "d")))
    assert isinstance(decoded, Failed)
    assert (decoded.operation, decoded.subject) == ("a?b", "c")


def test_the_longest_texts_still_fit_into_one_datagram() -> None:
    long = "x" * 100_000
    assert len(encode(Failed(long, long, long, long, 1, long))) <= MAX_MESSAGE
    assert len(encode(Ready((), (), (long,) * 100))) <= MAX_MESSAGE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"Nonsense",
        b"InitPid",
        b"InitPid\0x",
        b"InitPid\x001\x002",
        b"InitPid\0" + b"9" * 30,
        b"Ready",
        b"Ready\0\0a:b",
    ],
)
def test_what_is_no_message_is_a_stage_error(data: bytes) -> None:
    with pytest.raises(StageError):
        decode(data)


def test_mutated_messages_are_decoded_or_refused_and_nothing_else() -> None:
    dice = random.Random(7)
    for _ in range(3000):
        data = bytearray(encode(dice.choice(EXAMPLES)))
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            decode(bytes(data))
        except StageError:
            pass


# What every version has said at a start gate: init may wait there while Manor is replaced.
AT_A_GATE: list[tuple[bytes, Record]] = [
    (b"Knock\0start", Knock("start")),
    (b"Knock\0enter", Knock("enter")),
    (b"Start", Start()),
    (b"Namespaces\x00268435456 67108864", Namespaces("268435456 67108864")),
    (
        b"Failed\0init\0execute\0/bin/x\0No such file or directory\x002\0",
        Failed("init", "execute", "/bin/x", "No such file or directory", 2, ""),
    ),
]


@pytest.mark.parametrize(("recorded", "message"), AT_A_GATE, ids=lambda value: type(value).__name__)
def test_what_is_said_at_a_start_gate_is_the_same_in_every_version(recorded: bytes, message: Record) -> None:
    assert (encode(message), decode(recorded)) == (recorded, message)
