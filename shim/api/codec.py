"""Protobuf's binary encoding for the messages of this package: bytes to records and back.

Driven by the tables that `message` makes of each class, so that a shim needs no protobuf library.
Anything that does not decode is a CodecError and nothing else: truncated or overlong numbers, lengths
past the end, text that is not UTF-8, nesting and element counts past the caps. Unknown fields are
skipped, as proto3 asks. Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from _struct import Struct

from shim.api.message import (
    BOOL,
    BYTES,
    DOUBLE,
    ENUMS,
    INT64,
    INT64S,
    MESSAGE,
    MESSAGES,
    STRING,
    STRING_MAP,
    STRINGS,
    UINT32,
    UINT64,
    UINT64S,
    WIRE_DELIMITED,
    Message,
    string,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from shim.api.message import Field

    M = TypeVar("M", bound=Message)

MAX_DEPTH = 100
# Elements of all repeated fields and maps in one message, fields that it should not have, and fields that come again.
# One element may take two bytes on the wire and a hundred times as much in memory, and all of them take time; real
# messages have a few hundred (one per CPU, device or mount).
MAX_ELEMENTS = 65_536

_MANY = (STRING_MAP, STRINGS, MESSAGES, UINT64S, INT64S, ENUMS)  # each element counts, the first as well
_DOUBLE = Struct("<d")
_NO_BITS = bytes(8)
_UINT64_MASK = (1 << 64) - 1
_LIMITS = {  # kind: lowest, highest value; anything else is an int32
    UINT32: (0, (1 << 32) - 1),
    UINT64: (0, _UINT64_MASK),
    INT64: (-(1 << 63), (1 << 63) - 1),
    UINT64S: (0, _UINT64_MASK),
    INT64S: (-(1 << 63), (1 << 63) - 1),
    BOOL: (0, 1),
}
_INT32_LIMITS = (-(1 << 31), (1 << 31) - 1)


class CodecError(ValueError):
    """The bytes are not a message of the class asked for, or a value does not fit its field."""


# --- writing ---------------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """`message` in protobuf's binary encoding, fields in the order of their declaration.

    CodecError if a number is out of its field's range or a string holds lone surrogates.
    """
    out = bytearray()
    try:
        _append_fields(out, message)
    except UnicodeEncodeError as error:
        raise CodecError(f"{message.NAME}: string is not valid Unicode: {error}") from error
    return bytes(out)


def _append_fields(out: bytearray, message: Message) -> None:
    for field in message.FIELDS:
        value = getattr(message, field.name)
        kind = field.kind
        if not value and not (kind == DOUBLE or (field.presence and value is not None)):
            continue
        if kind == STRING:
            text = value.encode()
            out += field.tag
            size = len(text)
            if size <= 0x7F:
                out.append(size)
            else:
                _append_varint(out, size)
            out += text
        elif UINT32 <= kind < DOUBLE:
            out += field.tag
            if 0 < value <= 0x7F:
                out.append(value)
            else:
                _append_number(out, field, value)
        elif kind == MESSAGE:
            out += field.tag
            _append_message(out, value)
        else:
            _append_rare(out, field, value)


def _append_rare(out: bytearray, field: Field, value: Any) -> None:
    kind = field.kind
    if kind == BYTES:
        _append_delimited(out, field.tag, value)
    elif kind == STRINGS:
        for text in value:
            _append_delimited(out, field.tag, text.encode())
    elif kind == MESSAGES:
        for element in value:
            out += field.tag
            _append_message(out, element)
    elif kind == STRING_MAP:
        for name, text in value.items():
            entry = bytearray()
            _append_delimited(entry, b"\x0a", name.encode())
            _append_delimited(entry, b"\x12", text.encode())
            _append_delimited(out, field.tag, entry)
    elif kind == DOUBLE:
        bits = _DOUBLE.pack(value)
        if bits != _NO_BITS:  # minus zero has a bit set, and is written
            out += field.tag
            out += bits
    else:
        packed = bytearray()
        for number in value:
            _append_number(packed, field, number)
        _append_delimited(out, field.tag, packed)


def _append_message(out: bytearray, message: Message) -> None:
    """The message behind its length: one byte is kept for that, and widened where it was too little."""
    start = len(out)
    out.append(0)
    _append_fields(out, message)
    size = len(out) - start - 1
    if size <= 0x7F:
        out[start] = size
    else:
        length = bytearray()
        _append_varint(length, size)
        out[start : start + 1] = length


def _append_delimited(out: bytearray, tag: bytes, data: bytes | bytearray) -> None:
    out += tag
    _append_varint(out, len(data))
    out += data


def _append_number(out: bytearray, field: Field, value: int) -> None:
    lowest, highest = _LIMITS.get(field.kind, _INT32_LIMITS)
    if not lowest <= value <= highest:
        raise CodecError(f"field {field.name}: {value} is not within {lowest} … {highest}")
    _append_varint(out, value & _UINT64_MASK)  # a negative number takes ten bytes, whatever its type


def _append_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


# --- reading ---------------------------------------------------------------------------------------


def decode(kind_of_message: type[M], data: bytes | bytearray | memoryview) -> M:
    """The message of that class which `data` holds, whole. CodecError if it holds none."""
    octets = bytes(data)
    try:
        values = _read_fields(kind_of_message, octets, 0, len(octets), MAX_DEPTH, {}, [MAX_ELEMENTS])
    except IndexError:
        raise CodecError(f"{kind_of_message.NAME}: truncated") from None
    except UnicodeDecodeError as error:
        raise CodecError(f"{kind_of_message.NAME}: string is not UTF-8: {error.reason}") from error
    return _build(kind_of_message, values)


def _read_fields(  # noqa: C901, PLR0912 - every byte goes through this loop, and a call costs more than a branch
    kind_of_message: type[Message],
    data: bytes,
    position: int,
    end: int,
    depth: int,
    values: dict[str, Any],
    budget: list[int],
) -> dict[str, Any]:
    """Add the fields between `position` and `end` to `values`, raw: messages as dicts, repeated as lists.

    They stay raw until the outermost message is done, because a message field that comes twice is merged.
    """
    if not depth:
        raise CodecError(f"nested deeper than {MAX_DEPTH}")
    by_tag = kind_of_message.BY_TAG
    while position < end:
        tag = data[position]
        position += 1
        if tag > 0x7F:
            tag, position = _read_tag(data, position - 1)
        field = by_tag.get(tag)
        if field is not None and field.name in values and field.kind not in _MANY:
            _spend(budget)
        if field is None:
            position = _skip(data, position, tag, depth, budget)
        elif tag & 7 == WIRE_DELIMITED:
            size = data[position]
            position += 1
            if size > 0x7F:
                size, position = _read_varint(data, position - 1)
            stop = position + size
            if stop > end:
                raise _too_short(kind_of_message, field, size, end - position)
            if field.kind == STRING:
                values[field.name] = data[position:stop].decode()
            else:
                _read_delimited(field, data, position, stop, depth, values, budget)
            position = stop
        elif (kind := field.kind) == DOUBLE:
            position += 8
            if position > end:
                break
            values[field.name] = _DOUBLE.unpack_from(data, position - 8)[0]
        else:
            number = data[position]
            position += 1
            if number > 0x7F:
                number, position = _read_varint(data, position - 1)
                if number > 0x7FFFFFFF:  # below that all types agree
                    number = _narrow(number, kind)
            if kind >= UINT32:
                values[field.name] = number if kind != BOOL else number != 0
            else:
                _spend(budget)
                values.setdefault(field.name, []).append(number)
    if position != end:
        raise CodecError(f"{kind_of_message.NAME}: a field passes the end")
    return values


def _too_short(kind_of_message: type[Message], field: Field, announced: int, left: int) -> CodecError:
    return CodecError(f"{kind_of_message.NAME}.{field.name}: {announced} bytes announced, {left} left")


def _read_delimited(
    field: Field, data: bytes, position: int, stop: int, depth: int, values: dict[str, Any], budget: list[int]
) -> None:
    """Add a field that comes with a length, but no string; of a repeated one, one element or all of them."""
    kind = field.kind
    if kind == MESSAGE:
        inner = values.setdefault(field.name, {})
        _read_fields(field.of, data, position, stop, depth - 1, inner, budget)
    elif kind == BYTES:
        values[field.name] = data[position:stop]
    elif kind == STRINGS:
        _spend(budget)
        values.setdefault(field.name, []).append(data[position:stop].decode())
    elif kind == MESSAGES:
        _spend(budget)
        inner = _read_fields(field.of, data, position, stop, depth - 1, {}, budget)
        values.setdefault(field.name, []).append(_build(field.of, inner))
    elif kind == STRING_MAP:
        _spend(budget)
        entry = _read_fields(_StringEntry, data, position, stop, depth - 1, {}, budget)
        values.setdefault(field.name, {})[entry.get("key", "")] = entry.get("value", "")
    else:
        numbers = values.setdefault(field.name, [])
        while position < stop:
            _spend(budget)
            number, position = _read_varint(data, position)
            numbers.append(_narrow(number, kind))
        if position != stop:
            raise CodecError(f"field {field.name}: a packed number passes the end")


def _build(kind_of_message: type[M], values: dict[str, Any]) -> M:
    """The finished message. Its constructor is passed by: it would sort out arguments that are sorted out."""
    made = kind_of_message.__new__(kind_of_message)
    for field in kind_of_message.FIELDS:
        value = values.get(field.name)
        if value is None:
            value = field.default
        elif field.kind == MESSAGE:
            value = _build(field.of, value)
        elif MESSAGE < field.kind <= ENUMS:
            value = tuple(value)
        setattr(made, field.name, value)
    return made


def _spend(budget: list[int]) -> None:
    budget[0] -= 1
    if budget[0] < 0:
        raise CodecError(f"more than {MAX_ELEMENTS} elements, or fields that are unknown or come again")


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position` and the position after it. IndexError where the data ends."""
    value = 0
    for shift in range(0, 64, 7):
        octet = data[position]
        position += 1
        value |= (octet & 0x7F) << shift
        if octet <= 0x7F:
            if value > _UINT64_MASK:
                break
            return value, position
    raise CodecError("number is longer than 64 bits")


def _read_tag(data: bytes, position: int) -> tuple[int, int]:
    tag, after = _read_varint(data, position)
    if tag >> 32 or after - position > 5:
        raise CodecError("field number is longer than 32 bits")
    return tag, after


def _narrow(number: int, kind: int) -> int:
    """`number` as the field's type sees it: cut to its width, and with its sign."""
    if kind in (UINT64, UINT64S, BOOL):
        return number
    if kind == UINT32:
        return number & 0xFFFFFFFF
    if kind in (INT64, INT64S):
        return number - (1 << 64) if number >> 63 else number
    number &= 0xFFFFFFFF  # int32 and enums
    return number - (1 << 32) if number >> 31 else number


def _skip(data: bytes, position: int, tag: int, depth: int, budget: list[int]) -> int:
    """The position after the unknown field whose tag was just read. It may pass the end: the caller looks."""
    _spend(budget)
    if tag < 8:
        raise CodecError("field number 0")
    wire_type = tag & 7
    if wire_type == 0:
        return _read_varint(data, position)[1]
    if wire_type == 1:
        return position + 8
    if wire_type == 2:
        size, position = _read_varint(data, position)
        return position + size
    if wire_type == 5:
        return position + 4
    if wire_type != 3:
        raise CodecError("end of a group that never began" if wire_type == 4 else f"wire type {wire_type}")
    if depth <= 1:
        raise CodecError(f"nested deeper than {MAX_DEPTH}")
    while True:  # a group: fields up to the matching end
        inner, position = _read_tag(data, position)
        if inner == tag + 1:
            return position
        position = _skip(data, position, inner, depth - 1, budget)


class _StringEntry(Message):
    """What a map<string, string> is on the wire: a repeated message."""

    NAME = "map entry"
    key: str = string(1)
    value: str = string(2)
