"""Checks that turn plain JSON values into typed ones, and say where in the text one of them failed.

A check takes a value and returns what the record will hold, or raises `Wrong`. Scalars, lists, maps and
records are built from each other; `load` puts them together into the tables of the OCI specification.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Check = Callable[[Any], Any]
    Fields = dict[str, tuple[str, Check]]


class Wrong(Exception):
    """A value that is not allowed; the path grows from the inside out while it passes upwards."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def below(self, segment: str) -> Wrong:
        """This, one level up: `segment` is a key or "[index]"."""
        joint = "." if self.path and not self.path.startswith("[") else ""
        self.path = f"{segment}{joint}{self.path}"
        return self


# ---- scalars -----------------------------------------------------------------------------------

_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a fraction",
    type(None): "null",
}


def shown(text: str) -> str:
    """`text` quoted and cut, for a message."""
    return repr(text) if len(text) <= 100 else f"{text[:100]!r}…"


def named(path: str) -> str:
    """A path or a name for a message: as it is while it is short and printable, else quoted and cut."""
    return path if path.isprintable() and len(path) <= 300 else shown(path)


def _must_be(kind: str, value: object) -> Wrong:
    return Wrong(f"must be {kind}, not {_KINDS[type(value)]}")


def text(value: Any) -> str:
    """A string, which may be empty."""
    if type(value) is not str:
        raise _must_be("a string", value)
    return value


def filled(value: Any) -> str:
    """A string that is not empty."""
    made = text(value)
    if not made:
        raise Wrong("must not be empty")
    return made


def optional(value: Any) -> str | None:
    """A string; an empty one counts as absent."""
    return text(value) or None


def absolute(value: Any) -> str:
    """An absolute path."""
    made = text(value)
    if not made.startswith("/"):
        raise Wrong("must be an absolute path" if made else "must not be empty")
    return made


def optional_absolute(value: Any) -> str | None:
    """An absolute path; an empty one counts as absent."""
    return absolute(value) if value != "" else None


def file_name(value: Any) -> str:
    """One component of a path: what is joined to a directory must not lead out of it."""
    made = filled(value)
    if "/" in made or made in (".", ".."):
        raise Wrong(f"{shown(made)} is not a file name")
    return made


def flag(value: Any) -> bool:
    """True or false; 0 and 1 are not."""
    if type(value) is not bool:
        raise _must_be("true or false", value)
    return value


def integer(least: int, most: int) -> Check:
    """An integer within bounds; neither a fraction (1.0) nor a boolean is one."""

    def check(value: Any) -> int:
        if type(value) is not int:
            raise _must_be("an integer", value)
        if not least <= value <= most:
            raise Wrong(f"out of range: it must be {least} to {most}")
        return value

    return check


def one_of(*allowed: str) -> Check:
    """One of a few words."""

    def check(value: Any) -> str:
        made = text(value)
        if made not in allowed:
            raise Wrong(f"{shown(made)} is none of {', '.join(allowed)}")
        return made

    return check


u16 = integer(0, (1 << 16) - 1)
u32 = integer(0, (1 << 32) - 1)
u64 = integer(0, (1 << 64) - 1)
i32 = integer(-(1 << 31), (1 << 31) - 1)
i64 = integer(-(1 << 63), (1 << 63) - 1)
numeric_id = integer(0, (1 << 32) - 2)  # to the kernel (uid_t)-1 means "leave it as it is"


# ---- lists, maps, records ----------------------------------------------------------------------


def texts(value: Any) -> tuple[str, ...]:
    """A list of strings."""
    if type(value) is not list:
        raise _must_be("a list", value)
    for index, each in enumerate(value):
        if type(each) is not str:
            raise _must_be("a string", each).below(f"[{index}]")
    return tuple(value)


def list_of(check: Check) -> Check:
    """A list, each of whose values passes `check`."""

    def check_list(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _must_be("a list", value)
        made: list[Any] = []
        try:
            for each in value:
                made.append(check(each))
        except Wrong as wrong:
            raise wrong.below(f"[{len(made)}]") from None
        return tuple(made)

    return check_list


def map_of(check: Check, check_key: Check = text) -> Check:
    """An object whose keys are data: each key and each value passes its check. An empty one is None."""

    def check_map(value: Any) -> dict[str, Any] | None:
        if type(value) is not dict:
            raise _must_be("an object", value)
        made = {}
        for key, each in value.items():
            try:
                made[check_key(key)] = check(each)
            except Wrong as wrong:
                raise wrong.below(f"[{shown(key)}]") from None
        return made or None

    return check_map


def record(build: Callable[..., Any], fields: Fields, *needed: str, then: Check | None = None) -> Check:
    """An object that becomes a record: `fields` maps a JSON key to a field of `build` and the field's check.

    `needed` are the keys that must be there; `then` checks, and may replace, the finished record. A key in another
    letter case is the same key: to ignore "readOnly" would be to run with less than the config says. What is checked
    may be changed.
    """
    folded = {key.casefold(): key for key in fields}

    def check(value: Any) -> Any:
        if type(value) is not dict:
            raise _must_be("an object", value)
        if not value.keys() <= fields.keys():
            value = _respelled(value, folded)
        found = {}
        for key, each in value.items():
            if each is None:
                continue
            field, check_field = fields[key]
            try:
                found[field] = check_field(each)
            except Wrong as wrong:
                raise wrong.below(key) from None
        for key in needed:
            if fields[key][0] not in found:
                raise Wrong("is missing", key)
        made = build(**found)
        return made if then is None else then(made)

    return check


def _respelled(value: dict[str, Any], folded: dict[str, str]) -> dict[str, Any]:
    """What `folded` knows of an object, in its spelling; a key in two letter cases is one, as to Go's encoding/json."""
    made: dict[str, Any] = {}
    for key, each in value.items():
        known = folded.get(key.casefold())
        if known is None or each is None:
            continue
        made[known] = _merged(made[known], each) if known in made else each
    return made


def _merged(first: Any, second: Any) -> Any:
    """The later of two values; of two objects the first, which takes what the second has."""
    if type(first) is not dict or type(second) is not dict:
        return second
    for key, each in second.items():
        first[key] = _merged(first[key], each) if key in first else each
    return first


def same(**checks: Check) -> Fields:
    """Fields whose JSON key is spelled as ours is."""
    return {name: (name, check) for name, check in checks.items()}
