"""The parser, against what Go's flag package and runc's command library make of the same words."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.cli.arguments import HelpWanted, Option, UsageError, Verb, check_count, parse

OPTIONS = (
    Option(("--bundle", "-b")),
    Option(("--force", "-f"), "flag"),
    Option(("--count",), "int"),
    Option(("--env", "-e"), "list"),
    Option(("--gids", "-g"), "ints"),
    Option(("--interval",), "seconds", default=5.0),
    Option(("--format",), default="table"),
)
DEFAULTS: dict[str, Any] = {
    "bundle": "",
    "force": False,
    "count": 0,
    "env": [],
    "gids": [],
    "interval": 5.0,
    "format": "table",
}


def parsed(*words: str, first_ends: bool = False) -> tuple[dict[str, Any], list[str]]:
    """The options that differ from their defaults, and the arguments."""
    found = parse(words, OPTIONS, first_ends)
    return {name: value for name, value in found.options.items() if value != DEFAULTS[name]}, found.arguments


def test_without_options_there_are_the_defaults() -> None:
    found = parse(("id",), OPTIONS, False)
    assert (found.options, found.given, found.arguments) == (DEFAULTS, frozenset(), ["id"])


@pytest.mark.parametrize(
    "words", [["--bundle", "x"], ["-bundle", "x"], ["-b", "x"], ["--b", "x"], ["--bundle=x"], ["-b=x"]]
)
def test_a_value_follows_or_is_joined(words: list[str]) -> None:
    assert parsed(*words) == ({"bundle": "x"}, [])


def test_a_value_may_look_like_an_option_be_empty_or_hold_the_sign() -> None:
    assert parsed("--bundle", "--force") == ({"bundle": "--force"}, [])
    assert parsed("--format=", "--bundle=a=b") == ({"format": "", "bundle": "a=b"}, [])


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_a_flag_takes_gos_words_for_true(text: str) -> None:
    assert parsed(f"--force={text}") == ({"force": True}, [])


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_and_for_false(text: str) -> None:
    found = parse((f"-f={text}",), OPTIONS, False)
    assert found.options["force"] is False
    assert found.given == {"force"}


def test_a_flag_never_takes_the_next_word() -> None:
    assert parsed("--force", "true") == ({"force": True}, ["true"])


def test_the_last_of_several_values_holds_and_lists_grow() -> None:
    assert parsed("-b", "x", "--bundle", "y") == ({"bundle": "y"}, [])
    assert parsed("-e", "A=1", "--env=B=2,3") == ({"env": ["A=1", "B=2,3"]}, [])
    assert parsed("-g", "5", "--gids=-7") == ({"gids": [5, -7]}, [])


def test_a_list_is_the_callers_own() -> None:
    parse((), OPTIONS, False).options["env"].append("mine")
    assert parse((), OPTIONS, False).options["env"] == []


def test_options_may_follow_arguments_where_no_command_does() -> None:
    assert parsed("id", "--force", "more", "-b", "x") == ({"force": True, "bundle": "x"}, ["id", "more"])
    assert parsed("id", "--force", first_ends=True) == ({}, ["id", "--force"])
    assert parsed("-f", "id", "ls", "-b", "x", first_ends=True) == ({"force": True}, ["id", "ls", "-b", "x"])


def test_two_dashes_end_the_options() -> None:
    assert parsed("-f", "--", "--bundle", "x") == ({"force": True}, ["--bundle", "x"])
    assert parsed("id", "--", "-f") == ({}, ["id", "-f"])
    assert parsed("--", first_ends=True) == ({}, [])
    assert parsed("--bundle", "--", "x") == ({"bundle": "--"}, ["x"])


def test_behind_an_argument_an_unknown_option_is_one_too() -> None:
    assert parsed("id", "-9") == ({}, ["id", "-9"])
    assert parsed("-") == ({}, ["-"])
    with pytest.raises(UsageError, match="flag provided but not defined: -9"):
        parsed("-9", "id")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["-help"], ["id", "--help"], ["id", "-h"]])
def test_help_may_be_asked_for_anywhere(words: list[str]) -> None:
    with pytest.raises(HelpWanted):
        parsed(*words)


def test_behind_a_command_it_is_the_commands() -> None:
    assert parsed("id", "ls", "--help", first_ends=True) == ({}, ["id", "ls", "--help"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--frob"], "flag provided but not defined: -frob"),
        (["-frob=1"], "flag provided but not defined: -frob"),
        (["--bundle"], "flag needs an argument: -bundle"),
        (["-b"], "flag needs an argument: -b"),
        (["---bundle"], "bad flag syntax: ---bundle"),
        (["--=x"], "bad flag syntax: --=x"),
        (["-=x"], "bad flag syntax: -=x"),
        (["--force=yes"], 'invalid boolean value "yes" for -force: parse error'),
        (["--force="], 'invalid boolean value "" for -force: parse error'),
        (["--count", "x"], 'invalid value "x" for flag -count: parse error'),
        (["--count", ""], 'invalid value "" for flag -count: parse error'),
        (["--count", "1.5"], 'invalid value "1.5" for flag -count: parse error'),
        (["--count", "9" * 30], f'invalid value "{"9" * 30}" for flag -count: value out of range'),
        (
            ["--count", "9223372036854775808"],
            'invalid value "9223372036854775808" for flag -count: value out of range',
        ),
        (["-g", "a"], 'invalid value "a" for flag -g: parse error'),
        (["--interval", "5"], 'invalid value "5" for flag -interval: parse error'),
        (["--interval", "s"], 'invalid value "s" for flag -interval: parse error'),
        (["--interval", ""], 'invalid value "" for flag -interval: parse error'),
        (["--interval", "1s2"], 'invalid value "1s2" for flag -interval: parse error'),
        (["--interval", "1.2.3s"], 'invalid value "1.2.3s" for flag -interval: parse error'),
    ],
)
def test_what_is_wrong_is_said_in_gos_words(words: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(*words)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("0", 0), ("7", 7), ("-7", -7), ("+7", 7), ("0x1F", 31), ("0b11", 3), ("0o17", 15), ("017", 15)),
        *(
            ("-017", -15),
            ("1_000", 1000),
            ("9223372036854775807", 2**63 - 1),
            ("-9223372036854775808", -(2**63)),
        ),
    ],
)
def test_numbers_have_gos_bases(text: str, number: int) -> None:
    assert parse((f"--count={text}",), OPTIONS, False).options["count"] == number


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(
            ("5s", 5),
            ("1m30s", 90),
            ("100ms", 0.1),
            ("1.5h", 5400),
            ("2us", 2e-6),
            ("2µs", 2e-6),
            ("7ns", 7e-9),
        ),
        *(("0", 0), ("-3s", -3), ("+3s", 3), (".5s", 0.5)),
    ],
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert parse((f"--interval={text}",), OPTIONS, False).options["interval"] == pytest.approx(seconds)


def verb(least: int, most: int | None) -> Verb:
    return Verb("try", "", "", (), lambda _call: 0, least, most)


@pytest.mark.parametrize(
    ("least", "most", "count", "bound"),
    [
        (1, 1, 0, "exactly 1"),
        (1, 1, 2, "exactly 1"),
        (0, 0, 1, "exactly 0"),
        (1, None, 0, "a minimum of 1"),
        (1, 2, 0, "a minimum of 1"),
        (1, 2, 3, "a maximum of 2"),
    ],
)
def test_a_wrong_number_of_arguments_is_named(least: int, most: int | None, count: int, bound: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_count(verb(least, most), "prog", ["x"] * count)
    assert str(caught.value) == f'prog: "try" requires {bound} argument(s)'


@pytest.mark.parametrize(
    ("least", "most", "count"), [(0, 0, 0), (1, 1, 1), (1, None, 9), (1, 2, 1), (1, 2, 2)]
)
def test_a_right_one_is_not(least: int, most: int | None, count: int) -> None:
    check_count(verb(least, most), "prog", ["x"] * count)
