"""Counters of a container on cgroup v1 controllers, in the shape of containerd's io.containerd.cgroups.v1.Metrics.

Records and fields have the names of that message, so that a shim copies them one by one. A controller that
is not mounted leaves its part None. `network` is not here: it belongs to the network namespace.
"""

from __future__ import annotations

import os

from runtime.cgroups.files import parse_pairs, read_file
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.layout import Places

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

_HUGEPAGES = "/sys/kernel/mm/hugepages"


class HugetlbStat(Record):
    """Huge pages of one size; bytes."""

    usage: int
    max: int
    failcnt: int
    pagesize: str


class PidsStat(Record):
    """Tasks; a limit of 0 is none."""

    current: int
    limit: int


class CPUUsage(Record):
    """Nanoseconds."""

    total: int = 0
    kernel: int = 0
    user: int = 0
    per_cpu: tuple[int, ...] = ()


class Throttle(Record):
    """CFS bandwidth; `throttled_time` in nanoseconds."""

    periods: int = 0
    throttled_periods: int = 0
    throttled_time: int = 0


class CPUStat(Record):
    """CPU time and throttling."""

    usage: CPUUsage
    throttling: Throttle


class MemoryEntry(Record):
    """One counter of memory, in bytes."""

    limit: int = 0
    usage: int = 0
    max: int = 0
    failcnt: int = 0


class MemoryStat(Record):
    """memory.stat, and the four counters beside it; bytes and pages as the kernel gives them."""

    cache: int = 0
    rss: int = 0
    rss_huge: int = 0
    mapped_file: int = 0
    dirty: int = 0
    writeback: int = 0
    pg_pg_in: int = 0
    pg_pg_out: int = 0
    pg_fault: int = 0
    pg_maj_fault: int = 0
    inactive_anon: int = 0
    active_anon: int = 0
    inactive_file: int = 0
    active_file: int = 0
    unevictable: int = 0
    hierarchical_memory_limit: int = 0
    hierarchical_swap_limit: int = 0
    total_cache: int = 0
    total_rss: int = 0
    total_rss_huge: int = 0
    total_mapped_file: int = 0
    total_dirty: int = 0
    total_writeback: int = 0
    total_pg_pg_in: int = 0
    total_pg_pg_out: int = 0
    total_pg_fault: int = 0
    total_pg_maj_fault: int = 0
    total_inactive_anon: int = 0
    total_active_anon: int = 0
    total_inactive_file: int = 0
    total_active_file: int = 0
    total_unevictable: int = 0
    usage: MemoryEntry | None = None
    swap: MemoryEntry | None = None
    kernel: MemoryEntry | None = None
    kernel_tcp: MemoryEntry | None = None


class MemoryOomControl(Record):
    """memory.oom_control."""

    oom_kill_disable: int = 0
    under_oom: int = 0
    oom_kill: int = 0


class BlkIOEntry(Record):
    """One operation on one block device."""

    op: str
    device: str
    major: int
    minor: int
    value: int


class BlkIOStat(Record):
    """What the throttling layer counts, descendants included; the schedulers' own files are gone with them."""

    io_service_bytes_recursive: tuple[BlkIOEntry, ...] = ()
    io_serviced_recursive: tuple[BlkIOEntry, ...] = ()


class RdmaEntry(Record):
    """One RDMA device."""

    device: str
    hca_handles: int
    hca_objects: int


class RdmaStat(Record):
    """RDMA resources in use, and at most."""

    current: tuple[RdmaEntry, ...] = ()
    limit: tuple[RdmaEntry, ...] = ()


class Metrics(Record):
    """All of it."""

    hugetlb: tuple[HugetlbStat, ...] = ()
    pids: PidsStat | None = None
    cpu: CPUStat | None = None
    memory: MemoryStat | None = None
    blkio: BlkIOStat | None = None
    rdma: RdmaStat | None = None
    memory_oom_control: MemoryOomControl | None = None


# Names in the message that memory.stat spells otherwise.
_MEMORY_KEYS = {
    "pg_pg_in": "pgpgin",
    "pg_pg_out": "pgpgout",
    "pg_fault": "pgfault",
    "pg_maj_fault": "pgmajfault",
    "total_pg_pg_in": "total_pgpgin",
    "total_pg_pg_out": "total_pgpgout",
    "total_pg_fault": "total_pgfault",
    "total_pg_maj_fault": "total_pgmajfault",
    "hierarchical_swap_limit": "hierarchical_memsw_limit",
}
_MEMORY_FIELDS = tuple(
    [
        (field, _MEMORY_KEYS.get(field, field))
        for field in MemoryStat.FIELD_NAMES
        if field not in ("usage", "swap", "kernel", "kernel_tcp")
    ]
)


def read(places: Places) -> Metrics:
    """Read the counters in `places`; OSError if a directory is gone. A file that this kernel lacks counts as 0."""
    return Metrics(
        hugetlb=_hugetlb(*places["hugetlb"]) if "hugetlb" in places else (),
        pids=_pids(places["pids"][0]) if "pids" in places else None,
        cpu=_cpu(places),
        memory=_memory(places["memory"][0]) if "memory" in places else None,
        blkio=_block_io(places["blkio"][0]) if "blkio" in places else None,
        rdma=rdma(places["rdma"][0]) if "rdma" in places else None,
        memory_oom_control=_oom_control(places["memory"][0]) if "memory" in places else None,
    )


def text(file: str) -> str:
    """`file`, or "" where this kernel has none."""
    try:
        return read_file(file)
    except FileNotFoundError:
        return ""


def number(file: str, unlimited: int = 0) -> int:
    """The number in `file`; 0 where there is none, `unlimited` for "max"."""
    value = text(file).strip()
    return int(value) if value.isdecimal() else unlimited if value == "max" else 0


def _pids(directory: str) -> PidsStat:
    return PidsStat(number(f"{directory}/pids.current"), number(f"{directory}/pids.max"))


def _cpu(places: Places) -> CPUStat | None:
    if "cpu" not in places and "cpuacct" not in places:
        return None
    usage, throttling = CPUUsage(), Throttle()
    if "cpuacct" in places:
        directory = places["cpuacct"][0]
        split = parse_pairs(text(f"{directory}/cpuacct.stat"))
        usage = CPUUsage(
            total=number(f"{directory}/cpuacct.usage"),
            kernel=split.get("system", 0) * _TICK_NS,
            user=split.get("user", 0) * _TICK_NS,
            per_cpu=tuple([int(each) for each in text(f"{directory}/cpuacct.usage_percpu").split()]),
        )
    if "cpu" in places:
        counts = parse_pairs(text(f"{places['cpu'][0]}/cpu.stat"))
        names = ("nr_periods", "nr_throttled", "throttled_time")
        throttling = Throttle(*[counts.get(name, 0) for name in names])
    return CPUStat(usage, throttling)


def _memory(directory: str) -> MemoryStat:
    counts = parse_pairs(text(f"{directory}/memory.stat"))
    plain = {field: counts.get(key, 0) for field, key in _MEMORY_FIELDS}
    return MemoryStat(
        **plain,
        usage=_memory_entry(f"{directory}/memory"),
        swap=_memory_entry(f"{directory}/memory.memsw"),
        kernel=_memory_entry(f"{directory}/memory.kmem"),
        kernel_tcp=_memory_entry(f"{directory}/memory.kmem.tcp"),
    )


def _memory_entry(prefix: str) -> MemoryEntry:
    return MemoryEntry(
        limit=number(f"{prefix}.limit_in_bytes"),
        usage=number(f"{prefix}.usage_in_bytes"),
        max=number(f"{prefix}.max_usage_in_bytes"),
        failcnt=number(f"{prefix}.failcnt"),
    )


def _oom_control(directory: str) -> MemoryOomControl:
    counts = parse_pairs(text(f"{directory}/memory.oom_control"))
    return MemoryOomControl(*[counts.get(name, 0) for name in MemoryOomControl.FIELD_NAMES])


def _block_io(directory: str) -> BlkIOStat:
    return BlkIOStat(
        io_service_bytes_recursive=_block_entries(directory, "io_service_bytes"),
        io_serviced_recursive=_block_entries(directory, "io_serviced"),
    )


def _block_entries(directory: str, name: str) -> tuple[BlkIOEntry, ...]:
    """Lines "8:0 Read 4096"; the last, "Total 4096", is the sum of them all."""
    lines = text(f"{directory}/blkio.throttle.{name}_recursive") or text(f"{directory}/blkio.throttle.{name}")
    entries = []
    for line in lines.splitlines():
        words = line.split()
        if len(words) == 3:
            major, _colon, minor = words[0].partition(":")
            entries.append(
                BlkIOEntry(words[1], _device_name(words[0]), int(major), int(minor), int(words[2]))
            )
    return tuple(entries)


def _device_name(numbers: str) -> str:
    """The node of a block device, "/dev/sda" for 8:0; "" for one that is gone."""
    try:
        name = os.readlink(f"/sys/dev/block/{numbers}").rpartition("/")[2]
    except OSError:
        return ""
    return f"/dev/{name}"


def rdma(directory: str) -> RdmaStat:
    """rdma.current and rdma.max, the same files in both versions: "mlx4_0 hca_handle=1 hca_object=2"."""
    return RdmaStat(_rdma_entries(f"{directory}/rdma.current"), _rdma_entries(f"{directory}/rdma.max"))


def _rdma_entries(file: str) -> tuple[RdmaEntry, ...]:
    entries = []
    for line in text(file).splitlines():
        device, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        entries.append(
            RdmaEntry(device, _rdma_number(values.get("hca_handle")), _rdma_number(values.get("hca_object")))
        )
    return tuple(entries)


def _rdma_number(value: str | None) -> int:
    if value == "max":
        return (1 << 32) - 1
    return int(value) if value is not None and value.isdecimal() else 0


def page_sizes() -> tuple[str, ...]:
    """The sizes of huge pages of this machine as cgroup files spell them: "2MB", "1GB"."""
    try:
        names = os.listdir(_HUGEPAGES)
    except OSError:
        return ()
    return tuple([_size_name(int(name[len("hugepages-") : -len("kB")])) for name in sorted(names)])


def _size_name(kilobytes: int) -> str:
    for unit in ("KB", "MB"):
        if kilobytes < 1024:
            return f"{kilobytes}{unit}"
        kilobytes //= 1024
    return f"{kilobytes}GB"


def _hugetlb(directory: str, version: int) -> tuple[HugetlbStat, ...]:
    """One entry a page size. On a hybrid machine the controller may be in v2, with that version's files."""
    stats = []
    for size in page_sizes():
        prefix = f"{directory}/hugetlb.{size}"
        if version == 1:
            usage = number(f"{prefix}.usage_in_bytes")
            peak = number(f"{prefix}.max_usage_in_bytes")
            failures = number(f"{prefix}.failcnt")
        else:
            usage, peak = number(f"{prefix}.current"), 0
            failures = parse_pairs(text(f"{prefix}.events")).get("max", 0)
        stats.append(HugetlbStat(usage=usage, max=peak, failcnt=failures, pagesize=size))
    return tuple(stats)
