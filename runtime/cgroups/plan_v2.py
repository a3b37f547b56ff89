"""Cgroup v2: which file takes which limit, with the OCI spec's v1 numbers converted.

Pure. Sources: Documentation/admin-guide/cgroup-v2.rst; the conversion of shares is the one runc and crun
agreed on in 2025, which keeps both the range and the default (1024 shares are weight 100).
"""

from __future__ import annotations

from runtime.cgroups.plan_v1 import with_burst
from runtime.cgroups.writes import PREFIX, Current, Write
from runtime.errors import CgroupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec.model import BlockIo, Cpu, HugepageLimit, Memory

_LOG_BITS = 128


def memory(asked: Memory, current: Current, name: str) -> list[Write]:
    """memory.max, memory.swap.max (the spec counts memory and swap together, v2 swap alone), memory.low."""
    field = f"{PREFIX}.memory"
    if asked.disable_oom_killer:
        raise CgroupError(f"{field}.disableOOMKiller: cgroup v2 can't disable the OOM killer")
    if asked.swappiness is not None and asked.swappiness != -1:
        raise CgroupError(f"{field}.swappiness: cgroup v2 has no swappiness of its own")
    writes = []
    swap = _swap_alone(asked, current)
    if swap:
        # A kernel without swap has no such file: none allowed and none limited are both true there.
        writes.append(
            Write(name, "memory.swap.max", swap, f"{field}.swap", optional=swap in ("0", "max")),
        )
    if asked.limit:
        writes.append(Write(name, "memory.max", _or_max(asked.limit), f"{field}.limit"))
    if asked.reservation:
        writes.append(Write(name, "memory.low", _or_max(asked.reservation), f"{field}.reservation"))
    return writes


def _swap_alone(asked: Memory, current: Current) -> str:
    limit, swap = asked.limit or 0, asked.swap or 0
    if swap == -1 or (limit == -1 and not swap):
        return "max"
    if not swap:
        return ""
    in_force = limit or current.memory_limit
    if in_force is None:
        raise CgroupError(f"{PREFIX}.memory.swap: {swap} includes memory, which has no limit")
    if swap < in_force:
        raise CgroupError(f"{PREFIX}.memory.swap: {swap} is less than the memory limit of {in_force}")
    return str(swap - in_force)


def _or_max(value: int) -> str:
    return "max" if value < 0 else str(value)


def cpu(asked: Cpu, current: Current, name: str) -> list[Write]:
    """cpu.weight, cpu.idle, cpu.max, cpu.max.burst. There is no realtime group scheduling in v2."""
    field = f"{PREFIX}.cpu"
    for key, value in (
        ("realtimePeriod", asked.realtime_period),
        ("realtimeRuntime", asked.realtime_runtime),
    ):
        if value:
            raise CgroupError(f"{field}.{key}: cgroup v2 has no realtime limits")
    writes = []
    if asked.idle is not None:
        writes.append(Write(name, "cpu.idle", str(asked.idle), f"{field}.idle"))
    if asked.shares:
        writes.append(Write(name, "cpu.weight", str(weight_of_shares(asked.shares)), f"{field}.shares"))
    maximum = []
    if asked.quota or asked.period:
        quota = asked.quota or current.cpu_quota
        value_ = f"{_or_max(quota)} {asked.period or current.cpu_period}"
        maximum.append(Write(name, "cpu.max", value_, f"{field}.quota" if asked.quota else f"{field}.period"))
    burst = Write(name, "cpu.max.burst", str(asked.burst), f"{field}.burst")
    return writes + with_burst(maximum, asked, current, burst)


def weight_of_shares(shares: int) -> int:
    """cpu.shares (2..262144) as cpu.weight (1..10000): ceil(10 ** ((log2² + 125 log2) / 612 - 7/34))."""
    if shares <= 2:
        return 1
    if shares >= 262_144:
        return 10_000
    log = _log2(shares)
    return -int(-(10.0 ** ((log * log + 125 * log) / 612.0 - 7.0 / 34.0)) // 1)


def _log2(number: int) -> float:
    """The binary logarithm, exact to a float's last bits, without loading `math` into every shim."""
    whole = number.bit_length() - 1
    rest = number << (_LOG_BITS - whole)
    fraction = 0
    for _bit in range(60):
        rest = (rest * rest) >> _LOG_BITS
        fraction <<= 1
        if rest >> (_LOG_BITS + 1):
            rest >>= 1
            fraction |= 1
    return whole + fraction / (1 << 60)


def io(asked: BlockIo, name: str) -> list[Write]:
    """Weights go to BFQ's own file where there is one, else converted to io.weight; throttles to io.max."""
    field = f"{PREFIX}.blockIO"
    if asked.leaf_weight or any(device.leaf_weight for device in asked.weight_device):
        raise CgroupError(f"{field}.leafWeight: cgroup v2 has no leaf weights")
    writes = []
    weights = [("", asked.weight, f"{field}.weight")] if asked.weight else []
    weights += [
        (f"{each.major}:{each.minor} ", each.weight, f"{field}.weightDevice")
        for each in asked.weight_device
        if each.weight
    ]
    for subject, weight, of in weights:
        converted = Write(name, "io.weight", f"{subject}{weight_of_blkio(weight)}", of)
        writes.append(Write(name, "io.bfq.weight", f"{subject}{weight}", of, otherwise=converted))
    for key, throttles, of in (
        ("rbps", asked.throttle_read_bps_device, "throttleReadBpsDevice"),
        ("wbps", asked.throttle_write_bps_device, "throttleWriteBpsDevice"),
        ("riops", asked.throttle_read_iops_device, "throttleReadIOPSDevice"),
        ("wiops", asked.throttle_write_iops_device, "throttleWriteIOPSDevice"),
    ):
        for throttle in throttles:
            value = f"{throttle.major}:{throttle.minor} {key}={throttle.rate or 'max'}"
            writes.append(Write(name, "io.max", value, f"{field}.{of}"))
    return writes


def weight_of_blkio(weight: int) -> int:
    """blkio.weight (10..1000) as io.weight (1..10000), linear, as runc has it."""
    return 1 + (weight - 10) * 9999 // 990


def hugetlb(asked: HugepageLimit, name: str) -> list[Write]:
    """Faulted pages, and reserved ones where the kernel counts them (Linux 5.7)."""
    size, value, field = asked.page_size, str(asked.limit), f"{PREFIX}.hugepageLimits.{asked.page_size}"
    return [
        Write(name, f"hugetlb.{size}.max", value, field),
        Write(name, f"hugetlb.{size}.rsvd.max", value, field, optional=True),
    ]
