"""Strict JSON without the `json` package: bytes to plain values and back.

The standard `json` drags in `re` and `enum` (1.5 MB of anonymous memory), and accepts what RFC 8259 and
Go do not: NaN, repeated keys, lone surrogates. Here the C scanner behind it, `_json`, does the work, and
the rest of the rules stand around it. It owns syntax only; what a key may hold is the business of `load`.
"""

from __future__ import annotations

import _json
import sys

from runtime.errors import INVALID_CONFIG, ManorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

LIMIT_BYTES = 10 << 20
LIMIT_DEPTH = 64


class JsonError(ManorError):
    """Text that is not JSON as we accept it; says what is wrong and, where known, in which line."""

    kind = INVALID_CONFIG


def parse(data: bytes, limit_bytes: int = LIMIT_BYTES) -> Any:
    """The value of the JSON text `data`: dict, list, str, int, float, bool or None.

    JsonError on text of more than `limit_bytes`, on wrong UTF-8 or syntax, a repeated key, NaN and
    Infinity, a number out of range, nesting deeper than LIMIT_DEPTH, NUL or a lone surrogate in a string.
    """
    if len(data) > limit_bytes:
        raise JsonError(f"{len(data)} bytes of JSON exceed the limit of {limit_bytes}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 at byte {error.start}") from None
    start = _skip_space(text, 0)
    value, end = _scan(text, start)
    end = _skip_space(text, end)
    if end != len(text):
        raise JsonError(f"extra text after the value in {_place(text, end)}")
    _check_depth(value)
    if b"\\u" in data and _may_escape_badly(data):
        _check_strings(value)
    return value


def dump(value: Any) -> bytes:
    """`value` (dicts, lists, tuples, text, numbers, bools, None) as compact JSON in UTF-8, keys as they come.

    JsonError on a lone surrogate; ValueError on NaN or an infinity; TypeError on any other type.
    """
    try:
        return "".join(_encode(value, 0)).encode()
    except UnicodeEncodeError as error:
        raise JsonError(f"text that is not Unicode: {error.object[:100]!r}") from None


# ---- scanning ----------------------------------------------------------------------------------


class _SyntaxFault(ValueError):
    """What the C scanner raises in place of json.decoder.JSONDecodeError: see `_scan`."""

    def __init__(self, message: str, _text: str, position: int) -> None:
        super().__init__(message)
        self.msg = message
        self.pos = position


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _value in pairs:
            if key in seen:
                raise JsonError(f"key {key[:100]!r} appears twice in one object")
            seen.add(key)
    return made


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0.0:
        raise JsonError(f"number {text[:40]} is out of range")
    return number


def _refuse_constant(text: str) -> NoReturn:
    raise JsonError(f"{text} is not JSON")


class _Rules:
    """The attributes that `_json.make_scanner` reads."""

    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_object)
    parse_float = staticmethod(_finite)
    parse_int = int
    parse_constant = staticmethod(_refuse_constant)


_scanner = _json.make_scanner(_Rules())  # type: ignore[arg-type]

# To raise a syntax error the C code imports `json.decoder`, and with it `json` and `re`. For the length of
# a scan these stand in for them, unless the real ones are loaded already.
_stand_in = type(sys)("json.decoder")
vars(_stand_in)["JSONDecodeError"] = _SyntaxFault
_STAND_INS = {"json": type(sys)("json"), "json.decoder": _stand_in}


def _scan(text: str, start: int) -> tuple[Any, int]:
    modules = sys.modules
    missing = [name for name in _STAND_INS if name not in modules]
    for name in missing:
        modules[name] = _STAND_INS[name]
    try:
        return _scanner(text, start)
    except StopIteration as end:
        raise JsonError(f"a value is expected in {_place(text, end.value)}") from None
    except RecursionError:
        raise JsonError(f"nested deeper than {LIMIT_DEPTH} levels") from None
    except ValueError as error:
        position = getattr(error, "pos", None)
        if position is None:
            raise JsonError("an integer is too long") from None
        message = str(getattr(error, "msg", error))
        raise JsonError(
            f"{message[:1].lower()}{message[1:].removesuffix(' at')} in {_place(text, position)}"
        ) from None
    finally:
        for name in missing:
            del modules[name]


def _place(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    return f"line {line}, column {column}"


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\n\r":
        position += 1
    return position


# ---- rules the scanner does not know -----------------------------------------------------------


def _check_depth(value: Any) -> None:
    level = [value]
    for _depth in range(LIMIT_DEPTH):
        below: list[Any] = []
        for each in level:
            if type(each) is dict:
                below += each.values()
            elif type(each) is list:
                below += each
        if not below:
            return
        level = below
    if any(type(each) in (dict, list) for each in level):
        raise JsonError(f"nested deeper than {LIMIT_DEPTH} levels")


def _may_escape_badly(data: bytes) -> bool:
    # Cheap, and never wrong in the dangerous direction. Go writes \u003c for "<": \u alone says nothing.
    return b"\\u0000" in data or b"\\ud" in data or b"\\uD" in data


def _check_strings(value: Any) -> None:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if type(each) is dict:
            waiting += each
            waiting += each.values()
        elif type(each) is list:
            waiting += each
        elif type(each) is str:
            _check_string(each)


def _check_string(text: str) -> None:
    if "\0" in text:
        raise JsonError(f"a NUL character in the string {text[:100]!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise JsonError(f"half of a surrogate pair in the string {text[:100]!r}") from None


# ---- writing -----------------------------------------------------------------------------------


def _refuse(value: object) -> NoReturn:
    raise TypeError(f"{type(value).__name__} has no JSON form")


_encode = _json.make_encoder(
    None,  # no markers: what we write has no cycles
    _refuse,
    _json.encode_basestring,
    None,
    ":",
    ",",
    False,
    False,
    False,
)
