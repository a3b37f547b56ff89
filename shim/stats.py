"""Counters of a container as the message that containerd hands to kubelet.

The runtime's records have the names of the messages' fields, so they are carried over by the messages'
own tables; nothing is computed here. Which of the two messages it is follows the machine's cgroups.
"""

from __future__ import annotations

from runtime.cgroups import counters, stats_v2
from runtime.cgroups.layout import UNIFIED
from shim.api import metrics_v1, metrics_v2
from shim.api.message import MESSAGE, MESSAGES
from shim.api.types import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from runtime.cgroups.cgroup import Cgroup
    from runtime.cgroups.layout import Layout
    from shim.api import types
    from shim.api.message import Message

    M = TypeVar("M", bound=Message)


def read(cgroup: Cgroup) -> types.Any:
    """What `cgroup` has used, in an Any of cgroups.v1.Metrics or cgroups.v2.Metrics."""
    counted = counters.read(cgroup)
    if isinstance(counted, stats_v2.Metrics):
        return pack(convert(metrics_v2.Metrics, counted))
    return pack(convert(metrics_v1.Metrics, counted))


def kills_only(layout: Layout, count: int) -> types.Any:
    """What is left to say of a cgroup that has gone before it was read: how many were killed for want of memory.

    containerd asks for nothing else when a container has ended (systemd removes the cgroup of a scope as soon
    as it is empty).
    """
    if layout.mode == UNIFIED:
        return pack(metrics_v2.Metrics(memory_events=metrics_v2.MemoryEvents(oom_kill=count)))
    return pack(metrics_v1.Metrics(memory_oom_control=metrics_v1.MemoryOomControl(oom_kill=count)))


def convert(kind: type[M], record: object) -> M:
    """A message of `kind` with every field that `record` has and that is not None there."""
    values: dict[str, Any] = {}
    for field in kind.FIELDS:
        value = getattr(record, field.name, None)
        if value is None:
            continue
        if field.kind == MESSAGE:
            value = convert(field.of, value)
        elif field.kind == MESSAGES:
            value = tuple([convert(field.of, one) for one in value])
        values[field.name] = value
    return kind(**values)
