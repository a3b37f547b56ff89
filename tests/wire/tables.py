"""Tables of protocol facts: what the packages we speak consist of, element by element.

Columns: kind, full_name, field_or_value_or_method, number, label, type, oneof, deprecated. A message or an
enum has one row that declares it and one for each field or value. Of an rpc the label is what streams
(`client`, `server`), type and oneof are its input and output.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

FACTS = Path(__file__).parent / "facts"


class Row(NamedTuple):
    """One row of a package's table."""

    kind: str
    full_name: str
    element: str
    number: str
    label: str
    type: str
    oneof: str
    deprecated: str


def _table(name: str) -> list[list[str]]:
    with (FACTS / f"{name}.tsv").open(newline="") as table:
        return list(csv.reader(table, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]


PACKAGES = sorted(path.stem for path in FACTS.glob("*.tsv") if path.stem != "constants")
SHIM_PACKAGES = [package for package in PACKAGES if package != "runtime.v1"]


@cache
def rows(package: str) -> tuple[Row, ...]:
    """All rows of a package's table."""
    return tuple(Row(*row) for row in _table(package))


def fields(message: str) -> set[Row]:
    """The rows of a message's fields; KeyError if no table declares it."""
    found = [row for package in PACKAGES for row in rows(package) if row[:2] == ("message", message)]
    if not found:
        raise KeyError(message)
    return {row for row in found if row.element}


def enum_values(enum: str) -> dict[str, int]:
    """The values of an enum by name; KeyError if no table declares it."""
    found = [row for package in PACKAGES for row in rows(package) if row[:2] == ("enum", enum)]
    if not found:
        raise KeyError(enum)
    return {row.element: int(row.number) for row in found if row.element}


def is_enum(name: str) -> bool:
    """Whether a type is an enum."""
    return any(row.kind == "enum" and row.full_name == name for package in PACKAGES for row in rows(package))


def methods(service: str) -> dict[str, tuple[str, str]]:
    """The methods of a service: name to input and output."""
    return {
        row.element: (row.type, row.oneof)
        for package in PACKAGES
        for row in rows(package)
        if row.kind == "rpc" and row.full_name == service
    }


def constants(group: str) -> dict[str, str]:
    """The values of a group of constants by name."""
    return {name: value for found, name, value, _source in _table("constants") if found == group}
