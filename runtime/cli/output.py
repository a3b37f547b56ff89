"""Standard output: text, and JSON in the layouts in which Go's encoding/json writes it."""

from __future__ import annotations

import os

from runtime.spec.json import dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SPEC_VERSION = "1.3.0"  # of the OCI runtime specification that we keep to


def say(text: str) -> None:
    """Write `text` to standard output, all of it. OSError, BrokenPipeError when nobody reads any more."""
    view = memoryview(text.encode("utf-8", "surrogateescape"))
    while view:
        view = view[os.write(1, view) :]


def compact(value: Any) -> str:
    """`value` as one line of JSON."""
    return dump(value).decode()


def indented(value: Any, indent: str, start: str = "") -> str:
    """`value` as json.MarshalIndent lays it out; empty lists and objects stay on their line."""
    inner = start + indent
    if type(value) is dict and value:
        lines = [f"{inner}{compact(key)}: {indented(each, indent, inner)}" for key, each in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{start}}}"
    if type(value) in (list, tuple) and value:
        lines = [inner + indented(each, indent, inner) for each in value]
        return "[\n" + ",\n".join(lines) + f"\n{start}]"
    return compact(value)
