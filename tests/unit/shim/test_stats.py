"""Counters on their way from the runtime's records to containerd's messages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from runtime.cgroups import stats_v1, stats_v2
from shim.api import metrics_v1, metrics_v2
from shim.api.codec import decode, encode
from shim.api.message import MESSAGE, MESSAGES
from shim.api.types import unpack
from shim.stats import convert, kills_only


def test_nested_and_repeated_parts_are_carried_over() -> None:
    counters = stats_v1.Metrics(
        pids=stats_v1.PidsStat(current=3, limit=10),
        memory=stats_v1.MemoryStat(cache=5, usage=stats_v1.MemoryEntry(limit=100, usage=7)),
        hugetlb=(stats_v1.HugetlbStat(usage=1, max=2, failcnt=0, pagesize="2MB"),),
    )
    message = decode(metrics_v1.Metrics, encode(convert(metrics_v1.Metrics, counters)))
    assert message.pids is not None
    assert message.memory is not None
    assert message.memory.usage is not None
    assert (message.pids.current, message.pids.limit, message.memory.cache) == (3, 10, 5)
    assert (message.memory.usage.limit, message.memory.usage.usage) == (100, 7)
    assert [page.pagesize for page in message.hugetlb] == ["2MB"]
    assert message.cpu is None


def test_every_counter_that_the_runtime_has_is_in_the_message() -> None:
    """A field that is spelled differently on the two sides would be lost without a word."""
    for module, messages in ((stats_v1, metrics_v1), (stats_v2, metrics_v2)):
        for name, record in vars(module).items():
            fields = getattr(record, "FIELD_NAMES", ())
            if isinstance(record, type) and record.__module__ == module.__name__ and fields:
                known = {field.name for field in getattr(messages, name).FIELDS}
                assert set(fields) <= known, name


def test_parts_are_converted_by_the_kinds_of_the_message() -> None:
    kinds = {field.kind for field in metrics_v2.Metrics.FIELDS}
    assert kinds <= {MESSAGE, MESSAGES}


def test_of_a_cgroup_that_is_gone_the_kills_are_told_where_containerd_looks_for_them() -> None:
    """internal/cri/server/events.go of 2.3: memory_events of cgroups.v2, memory_oom_control of cgroups.v1."""
    layout: Any = SimpleNamespace(mode="unified")
    two = unpack(kills_only(layout, 3), metrics_v2.Metrics)
    assert two.memory_events is not None
    assert two.memory_events.oom_kill == 3
    layout.mode = "hybrid"
    one = unpack(kills_only(layout, 3), metrics_v1.Metrics)
    assert one.memory_oom_control is not None
    assert one.memory_oom_control.oom_kill == 3
