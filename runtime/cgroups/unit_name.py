"""What `linux.cgroupsPath` means to systemd: the names of units, and where slices lie. Pure."""

from __future__ import annotations

from runtime.errors import ConfigError
from runtime.record import Record

_WHERE = "linux.cgroupsPath"
_SLICE = ".slice"
_ROOT_SLICE = "-.slice"
_LONGEST_UNIT = 255  # UNIT_NAME_MAX
_UNIT_BYTES = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.\\-")


class Unit(Record):
    """A unit of systemd that is a container's cgroup: `name` ("pod-a.scope"), below `slice`, for the container `of`."""

    slice: str
    name: str
    of: str

    @property
    def is_slice(self) -> bool:
        """True for a container that asked for a slice, which systemd never puts a process into."""
        return self.name.endswith(_SLICE)

    @property
    def path(self) -> str:
        """Its directory below the manager's own cgroup, relative to it."""
        if self.is_slice:
            return expand_slice(self.name)
        parent = expand_slice(self.slice)
        return f"{parent}/{self.name}" if parent else self.name


def parse_unit(cgroups_path: str, container_id: str = "", rootless: bool = False) -> Unit:
    """`slice:prefix:name` as a unit: `prefix-name.scope`, or `name` where that is a slice already.

    Empty: slice is system.slice (user.slice for `rootless`), a prefix is left out, no path at all is
    `manor-CONTAINER_ID.scope`. "-" and "-.slice" are the root slice. ConfigError for another form.
    """
    default = "user.slice" if rootless else "system.slice"
    if not cgroups_path:
        return Unit(default, f"manor-{_escape(container_id)}.scope", container_id)
    parts = cgroups_path.split(":")
    if len(parts) != 3:
        raise ConfigError(
            _WHERE, f'the systemd cgroup driver expects "slice:prefix:name", got {cgroups_path[:300]!r}'
        )
    parent, prefix, name = parts
    parent = _ROOT_SLICE if parent == "-" else parent or default
    if name.endswith(_SLICE):
        unit = name
    else:
        unit = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    if not name or len(unit) > _LONGEST_UNIT or not _UNIT_BYTES.issuperset(unit) or unit.startswith("."):
        raise ConfigError(_WHERE, f"{cgroups_path[:300]!r} makes no name for a unit of systemd")
    for each in (parent, unit) if unit.endswith(_SLICE) else (parent,):
        try:
            expand_slice(each)
        except ValueError as error:
            raise ConfigError(_WHERE, f"{cgroups_path[:300]!r}: {error}") from error
    return Unit(parent, unit, name)


def expand_slice(name: str) -> str:
    """The directory of a slice: systemd nests them by their dashes, "a-b.slice" is "a.slice/a-b.slice".

    "" for the root slice "-.slice". ValueError for what is no slice.
    """
    if name == _ROOT_SLICE:
        return ""
    stem = name[: -len(_SLICE)]
    parts = stem.split("-")
    if not name.endswith(_SLICE) or len(name) > _LONGEST_UNIT or not all(parts):
        raise ValueError(f"{name!r} is no slice")
    if not _UNIT_BYTES.issuperset(name) or stem.startswith("."):
        raise ValueError(f"{name!r} is no slice")
    return "/".join("-".join(parts[: count + 1]) + _SLICE for count in range(len(parts)))


def _escape(name: str) -> str:
    """As systemd-escape(1): what a unit's name can't hold, as a backslash, x and two digits."""
    return "".join(each if each in _UNIT_BYTES else f"\\x{ord(each):02x}" for each in name)
