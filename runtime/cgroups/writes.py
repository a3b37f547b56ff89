"""The vocabulary of a resource plan: one write, what is in force before it, and names that are safe in a path.

Shared by the planners of both cgroup versions; nothing here reads or writes a file.
"""

from __future__ import annotations

from runtime.errors import ConfigError
from runtime.record import Record

PREFIX = "linux.resources"

_NAME_BYTES = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_LIST_BYTES = frozenset("0123456789,-")


class Write(Record):
    """Put `value` into `file` of the container's directory in `hierarchy`, because `field` of the config asks.

    Where `file` does not exist, `otherwise` is done in its place; without one it is an error, unless
    `optional` says that its absence means the same as the value.
    """

    hierarchy: str
    file: str
    value: str
    field: str
    otherwise: Write | None = None
    optional: bool = False


class Current(Record):
    """What a cgroup's limits are now, as far as the order of new writes depends on it. None is "no limit".

    `swap_limit` is memory and swap together, as v1 and the OCI spec count; times in microseconds.
    """

    memory_limit: int | None = None
    swap_limit: int | None = None
    memory_usage: int = 0
    cpu_quota: int = -1
    cpu_period: int = 100_000
    realtime_runtime: int = 0
    oom_killer_disabled: bool = False


FRESH = Current()


def check_name(field: str, name: str) -> None:
    """ConfigError unless `name` is plain letters, digits and `_.-`, so that no path or line can grow out of it."""
    if not name or not _NAME_BYTES.issuperset(name) or ".." in name or name.startswith("."):
        raise ConfigError(field, f"{name[:100]!r} is not a plain name")


def check_list(field: str, value: str | None) -> None:
    """ConfigError unless `value` is absent or made of what a list of numbers ("0-3,7") is."""
    if value and not _LIST_BYTES.issuperset(value):
        raise ConfigError(field, f"{value[:100]!r} is not a list such as 0-3,7")
