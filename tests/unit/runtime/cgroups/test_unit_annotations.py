"""GVariant text, and which properties of a unit annotations may set."""

from __future__ import annotations

import random

import pytest

from runtime.cgroups.unit_annotations import HARMLESS, PREFIX, parse_variant, plan_properties
from runtime.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "variant"),
    [
        ("uint64 123456789", ("t", 123456789)),
        ("'inactive-or-failed'", ("s", "inactive-or-failed")),
        ('"a \\"b\\" \\n \\u00e9"', ("s", 'a "b" \n é')),
        ("true", ("b", True)),
        ("boolean false", ("b", False)),
        ("37", ("i", 37)),
        ("-37", ("i", -37)),
        ("0x1F", ("i", 31)),
        ("010", ("i", 8)),
        ("byte 255", ("y", 255)),
        ("@u 7", ("u", 7)),
        ("1.5", ("d", 1.5)),
        ("double 2", ("d", 2.0)),
        ("objectpath '/a/b'", ("o", "/a/b")),
        ("['a', 'b']", ("as", ["a", "b"])),
        ("@as []", ("as", [])),
        ("@at [1, 2]", ("at", [1, 2])),
        ("[uint32 1, 2]", ("au", [1, 2])),
        ("[['a'], ['b']]", ("aas", [["a"], ["b"]])),
        ("  5 ", ("i", 5)),
    ],
)
def test_plain_values_and_arrays_are_read(text: str, variant: tuple[str, object]) -> None:
    assert parse_variant(text) == variant


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "'",
            "'a",
            "[",
            "[1",
            "[1,",
            "[1 2]",
            "[]",
            "[,]",
            "['a', 1]",
            "5 6",
            "'a' 'b'",
            "nan",
            "inf",
        ),
        *(
            "uint64 -1",
            "byte 256",
            "int32 2147483648",
            "2147483648",
            "uint64",
            "uint64 'a'",
            "string 5",
            "5x",
        ),
        *(
            "{'a': 1}",
            "(1, 2)",
            "<1>",
            "just 5",
            "nothing",
            "@(ss) ('a', 'b')",
            "@v <1>",
            "@a{sv} {}",
            "@ms 'a'",
        ),
        *(
            "1_000",
            "²",
            "0x",
            "08",
            "1e",
            "--5",
            "+",
            "'\\u00'",
            "'\\ud800'",
            "'\\0'" + "\0",
            "'a\0b'",
            "[" * 50,
        ),
        *(
            "9" * 5000,
            "@aaaaaas []",
            "objectpath 'a'",
            "b'abc'",
            "1.2.3",
            "'\\UFFFFFFFF'",
            "boolean 1",
            "[[[[[1]]]]]",
            "true 5",
        ),
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        parse_variant(text)


def test_any_text_gives_a_value_or_an_error() -> None:
    chance = random.Random(7)
    alphabet = "[]'\"\\@ubtsaix 019-+.,e" + "uint64" + "\0é"
    for _round in range(5000):
        text = "".join(chance.choice(alphabet) for _ in range(chance.randrange(12)))
        try:
            kind, _value = parse_variant(text)
        except ValueError:
            continue
        assert kind.strip("a") in set("bynqiuxtdso")


def test_properties_that_reach_beyond_the_unit_are_not_taken() -> None:
    names = (
        "Slice",
        "PIDs",
        "Conflicts",
        "Requires",
        "OnFailure",
        "MemoryMax",
        "DeviceAllow",
        "DevicePolicy",
    )
    more = (
        "Delegate",
        "PropagatesStopTo",
        "JoinsNamespaceOf",
        "IPIngressFilterPath",
        "BPFProgram",
        "ExecStart",
    )
    annotations = {f"{PREFIX}{name}": "'x'" for name in (*names, *more)}
    assert plan_properties(annotations) == ([], tuple(annotations))


def test_what_an_administrator_allows_is_taken() -> None:
    annotations = {f"{PREFIX}After": "['a.service']", "org.example": "5"}
    properties, refused = plan_properties(annotations, HARMLESS | {"After"})
    assert properties == [("After", ("as", ["a.service"]))]
    assert refused == ()


@pytest.mark.parametrize(
    ("name", "text", "properties"),
    [
        ("TimeoutStopUSec", "uint64 5", [("TimeoutStopUSec", ("t", 5))]),
        ("TimeoutStopSec", "5", [("TimeoutStopUSec", ("t", 5_000_000))]),
        ("TimeoutStopSec", "uint64 5", [("TimeoutStopUSec", ("t", 5_000_000))]),
        ("TimeoutStopSec", "0.5", [("TimeoutStopUSec", ("t", 500_000))]),
    ],
)
def test_seconds_become_microseconds(name: str, text: str, properties: list[object]) -> None:
    assert plan_properties({PREFIX + name: text}) == (properties, ())


@pytest.mark.parametrize("text", ["'5'", "true", "-1", "uint64 18446744073709551615", "1e300", "[5]"])
def test_seconds_are_a_number_in_range(text: str) -> None:
    with pytest.raises(ConfigError, match="TimeoutStopSec"):
        plan_properties({f"{PREFIX}TimeoutStopSec": text})


@pytest.mark.parametrize(
    "name", ["", "ab", "Kill Mode", "Kill_Mode", "KillMode2", "Kill.Mode", "Killé", "x" * 0]
)
def test_a_name_is_made_of_letters(name: str) -> None:
    with pytest.raises(ConfigError, match="annotations"):
        plan_properties({PREFIX + name: "5"}, frozenset((name,)))


def test_an_allowed_name_with_a_bad_value_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"annotations\.org\.systemd\.property\.KillMode"):
        plan_properties({f"{PREFIX}KillMode": "none"})
