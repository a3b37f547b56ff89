"""What a protobuf message is here: a frozen record whose fields also have a number and a wire type.

    class StartRequest(Message):
        NAME = "containerd.task.v2.StartRequest"
        id: str = string(1)
        exec_id: str = string(2)

Each class carries the tables that `codec` works from, made once when the class is. Absent fields hold
proto3's defaults: zero, empty, or None for a message. Classes are kept small on purpose: there are
about a hundred, and every fork of a shim copies the page tables of what they take.
"""

# ruff: noqa: D103 - the declarations below say all there is to say in one line each
from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, ClassVar, TypeVar, dataclass_transform

    M = TypeVar("M", bound="Message")
else:

    def dataclass_transform(**_arguments: Any) -> Callable[[type], type]:
        return lambda decorated: decorated


# Kinds of field, in groups that the codec tells apart by comparing.
STRING = 1  # from here on behind a length …
BYTES = 2
STRING_MAP = 3
MESSAGE = 4  # … from here on read in parts and finished when their message is …
STRINGS = 5
MESSAGES = 6
UINT64S = 7
INT64S = 8
ENUMS = 9
UINT32 = 10  # … and from here on one number.
BOOL = 11
UINT64 = 12
INT64 = 13
INT32 = 14
ENUM = 15
DOUBLE = 16

# Wire types, the low three bits of a tag.
WIRE_VARINT = 0
WIRE_FIXED64 = 1
WIRE_DELIMITED = 2

_DEFAULTS = {
    STRING: "",
    BYTES: b"",
    STRING_MAP: type(type.__dict__)({}),  # a read-only view, because all messages share it
    MESSAGE: None,
    STRINGS: (),
    MESSAGES: (),
    UINT64S: (),
    INT64S: (),
    ENUMS: (),
    BOOL: False,
    DOUBLE: 0.0,
}  # anything else: 0

_tags: dict[bytes, bytes] = {}  # one object for each distinct tag, of which there are few


class Field:
    """One field of a message: its number and kind, and what both directions of the codec need of it.

    `of` is the class of a message field, `tag` what precedes the field when it is written. A field with
    `presence` is written whenever it is not None, any other only when it differs from its default.
    """

    __slots__ = ("default", "kind", "name", "number", "of", "presence", "tag")

    def __init__(self, number: int, kind: int, of: Any = None, presence: bool = False) -> None:
        self.number = number
        self.kind = kind
        self.of = of
        self.presence = presence
        self.name = ""
        self.default: Any = None if presence else _DEFAULTS.get(kind, 0)
        tag = _varint(number << 3 | _wire_type(kind))
        self.tag = _tags.setdefault(tag, tag)


def _wire_type(kind: int) -> int:
    if kind < UINT32:  # repeated numbers too: they are written packed
        return WIRE_DELIMITED
    return WIRE_FIXED64 if kind == DOUBLE else WIRE_VARINT


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


@dataclass_transform(frozen_default=True)
class MessageType(type):
    """Turns the declarations in a class body into slots and tables."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> MessageType:
        """The class; what the interpreter notes about a body for debuggers is left out."""
        fields = tuple([value for value in namespace.values() if isinstance(value, Field)])
        body = {key: value for key, value in namespace.items() if key not in _LEFT_OUT}
        for key, value in namespace.items():
            if isinstance(value, Field):
                value.name = key
                del body[key]
        body["__slots__"] = tuple([field.name for field in fields])
        body["FIELDS"] = fields
        body["BY_TAG"] = _by_tag(fields)
        return super().__new__(mcs, name, bases, body)


_LEFT_OUT = ("__annotations__", "__static_attributes__", "__firstlineno__")


def _by_tag(fields: Sequence[Field]) -> dict[int, Field]:
    """Fields by their tag as a number; a repeated number also by the tag it has when it is not packed."""
    found = {field.number << 3 | _wire_type(field.kind): field for field in fields}
    found.update({field.number << 3: field for field in fields if field.kind in (UINT64S, INT64S, ENUMS)})
    return found


class Message(metaclass=MessageType):
    """Base of all messages. `NAME` is the full protobuf name, which is also the type URL in an Any.

    `FIELDS` stands in the order of the declarations, `BY_TAG` maps what precedes a field to it. Values
    are given in order or by name. Only the type checker holds a message immutable.
    """

    NAME: ClassVar[str] = ""
    FIELDS: ClassVar[tuple[Field, ...]]
    BY_TAG: ClassVar[dict[int, Field]]

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self.FIELDS
        for field, value in zip(fields, values, strict=False):
            setattr(self, field.name, value)
        for field in fields[len(values) :]:
            setattr(self, field.name, named.pop(field.name, field.default))
        if named or len(values) > len(fields):
            raise TypeError(f"{type(self).__name__} has no field for {', '.join(named) or 'so many values'}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, field.name) == getattr(other, field.name) for field in self.FIELDS)

    def __repr__(self) -> str:
        values = [(field.name, getattr(self, field.name), field.default) for field in self.FIELDS]
        shown = ", ".join(f"{name}={value!r}" for name, value, default in values if value != default)
        return f"{type(self).__name__}({shown})"


if TYPE_CHECKING:
    # To the type checker a declaration is its default value.
    def string(number: int) -> str: ...
    def optional_string(number: int) -> str | None: ...
    def bytes_(number: int) -> bytes: ...
    def bool_(number: int) -> bool: ...
    def uint32(number: int) -> int: ...
    def uint64(number: int) -> int: ...
    def int32(number: int) -> int: ...
    def int64(number: int) -> int: ...
    def double(number: int) -> float: ...
    def enum(number: int) -> int: ...
    def message(number: int, of: type[M]) -> M | None: ...
    def strings(number: int) -> Sequence[str]: ...
    def messages(number: int, of: type[M]) -> Sequence[M]: ...
    def uint64s(number: int) -> Sequence[int]: ...
    def int64s(number: int) -> Sequence[int]: ...
    def enums(number: int) -> Sequence[int]: ...
    def string_map(number: int) -> Mapping[str, str]: ...
else:

    def _declaration(kind: int, presence: bool = False) -> Callable[..., Field]:
        def declare(number: int, of: type[Message] | None = None) -> Field:
            return Field(number, kind, of, presence)

        return declare

    string = _declaration(STRING)
    optional_string = _declaration(STRING, presence=True)
    bytes_ = _declaration(BYTES)
    bool_ = _declaration(BOOL)
    uint32 = _declaration(UINT32)
    uint64 = _declaration(UINT64)
    int32 = _declaration(INT32)
    int64 = _declaration(INT64)
    double = _declaration(DOUBLE)
    enum = _declaration(ENUM)
    message = _declaration(MESSAGE)
    strings = _declaration(STRINGS)
    messages = _declaration(MESSAGES)
    uint64s = _declaration(UINT64S)
    int64s = _declaration(INT64S)
    enums = _declaration(ENUMS)
    string_map = _declaration(STRING_MAP)
