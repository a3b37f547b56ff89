"""Counters of a container on a unified machine, in the shape of containerd's io.containerd.cgroups.v2.Metrics.

Records and fields have the names of that message, so that a shim copies them one by one. What is not counted
here is None or 0, and "max" is the largest 64-bit number, as in containerd. `network` belongs to the network
namespace.
"""

from __future__ import annotations

import errno

from runtime.cgroups.files import parse_pairs, read_file
from runtime.cgroups.stats_v1 import RdmaStat, number, page_sizes, rdma, text
from runtime.record import Record

UNLIMITED = (1 << 64) - 1


class PSIData(Record):
    """Pressure: per cent of the last 10, 60 and 300 s, and microseconds in all."""

    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0
    total: int = 0


class PSIStats(Record):
    """Time in which some tasks, or all, were held up."""

    some: PSIData | None = None
    full: PSIData | None = None


class PidsStat(Record):
    """Tasks."""

    current: int
    limit: int


class CPUStat(Record):
    """cpu.stat."""

    usage_usec: int = 0
    user_usec: int = 0
    system_usec: int = 0
    nr_periods: int = 0
    nr_throttled: int = 0
    throttled_usec: int = 0
    psi: PSIStats | None = None
    nr_bursts: int = 0
    burst_usec: int = 0


class MemoryStat(Record):
    """memory.stat, and the files beside it; bytes and pages as the kernel gives them."""

    anon: int = 0
    file: int = 0
    kernel_stack: int = 0
    slab: int = 0
    sock: int = 0
    shmem: int = 0
    file_mapped: int = 0
    file_dirty: int = 0
    file_writeback: int = 0
    anon_thp: int = 0
    inactive_anon: int = 0
    active_anon: int = 0
    inactive_file: int = 0
    active_file: int = 0
    unevictable: int = 0
    slab_reclaimable: int = 0
    slab_unreclaimable: int = 0
    pgfault: int = 0
    pgmajfault: int = 0
    workingset_refault: int = 0
    workingset_activate: int = 0
    workingset_nodereclaim: int = 0
    pgrefill: int = 0
    pgscan: int = 0
    pgsteal: int = 0
    pgactivate: int = 0
    pgdeactivate: int = 0
    pglazyfree: int = 0
    pglazyfreed: int = 0
    thp_fault_alloc: int = 0
    thp_collapse_alloc: int = 0
    usage: int = 0
    usage_limit: int = 0
    swap_usage: int = 0
    swap_limit: int = 0
    max_usage: int = 0
    swap_max_usage: int = 0
    psi: PSIStats | None = None


class MemoryEvents(Record):
    """memory.events."""

    low: int = 0
    high: int = 0
    max: int = 0
    oom: int = 0
    oom_kill: int = 0
    oom_group_kill: int = 0


class IOEntry(Record):
    """io.stat of one block device."""

    major: int
    minor: int
    rbytes: int
    wbytes: int
    rios: int
    wios: int


class IOStat(Record):
    """Block devices, and the pressure on them."""

    usage: tuple[IOEntry, ...] = ()
    psi: PSIStats | None = None


class HugeTlbStat(Record):
    """Huge pages of one size; bytes."""

    current: int
    max: int
    pagesize: str
    failcnt: int


class Metrics(Record):
    """All of it."""

    pids: PidsStat | None = None
    cpu: CPUStat | None = None
    memory: MemoryStat | None = None
    rdma: RdmaStat | None = None
    io: IOStat | None = None
    hugetlb: tuple[HugeTlbStat, ...] = ()
    memory_events: MemoryEvents | None = None


_BESIDE_STAT = ("usage", "usage_limit", "swap_usage", "swap_limit", "max_usage", "swap_max_usage", "psi")
_MEMORY_FIELDS = tuple([field for field in MemoryStat.FIELD_NAMES if field not in _BESIDE_STAT])
_CPU_FIELDS = tuple([field for field in CPUStat.FIELD_NAMES if field != "psi"])
_IO_KEYS = ("rbytes", "wbytes", "rios", "wios")


def read(directory: str) -> Metrics:
    """Read the counters of the cgroup `directory`; OSError. A file that is not there counts as 0."""
    return Metrics(
        pids=PidsStat(number(f"{directory}/pids.current"), number(f"{directory}/pids.max", UNLIMITED)),
        cpu=_cpu(directory),
        memory=_memory(directory),
        rdma=rdma(directory),
        io=IOStat(_io(directory), _pressure(f"{directory}/io.pressure")),
        hugetlb=tuple([_hugetlb(directory, size) for size in page_sizes()]),
        memory_events=_memory_events(directory),
    )


def _cpu(directory: str) -> CPUStat:
    counts = parse_pairs(text(f"{directory}/cpu.stat"))
    plain = {field: counts.get(field, 0) for field in _CPU_FIELDS}
    return CPUStat(**plain, psi=_pressure(f"{directory}/cpu.pressure"))


def _memory(directory: str) -> MemoryStat:
    counts = parse_pairs(text(f"{directory}/memory.stat"))
    # Linux 5.9 tells anonymous and file pages apart here; the message still has one number.
    for name in ("workingset_refault", "workingset_activate"):
        if name not in counts:
            counts[name] = counts.get(f"{name}_anon", 0) + counts.get(f"{name}_file", 0)
    plain = {field: counts.get(field, 0) for field in _MEMORY_FIELDS}
    prefix = f"{directory}/memory"
    return MemoryStat(
        **plain,
        usage=number(f"{prefix}.current"),
        usage_limit=number(f"{prefix}.max", UNLIMITED),
        swap_usage=number(f"{prefix}.swap.current"),
        swap_limit=number(f"{prefix}.swap.max", UNLIMITED),
        max_usage=number(f"{prefix}.peak"),
        swap_max_usage=number(f"{prefix}.swap.peak"),
        psi=_pressure(f"{prefix}.pressure"),
    )


def _memory_events(directory: str) -> MemoryEvents | None:
    counts = parse_pairs(text(f"{directory}/memory.events"))
    return MemoryEvents(*[counts.get(name, 0) for name in MemoryEvents.FIELD_NAMES]) if counts else None


def _io(directory: str) -> tuple[IOEntry, ...]:
    """Lines "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 …"; the kernel may write a device that it has nothing of."""
    entries = []
    for line in text(f"{directory}/io.stat").splitlines():
        device, *pairs = line.split()
        major, _colon, minor = device.partition(":")
        if not pairs or not major.isdecimal() or not minor.isdecimal():
            continue
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        counts = [int(values[key]) if values.get(key, "").isdecimal() else 0 for key in _IO_KEYS]
        entries.append(IOEntry(int(major), int(minor), *counts))
    return tuple(entries)


def _hugetlb(directory: str, size: str) -> HugeTlbStat:
    prefix = f"{directory}/hugetlb.{size}"
    failures = parse_pairs(text(f"{prefix}.events")).get("max", 0)
    return HugeTlbStat(number(f"{prefix}.current"), number(f"{prefix}.max", UNLIMITED), size, failures)


def _pressure(file: str) -> PSIStats | None:
    """Lines "some avg10=0.00 avg60=0.00 avg300=0.00 total=0"; None in a kernel without, or with psi=0."""
    try:
        lines = read_file(file).splitlines()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENOTSUP):
            return None
        raise
    found: dict[str, PSIData] = {}
    for line in lines:
        kind, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        averages = [float(values.get(name, 0)) for name in ("avg10", "avg60", "avg300")]
        found[kind] = PSIData(averages[0], averages[1], averages[2], int(values.get("total", 0)))
    return PSIStats(found.get("some"), found.get("full"))
