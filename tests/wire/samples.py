"""Messages with random contents for property tests, and how ours and protobuf's are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shim.api import message as declarations
from shim.api.message import Message
from tests.wire import oracle

if TYPE_CHECKING:
    from random import Random

    from google.protobuf.message import Message as ProtobufMessage

    from shim.api.message import Field

RANGES = {
    declarations.UINT32: (0, 2**32 - 1),
    declarations.UINT64: (0, 2**64 - 1),
    declarations.UINT64S: (0, 2**64 - 1),
    declarations.INT32: (-(2**31), 2**31 - 1),
    declarations.INT64: (-(2**63), 2**63 - 1),
    declarations.ENUM: (-(2**31), 2**31 - 1),
    declarations.ENUMS: (-(2**31), 2**31 - 1),
}
CHARACTERS = "aZ09-_/. \0\n\x7f\u00e9\u20ac\ud7ff\ue000\U0001f600"


def random_message(random: Random, kind: type[Message], density: float) -> Message:
    """A message with about that part of its fields set; 1 sets all of them, to other values than the defaults."""
    values = {
        field.name: _value(random, field, density) for field in kind.FIELDS if random.random() < density
    }
    return kind(**values)


def _value(random: Random, field: Field, density: float) -> Any:
    kind, count = field.kind, random.choice((1, 1, 2, 3, 200)) if density < 1 else 2
    if kind == declarations.STRING:
        return _text(random)
    if kind == declarations.BYTES:
        return random.randbytes(random.choice((1, 2, 127, 128, 300)))
    if kind == declarations.STRINGS:
        return tuple(_text(random) for _ in range(count))
    if kind == declarations.STRING_MAP:
        return {_text(random): _text(random) for _ in range(count)}
    if kind == declarations.MESSAGE:
        return random_message(random, field.of, density)
    if kind == declarations.MESSAGES:
        return tuple(random_message(random, field.of, density) for _ in range(min(count, 3)))
    if kind in (declarations.UINT64S, declarations.ENUMS):
        return tuple(_number(random, kind) for _ in range(count))
    if kind == declarations.BOOL:
        return True
    if kind == declarations.DOUBLE:
        return random.choice((1.5, -0.0, 5e-324, float("inf"), -1e300, 0.1))
    return _number(random, kind)


def _text(random: Random) -> str:
    return "".join(random.choices(CHARACTERS, k=random.choice((1, 2, 20, 63, 64, 127, 128, 500))))


def _number(random: Random, kind: int) -> int:
    lowest, highest = RANGES[kind]
    edges = (1, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**63, lowest or 1, highest, -1, -128)
    number = (
        random.choice(edges)
        if random.random() < 0.5
        else random.randint(lowest, highest) >> random.randrange(60)
    )
    return number if number and lowest <= number <= highest else 1


def to_protobuf(message: Message) -> ProtobufMessage:
    """Protobuf's own object with the same contents."""
    made = oracle.message_class(message.NAME)()
    for field in message.FIELDS:
        value = getattr(message, field.name)
        if value == field.default and repr(value) == repr(field.default):  # minus zero equals zero
            continue
        if field.kind == declarations.MESSAGE:
            getattr(made, field.name).CopyFrom(to_protobuf(value))
        elif field.kind == declarations.MESSAGES:
            getattr(made, field.name).extend(to_protobuf(element) for element in value)
        elif field.kind == declarations.STRING_MAP:
            getattr(made, field.name).update(value)
        elif field.kind in (declarations.STRINGS, declarations.UINT64S, declarations.ENUMS):
            getattr(made, field.name).extend(value)
        else:
            setattr(made, field.name, value)
    return made


def from_protobuf(kind: type[Message], made: ProtobufMessage) -> Message:
    """Our record with the contents of protobuf's object."""
    values: dict[str, Any] = {}
    for field in kind.FIELDS:
        value = getattr(made, field.name)
        if field.kind == declarations.MESSAGE or field.presence:
            if not made.HasField(field.name):
                continue
            value = value if field.presence else from_protobuf(field.of, value)
        elif field.kind == declarations.MESSAGES:
            value = tuple(from_protobuf(field.of, element) for element in value)
        elif field.kind == declarations.STRING_MAP:
            value = dict(value)
        elif field.kind in (declarations.STRINGS, declarations.UINT64S, declarations.ENUMS):
            value = tuple(value)
        values[field.name] = value
    return kind(**values)


def contents(value: Any) -> Any:
    """The contents of one of our records as plain data; floats as text, because NaN does not equal itself."""
    if isinstance(value, Message):
        return [contents(getattr(value, field.name)) for field in value.FIELDS]
    if isinstance(value, tuple):
        return [contents(element) for element in value]
    return repr(value) if isinstance(value, float) else value
