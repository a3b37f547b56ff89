"""Annotations `org.systemd.property.NAME`: a property of a container's unit, as GVariant text.

An annotation turns into an action of the host's PID 1 here: a unit's properties name other units to stop,
slices outside of a pod's limits, processes to take in. So only names on a list are taken, and of the text format
(docs.gtk.org/glib/gvariant-text-format.html) only plain values and arrays of them. Pure.
"""

from __future__ import annotations

from runtime.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Value = bool | int | float | str | list["Value"]
    Variant = tuple[str, Value]  # D-Bus signature and value
    Property = tuple[str, Variant]

PREFIX = "org.systemd.property."

# When a unit is stopped and how, how it is collected and described: nothing that reaches beyond itself.
HARMLESS = frozenset(
    (
        *("CollectMode", "Description", "Documentation", "FinalKillSignal", "KillMode", "KillSignal"),
        *("ManagedOOMMemoryPressure", "ManagedOOMMemoryPressureLimit", "ManagedOOMPreference"),
        *("ManagedOOMSwap", "OOMPolicy", "RestartKillSignal", "RuntimeMaxUSec"),
        *("RuntimeRandomizedExtraUSec", "SendSIGHUP", "SendSIGKILL", "TimeoutStopUSec", "WatchdogSignal"),
    )
)

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_LONGEST_TEXT = 4096
_MOST_DEPTH = 4
_TYPE_WORDS = {
    "boolean": "b",
    "byte": "y",
    "int16": "n",
    "uint16": "q",
    "int32": "i",
    "uint32": "u",
    "int64": "x",
    "uint64": "t",
    "double": "d",
    "string": "s",
    "objectpath": "o",
}
_INTEGERS = {
    "y": (0, 255),
    "n": (-(1 << 15), (1 << 15) - 1),
    "q": (0, (1 << 16) - 1),
    "i": (-(1 << 31), (1 << 31) - 1),
    "u": (0, (1 << 32) - 1),
    "x": (-(1 << 63), (1 << 63) - 1),
    "t": (0, (1 << 64) - 1),
}
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_WORD_ENDS = frozenset(" \t\r\n,[]()<>{}'\"")


def plan_properties(
    annotations: dict[str, str], allowed: Iterable[str] = HARMLESS
) -> tuple[list[Property], tuple[str, ...]]:
    """The properties that `annotations` ask for, and those of their keys that are not on the list.

    A name may be given with "Sec" for a property that counts microseconds, as `TimeoutStopSec`: its value is in
    seconds then. ConfigError for an allowed name with a value that is no GVariant text.
    """
    taken = frozenset(allowed)
    properties: list[Property] = []
    refused: list[str] = []
    for key, text in annotations.items():
        if not key.startswith(PREFIX):
            continue
        name, in_seconds = _name(key)
        if name not in taken:
            refused.append(key)
            continue
        try:
            variant = parse_variant(text)
            properties.append((name, _microseconds(variant) if in_seconds else variant))
        except ValueError as error:
            raise ConfigError(f"annotations.{key}", f"{text[:100]!r}: {error}") from error
    return properties, tuple(refused)


def _name(key: str) -> tuple[str, bool]:
    name = key[len(PREFIX) :]
    if len(name) < 3 or not _LETTERS.issuperset(name):
        raise ConfigError(f"annotations.{key[:300]}", f"{name[:100]!r} is no name of a systemd property")
    # "Sec" behind a small letter: TimeoutStopSec, but not TimeoutStopUSec, which is the property itself.
    if name.endswith("Sec") and len(name) > 3 and name[-4].islower():
        return f"{name[:-3]}USec", True
    return name, False


def _microseconds(variant: Variant) -> Variant:
    kind, value = variant
    if kind in (*_INTEGERS, "d") and isinstance(value, int | float):
        microseconds = value * 1_000_000
        if not 0 <= microseconds < 1 << 64:  # an infinite number is not either
            raise ValueError(f"{value} seconds are out of range")
        return "t", int(microseconds)
    raise ValueError(f"a number of seconds is expected, not a value of type {kind}")


def parse_variant(text: str) -> Variant:
    """GVariant text as (D-Bus signature, value); ValueError for anything but plain values and arrays of them."""
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"more than {_LONGEST_TEXT} characters")
    reader = _Reader(text)
    variant = reader.value("", _MOST_DEPTH)
    reader.end()
    return variant


class _Reader:
    """A place in a text, moved on by each value that is taken."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def value(self, wanted: str, depth: int) -> Variant:
        """The next value, of the `wanted` type where one was announced."""
        if depth == 0:
            raise ValueError("nested too deep")
        first = self._peek()
        if first in ("'", '"'):
            return self._string(first, wanted)
        if first == "[":
            return self._array(wanted, depth)
        if first == "@":
            return self._announced(depth, wanted)
        word = self._word()
        if word in _TYPE_WORDS:
            return self.value(_agreed(_TYPE_WORDS[word], wanted), depth - 1)
        return _scalar(word, wanted)

    def _announced(self, depth: int, wanted: str) -> Variant:
        kind = self._word()[1:]
        inner = kind.lstrip("a")
        if len(inner) != 1 or inner not in "bynqiuxtdso" or len(kind) > _MOST_DEPTH:
            raise ValueError(f"unsupported type {kind!r}")
        return self.value(_agreed(kind, wanted), depth - 1)

    def _array(self, wanted: str, depth: int) -> Variant:
        if wanted and not wanted.startswith("a"):
            raise ValueError(f"an array is no value of type {wanted}")
        of = wanted[1:]
        values: list[Value] = []
        self._at += 1
        while self._peek() != "]":
            if values:
                self._expect(",")
            of, value = self.value(of, depth - 1)
            values.append(value)
        self._at += 1
        if not of:
            raise ValueError("an empty array needs its type: @as []")
        return f"a{of}", values

    def _string(self, quote: str, wanted: str) -> Variant:
        if wanted not in ("", "s", "o"):
            raise ValueError(f"a string is no value of type {wanted}")
        self._at += 1
        found = []
        while True:
            each = self._take()
            if each == quote:
                break
            found.append(self._escaped() if each == "\\" else each)
        text = "".join(found)
        if "\0" in text or any("\ud800" <= each <= "\udfff" for each in text):
            raise ValueError("a string can't hold NUL or half a character")
        if wanted == "o" and not text.startswith("/"):
            raise ValueError(f"{text!r} is no object path")
        return wanted or "s", text

    def _escaped(self) -> str:
        each = self._take()
        if each in ("u", "U"):
            digits = "".join(self._take() for _ in range(4 if each == "u" else 8))
            if not set(digits) <= set("0123456789abcdefABCDEF") or int(digits, 16) > 0x10FFFF:
                raise ValueError(f"bad escape \\{each}{digits}")
            return chr(int(digits, 16))
        return _ESCAPES.get(each, each)

    def _word(self) -> str:
        start = self._at
        while self._at < len(self._text) and self._text[self._at] not in _WORD_ENDS:
            self._at += 1
        return self._text[start : self._at]

    def _peek(self) -> str:
        while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
            self._at += 1
        if self._at == len(self._text):
            raise ValueError("it ends too early")
        return self._text[self._at]

    def _take(self) -> str:
        if self._at == len(self._text):
            raise ValueError("it ends too early")
        self._at += 1
        return self._text[self._at - 1]

    def _expect(self, letter: str) -> None:
        if self._peek() != letter:
            raise ValueError(f"{self._text[self._at]!r} where {letter!r} is expected")
        self._at += 1

    def end(self) -> None:
        """ValueError unless nothing follows."""
        if rest := self._text[self._at :].strip(" \t\r\n"):
            raise ValueError(f"{rest[:20]!r} behind the value")


def _agreed(kind: str, wanted: str) -> str:
    if wanted and wanted != kind:
        raise ValueError(f"{kind} where {wanted} is expected")
    return kind


def _scalar(word: str, wanted: str) -> Variant:
    if word in ("true", "false"):
        return _agreed("b", wanted), word == "true"
    if (number := _integer(word)) is not None and wanted != "d":
        kind = wanted or "i"
        if kind not in _INTEGERS:
            raise ValueError(f"{word} is no value of type {kind}")
        least, most = _INTEGERS[kind]
        if not least <= number <= most:
            raise ValueError(f"{word} does not fit in type {kind}")
        return kind, number
    if (
        wanted in ("", "d")
        and set(word) <= set("0123456789+-.eE")
        and (wanted or {".", "e", "E"} & set(word))
    ):
        return "d", float(word)  # ValueError says what is wrong
    raise ValueError(f"unexpected {word[:20]!r}")


def _integer(word: str) -> int | None:
    """Decimal, 0x… or, with a leading 0, octal, as g_variant_parse."""
    digits = word[1:] if word[:1] in ("+", "-") else word
    base, allowed = 10, "0123456789"
    if digits[:2].lower() == "0x":
        base, digits, allowed = 16, digits[2:], "0123456789abcdefABCDEF"
    elif len(digits) > 1 and digits.startswith("0") and "." not in digits:
        base, allowed = 8, "01234567"
    if not digits or not set(digits) <= set(allowed):
        return None
    number = int(digits, base)
    return -number if word.startswith("-") else number
