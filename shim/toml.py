"""A handler's options as TOML text: one flat table of text, numbers and truth values, read within bounds.

containerd gives a runtime that is not runc its options as text, from its own configuration. All of TOML takes a
parser with dates and nested tables, and Python's brings `re` and half a megabyte along; no option needs more than
`Name = value`. So this reads that, and refuses the rest of TOML 1.0 by name and line: no value is ever misread.
"""

from __future__ import annotations

from runtime.errors import InvalidArgument

MOST_BYTES = 1 << 16
MOST_KEYS = 100

_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}
_WIDTHS = {"u": 4, "U": 8}
_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
_BASES = {"0x": 16, "0o": 8, "0b": 2}
_LONGEST_NUMBER = 80


class TomlError(InvalidArgument):
    """Text that is no TOML, or more of it than options need; says in which line."""


def parse(data: bytes) -> dict[str, str | int | bool]:
    """The keys and values of the table in `data`, in order. TomlError."""
    if len(data) > MOST_BYTES:
        raise TomlError(f"{len(data)} bytes of options, at most {MOST_BYTES} are read")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise TomlError("options are not UTF-8") from error
    table: dict[str, str | int | bool] = {}
    for number, line in enumerate(text.split("\n"), 1):
        try:
            _read_line(line.removesuffix("\r").strip(" \t"), table)
        except ValueError as error:
            raise TomlError(f"line {number}: {error}") from None
    return table


def _read_line(line: str, table: dict[str, str | int | bool]) -> None:
    """Add what the line says to `table`. ValueError says what is wrong."""
    if not line or line.startswith("#"):
        _check_characters(line)
        return
    if line.startswith("["):
        raise ValueError("tables are not supported")
    key, rest = _read_key(line)
    if not rest.startswith("="):
        raise ValueError(f"'=' expected after {key!r}")
    value, rest = _read_value(rest[1:].lstrip(" \t"))
    if rest and not rest.startswith("#"):
        raise ValueError(f"{rest[:40]!r} behind the value of {key}")
    _check_characters(rest)
    if key in table:
        raise ValueError(f"{key} is there twice")
    if len(table) >= MOST_KEYS:
        raise ValueError(f"more than {MOST_KEYS} keys")
    table[key] = value


def _read_key(line: str) -> tuple[str, str]:
    if line[0] in "\"'":
        key, rest = _read_text(line)
    else:
        end = 0
        while end < len(line) and line[end] in _BARE:
            end += 1
        key, rest = line[:end], line[end:].lstrip(" \t")
        if not key:
            raise ValueError(f"{line[:40]!r} is no key")
    if rest.startswith("."):
        raise ValueError("dotted keys are not supported")
    return key, rest


def _read_value(text: str) -> tuple[str | int | bool, str]:
    """The value at the beginning of `text`, and what follows it without the blanks between."""
    if not text or text[0] == "#":
        raise ValueError("a value is missing")
    if text[0] in "\"'":
        return _read_text(text)
    if text[0] in "[{":
        raise ValueError("arrays and inline tables are not supported")
    end = 0
    while end < len(text) and text[end] not in " \t#":
        end += 1
    word, rest = text[:end], text[end:].lstrip(" \t")
    if word in ("true", "false"):
        return word == "true", rest
    return _number(word), rest


def _number(word: str) -> int:
    """An integer as TOML writes it: 1_000, -17, 0xff, 0o755."""
    sign, digits, base = "", word, 10
    if word[:2] in _BASES:
        base, digits = _BASES[word[:2]], word[2:]
    elif word[:1] in ("+", "-"):
        sign, digits = word[0], word[1:]
    parts = digits.split("_")
    regular = len(word) <= _LONGEST_NUMBER and all(part and _HEXADECIMAL.issuperset(part) for part in parts)
    if not regular or (base == 10 and len(digits) > 1 and digits[0] == "0"):
        raise ValueError(f"{word[:40]!r} is no value that is supported")
    try:
        return int(sign + "".join(parts), base)
    except ValueError:
        raise ValueError(f"{word[:40]!r} is no value that is supported") from None


def _read_text(text: str) -> tuple[str, str]:
    """A string in one line, basic ("…") or literal ('…'), and what follows it."""
    quote = text[0]
    if text.startswith(quote * 3):
        raise ValueError("strings of several lines are not supported")
    made, position = "", 1
    while position < len(text) and text[position] != quote:
        if text[position] == "\\" and quote == '"':
            character, position = _unescape(text, position + 1)
        else:
            character, position = text[position], position + 1
            _check_characters(character)
        made += character
    if position >= len(text):
        raise ValueError("a string does not end")
    return made, text[position + 1 :].lstrip(" \t")


def _unescape(text: str, position: int) -> tuple[str, int]:
    letter = text[position : position + 1]
    if letter in _ESCAPES:
        return _ESCAPES[letter], position + 1
    end = position + 1 + _WIDTHS.get(letter, 0)
    digits = text[position + 1 : end]
    if letter not in _WIDTHS or len(digits) != _WIDTHS[letter] or not _HEXADECIMAL.issuperset(digits):
        raise ValueError(f"escape \\{letter} is none")
    number = int(digits, 16)
    if number > 0x10FFFF or 0xD800 <= number < 0xE000:
        raise ValueError(f"\\{letter}{digits} is no character")
    return chr(number), end


def _check_characters(text: str) -> None:
    for character in text:
        if (character < " " and character != "\t") or character == "\x7f":
            raise ValueError("a control character")
