"""Frozen, slotted, typed records without the cost of `dataclasses`.

`dataclasses` pulls in inspect, ast, dis and re: 2 MB of anonymous memory that every shim would have
to map again after its fork. This module does the part we use: fields from annotations, defaults,
positional or keyword construction, equality, repr and `replace`. Immutability is held by the type
checker (`frozen_default`), not at run time: a guard in `__setattr__` would double what a record costs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, TypeVar, dataclass_transform

    R = TypeVar("R", bound="Record")
else:

    def dataclass_transform(**_arguments: object) -> object:  # noqa: D103 -- stands in for typing's
        return lambda decorated: decorated


# What the interpreter notes about a class body for tools; a shim has some 150 of these classes.
_LEFT_OUT = ("__annotations__", "__static_attributes__", "__firstlineno__")
_NO_DEFAULTS: dict[str, Any] = {}


def _is_class_variable(annotation: object) -> bool:
    return isinstance(annotation, str) and annotation.startswith("ClassVar")


@dataclass_transform(frozen_default=True)
class RecordType(type):
    """Makes `__slots__`, `__match_args__` and the tables of fields from a class body's annotations."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> RecordType:
        """The class, with what its body left out."""
        annotations = namespace.get("__annotations__", {})
        own = tuple([field for field in annotations if not _is_class_variable(annotations[field])])
        inherited: tuple[str, ...] = ()
        defaults: dict[str, Any] = {}
        for base in bases:
            inherited += getattr(base, "FIELD_NAMES", ())
            defaults |= getattr(base, "FIELD_DEFAULTS", {})
        for field in own:
            if field in namespace:
                defaults[field] = namespace.pop(field)
        fields = inherited + own
        for noted in _LEFT_OUT:
            namespace.pop(noted, None)
        namespace["__slots__"] = own
        namespace["__match_args__"] = fields
        namespace["FIELD_NAMES"] = fields
        namespace["FIELD_DEFAULTS"] = defaults or _NO_DEFAULTS
        return super().__new__(mcs, name, bases, namespace)


class Record(metaclass=RecordType):
    """Base of all frozen data. A subclass lists its fields as annotations; a value is a default.

    Defaults are shared between instances, so only immutable ones are allowed (None, numbers, text, tuples).
    """

    FIELD_NAMES: ClassVar[tuple[str, ...]]
    FIELD_DEFAULTS: ClassVar[dict[str, Any]]

    # One for all classes: an `__init__` compiled for each, as dataclasses do it, is 1.5 KB a class and no faster
    # in what a shim does.
    def __init__(self, *values: Any, **named: Any) -> None:
        names = self.FIELD_NAMES
        if named or len(values) != len(names):
            values = self._completed(values, named)
        for name, value in zip(names, values, strict=True):
            setattr(self, name, value)

    def _completed(self, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        names, defaults = self.FIELD_NAMES, self.FIELD_DEFAULTS
        rest = []
        for name in names[len(values) :]:
            if name not in named and name not in defaults:
                raise TypeError(f"{type(self).__name__} needs {name}")
            rest.append(named.pop(name) if name in named else defaults[name])
        if named or len(values) > len(names):
            raise TypeError(f"{type(self).__name__} has no field for {', '.join(named) or 'so many values'}")
        return (*values, *rest)

    def __repr__(self) -> str:
        fields = ", ".join(f"{field}={getattr(self, field)!r}" for field in self.FIELD_NAMES)
        return f"{type(self).__name__}({fields})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, field) == getattr(other, field) for field in self.FIELD_NAMES)

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, field) for field in self.FIELD_NAMES)))


def replace(record: R, **changes: Any) -> R:
    """A copy of `record` with `changes` applied. TypeError if a name is not one of its fields."""
    values = {field: getattr(record, field) for field in record.FIELD_NAMES}
    values.update(changes)
    return type(record)(**values)


def as_dict(record: Record) -> dict[str, Any]:
    """The fields of `record` by name, one level deep."""
    return {field: getattr(record, field) for field in record.FIELD_NAMES}
