"""Protobuf's own classes for the messages a shim speaks, and what their descriptors say.

They live in a pool of their own: google.rpc.Status is one of them, and other libraries in the same process
register that name too.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.wire.tables import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

DESCRIPTORS = Path(__file__).parent / "generated" / "shim.binpb"

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in _Field.Type.items()
    if name not in ("TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP")
}


@cache
def descriptors() -> descriptor_pb2.FileDescriptorSet:
    """The compiled protos, with those of protobuf's own that they import."""
    return descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptors().file:
        pool.Add(file)
    return pool


@cache
def message_class(full_name: str) -> type[Message]:
    """Protobuf's class for a message of the shim's packages; KeyError if there is none."""
    descriptor = _pool().FindMessageTypeByName(full_name)
    made: type[Message] = message_factory.GetMessageClass(descriptor)
    return made


def rows_of(file: descriptor_pb2.FileDescriptorProto) -> Iterator[Row]:
    """What a compiled .proto file declares, in the form of the tables of facts."""
    for enum in file.enum_type:
        yield from _enum_rows(file.package, enum)
    for message in file.message_type:
        yield from _message_rows(file.package, message)
    for service in file.service:
        name = f"{file.package}.{service.name}"
        for method in service.method:
            streams = [side for side in ("client", "server") if getattr(method, f"{side}_streaming")]
            types = (method.input_type[1:], method.output_type[1:])
            deprecated = str(int(method.options.deprecated))
            yield Row("rpc", name, method.name, "", "/".join(streams), *types, deprecated)


def _enum_rows(scope: str, enum: descriptor_pb2.EnumDescriptorProto) -> Iterator[Row]:
    name = f"{scope}.{enum.name}"
    yield Row("enum", name, "", "", "", "", "", str(int(enum.options.deprecated)))
    for value in enum.value:
        deprecated = str(int(value.options.deprecated))
        yield Row("enum", name, value.name, str(value.number), "", "", "", deprecated)


def _message_rows(scope: str, message: descriptor_pb2.DescriptorProto) -> Iterator[Row]:
    name = f"{scope}.{message.name}"
    yield Row("message", name, "", "", "", "", "", str(int(message.options.deprecated)))
    entries = {f".{name}.{nested.name}": nested for nested in message.nested_type if nested.options.map_entry}
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        label = "repeated" if field.label == _Field.LABEL_REPEATED else "optional"
        type_ = _type_of(field)
        if field.type_name in entries:
            label, type_ = (
                "map",
                f"map<{','.join(_type_of(part) for part in entries[field.type_name].field)}>",
            )
        deprecated = str(int(field.options.deprecated))
        yield Row("message", name, field.name, str(field.number), label, type_, oneof, deprecated)
    for nested in message.nested_type:
        if not nested.options.map_entry:
            yield from _message_rows(name, nested)
    for enum in message.enum_type:
        yield from _enum_rows(name, enum)


def _type_of(field: Any) -> str:
    return _SCALARS.get(field.type) or field.type_name[1:]
