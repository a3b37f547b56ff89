"""Cgroup v1: which file takes which limit, and in which order the kernel accepts them.

Pure. Sources: Documentation/admin-guide/cgroup-v1 of the kernel; the rules about order were read from
its checks (memory.limit <= memory.memsw.limit; quota/period of a child <= that of its parent at every moment;
burst <= quota) and are tested against it.
"""

from __future__ import annotations

from runtime.cgroups.writes import PREFIX, Current, Write, check_name
from runtime.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec.model import BlockIo, Cpu, HugepageLimit, Memory, Network

_FEWEST_SHARES, _MOST_SHARES = 2, 262_144  # the kernel would clamp silently


def memory(asked: Memory, current: Current, name: str) -> list[Write]:
    """Limit, memory+swap, soft limit, OOM killer, swappiness. `kernel`, `kernelTCP`, `useHierarchy` are obsolete."""
    field = f"{PREFIX}.memory"
    limit, swap = asked.limit or 0, asked.swap or 0
    writes = []
    if limit:
        writes.append(Write(name, "memory.limit_in_bytes", str(limit), f"{field}.limit"))
    if swap:
        writes.append(Write(name, "memory.memsw.limit_in_bytes", str(swap), f"{field}.swap"))
    elif limit == -1:  # no limit on memory means none on memory and swap either; swap accounting may be off
        writes.append(Write(name, "memory.memsw.limit_in_bytes", "-1", f"{field}.limit", optional=True))
    if limit and len(writes) > 1 and _exceeds(limit, current.swap_limit):
        writes.reverse()
    if asked.reservation:
        value = str(asked.reservation)
        writes.append(Write(name, "memory.soft_limit_in_bytes", value, f"{field}.reservation"))
    if asked.disable_oom_killer:
        writes.append(Write(name, "memory.oom_control", "1", f"{field}.disableOOMKiller"))
    elif asked.disable_oom_killer is False and current.oom_killer_disabled:
        writes.append(Write(name, "memory.oom_control", "0", f"{field}.disableOOMKiller"))
    if asked.swappiness is not None and asked.swappiness != -1:
        writes.append(Write(name, "memory.swappiness", str(asked.swappiness), f"{field}.swappiness"))
    return writes


def _exceeds(limit: int, bound: int | None) -> bool:
    return bound is not None and (limit == -1 or limit > bound)


def cpu(asked: Cpu, current: Current, name: str) -> list[Write]:
    """Shares, idle, bandwidth, realtime."""
    field = f"{PREFIX}.cpu"
    writes = []
    shares = []
    if asked.shares:
        if not _FEWEST_SHARES <= asked.shares <= _MOST_SHARES:
            raise ConfigError(f"{field}.shares", f"{asked.shares} is not in {_FEWEST_SHARES}..{_MOST_SHARES}")
        shares.append(Write(name, "cpu.shares", str(asked.shares), f"{field}.shares"))
    if asked.idle is not None:
        writes.append(Write(name, "cpu.idle", str(asked.idle), f"{field}.idle"))
    writes += shares + _bandwidth(asked, current, name)
    period, runtime = asked.realtime_period, asked.realtime_runtime
    realtime = []
    if period:
        realtime.append(Write(name, "cpu.rt_period_us", str(period), f"{field}.realtimePeriod"))
    if runtime:
        realtime.append(Write(name, "cpu.rt_runtime_us", str(runtime), f"{field}.realtimeRuntime"))
    if period and period < current.realtime_runtime:
        realtime.reverse()
    return writes + realtime


def _bandwidth(asked: Cpu, current: Current, name: str) -> list[Write]:
    field = f"{PREFIX}.cpu"
    writes = []
    if asked.period:
        writes.append(Write(name, "cpu.cfs_period_us", str(asked.period), f"{field}.period"))
    if asked.quota:
        quota = str(asked.quota) if asked.quota > 0 else "-1"
        writes.append(Write(name, "cpu.cfs_quota_us", quota, f"{field}.quota"))
    # Between the two writes the group must not have more than before or after, or a parent's limit may refuse it.
    if current.cpu_quota > 0 and asked.period and asked.period < current.cpu_period:
        writes.reverse()
    return with_burst(
        writes, asked, current, Write(name, "cpu.cfs_burst_us", str(asked.burst), f"{field}.burst")
    )


def with_burst(quota: list[Write], asked: Cpu, current: Current, burst: Write) -> list[Write]:
    """`burst` before or after the writes of `quota`: at no moment may it exceed the quota in force."""
    if asked.burst is None:
        return quota
    if current.cpu_quota < 0 or asked.burst <= current.cpu_quota:
        return [burst, *quota]
    return [*quota, burst]


def cpuset(asked: Cpu, name: str) -> list[Write]:
    """CPUs and memory nodes; the files have the same names in v2."""
    writes = []
    if asked.cpus:
        writes.append(Write(name, "cpuset.cpus", asked.cpus, f"{PREFIX}.cpu.cpus"))
    if asked.mems:
        writes.append(Write(name, "cpuset.mems", asked.mems, f"{PREFIX}.cpu.mems"))
    return writes


def block_io(asked: BlockIo, name: str) -> list[Write]:
    """Weights (a kernel with only the BFQ scheduler names them after it) and throttles."""
    field = f"{PREFIX}.blockIO"

    def weight(file: str, bfq_file: str, value: str, of: str) -> Write:
        return Write(name, file, value, of, otherwise=Write(name, bfq_file, value, of))

    writes = []
    if asked.weight:
        writes.append(weight("blkio.weight", "blkio.bfq.weight", str(asked.weight), f"{field}.weight"))
    if asked.leaf_weight:
        writes.append(Write(name, "blkio.leaf_weight", str(asked.leaf_weight), f"{field}.leafWeight"))
    for device in asked.weight_device:
        number, of = f"{device.major}:{device.minor}", f"{field}.weightDevice"
        if device.weight:
            value = f"{number} {device.weight}"
            writes.append(weight("blkio.weight_device", "blkio.bfq.weight_device", value, of))
        if device.leaf_weight:
            writes.append(Write(name, "blkio.leaf_weight_device", f"{number} {device.leaf_weight}", of))
    for file, throttles, key in (
        ("read_bps", asked.throttle_read_bps_device, "throttleReadBpsDevice"),
        ("write_bps", asked.throttle_write_bps_device, "throttleWriteBpsDevice"),
        ("read_iops", asked.throttle_read_iops_device, "throttleReadIOPSDevice"),
        ("write_iops", asked.throttle_write_iops_device, "throttleWriteIOPSDevice"),
    ):
        for throttle in throttles:
            value = f"{throttle.major}:{throttle.minor} {throttle.rate}"
            writes.append(Write(name, f"blkio.throttle.{file}_device", value, f"{field}.{key}"))
    return writes


def hugetlb(asked: HugepageLimit, name: str) -> list[Write]:
    """Faulted pages, and reserved ones where the kernel counts them (Linux 5.7)."""
    size, value, field = asked.page_size, str(asked.limit), f"{PREFIX}.hugepageLimits.{asked.page_size}"
    return [
        Write(name, f"hugetlb.{size}.limit_in_bytes", value, field),
        Write(name, f"hugetlb.{size}.rsvd.limit_in_bytes", value, field, optional=True),
    ]


def net_cls(asked: Network, name: str) -> list[Write]:
    """The traffic class."""
    if not asked.class_id:
        return []
    return [Write(name, "net_cls.classid", str(asked.class_id), f"{PREFIX}.network.classID")]


def net_prio(asked: Network, name: str) -> list[Write]:
    """The priority of each interface."""
    field = f"{PREFIX}.network.priorities"
    writes = []
    for each in asked.priorities:
        check_name(field, each.name)
        writes.append(Write(name, "net_prio.ifpriomap", f"{each.name} {each.priority}", field))
    return writes
