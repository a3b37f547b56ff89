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


# What a device or an interface has that a file with a line for each does not list.
_UNLISTED = {
    "io.max": "rbps=max wbps=max riops=max wiops=max",
    "io.latency": "target=0",
    "rdma.max": "hca_handle=max hca_object=max",
}
_BY_NAME = ("rdma.max", "net_prio.ifpriomap")  # other such files go by "major:minor"
NO_LIMIT = 1 << 60  # v1 gives "no limit" as the largest whole number of pages


def former_value(write: Write, content: str) -> str:
    """What to write to the file of `write` so that it has again what it had when `content` was read from it.

    For a file with a line for each device that is the line of the one that `write` is about.
    """
    lines = content.splitlines()
    key, blank, _value = write.value.partition(" ")
    if write.file == "memory.oom_control":  # of v1: "oom_kill_disable N", and what is not to be set
        return "".join(line.rpartition(" ")[2] for line in lines if line.startswith("oom_kill_disable "))
    if blank and (":" in key or write.file in _BY_NAME):
        listed = (line for line in lines if line.startswith(f"{key} "))
        return next(listed, f"{key} {_UNLISTED.get(write.file, '0')}")
    value = content.strip()
    if value.startswith("root invalid"):  # cpuset.cpus.partition gives the reason along
        return "root"
    if write.file.endswith("_in_bytes") and value.isdecimal() and int(value) >= NO_LIMIT:
        return "-1"
    return value or "\n"  # an empty cpuset


def check_name(field: str, name: str) -> None:
    """ConfigError unless `name` is plain letters, digits and `_.-`, so that no path or line can grow out of it."""
    if not name or not _NAME_BYTES.issuperset(name) or ".." in name or name.startswith("."):
        raise ConfigError(field, f"{name[:100]!r} is not a plain name")


def check_list(field: str, value: str | None) -> None:
    """ConfigError unless `value` is absent or made of what a list of numbers ("0-3,7") is."""
    if value and not _LIST_BYTES.issuperset(value):
        raise ConfigError(field, f"{value[:100]!r} is not a list such as 0-3,7")
