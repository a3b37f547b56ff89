"""What systemd is told of a container's unit: where it goes, that it is delegated, and the limits it knows of.

Pure. Limits are translated from the writes of `resources`, so that the file system driver and systemd, which
writes them again whenever it reloads, say the same. What systemd has no property for is written by us alone.
Sources: systemd.resource-control(5), and docs/systemd.md of runc for which properties go with which version.
"""

from __future__ import annotations

from runtime.cgroups.writes import FRESH, Current
from runtime.errors import ConfigError
from runtime.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.cgroups.devices import DeviceKey, DevicePolicy
    from runtime.cgroups.unit_name import Unit
    from runtime.cgroups.writes import Write

    # Name, and the value as a D-Bus variant: (signature, value).
    Property = tuple[str, tuple[str, object]]

INFINITY = (1 << 64) - 1
_SECOND_USEC = 1_000_000
_PER_CENT_USEC = 10_000  # systemd keeps CPUQuota as whole per cents
_DEFAULT_PERIOD_USEC = 100_000

# The systemd that brought a property.
_SINCE_MAJOR_NUMBERS = 240  # "char-136" and /dev/char/1:3 without such a node in DeviceAllow
_SINCE_QUOTA_PERIOD = 242
_SINCE_CPUSETS = 244
_SINCE_IDLE = 252
_SINCE_SCOPE_OOM_POLICY = 253

_SIZES = {
    "memory.max": "MemoryMax",
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
    "memory.zswap.max": "MemoryZSwapMax",
    "memory.limit_in_bytes": "MemoryLimit",  # of v1, as those below
    "cpu.weight": "CPUWeight",
    "cpu.shares": "CPUShares",
    "io.weight": "IOWeight",
    "blkio.weight": "BlockIOWeight",
    "pids.max": "TasksMax",
}
_SINCE = {"MemoryZSwapMax": 253}
_CPUSETS = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}


def unit_properties(unit: Unit, unified: bool, members: Iterable[int]) -> list[Property]:
    """What every unit of ours has. `members` are the first processes of a scope."""
    properties: list[Property] = [("Description", ("s", f"container {unit.of}"))]
    if unit.is_slice:
        properties.append(("Wants", ("as", [unit.slice])))
    else:
        properties.append(("Slice", ("s", unit.slice)))
        properties.append(("Delegate", ("b", True)))
        properties.append(("PIDs", ("au", list(members))))
    accounting = ("MemoryAccounting", "CPUAccounting", "TasksAccounting")
    for name in (*accounting, "IOAccounting" if unified else "BlockIOAccounting"):
        properties.append((name, ("b", True)))
    properties.append(("DefaultDependencies", ("b", False)))
    return properties


def oom_policy(writes: Iterable[Write], systemd: int) -> list[Property]:
    """memory.oom.group as OOMPolicy, which can only be given when the unit is started."""
    value = next((write.value for write in writes if write.file == "memory.oom.group"), "")
    policy = {"0": "continue", "1": "kill"}.get(value.strip())
    return [("OOMPolicy", ("s", policy))] if policy and systemd >= _SINCE_SCOPE_OOM_POLICY else []


def limit_properties(writes: Iterable[Write], systemd: int, current: Current = FRESH) -> list[Property]:
    """Those of `writes` that the version `systemd` knows of; `current` as for `plan_writes`. A later one wins.

    ConfigError for a value in `unified` that is none.
    """
    found: dict[str, tuple[str, object]] = {}
    quota = _Quota(current)
    for write in writes:
        file, value = write.file, write.value.strip()
        if file == "io.bfq.weight" and write.otherwise is not None:
            file, value = write.otherwise.file, write.otherwise.value
        if file in _SIZES:
            if file == "io.weight" and " " in value:
                continue  # of one device
            name = _SIZES[file]
            if systemd >= _SINCE.get(name, 0):
                found[name] = ("t", _size(write.field, value, least=1 if name == "TasksMax" else 0))
        elif file in _CPUSETS:
            if systemd >= _SINCE_CPUSETS and value:
                found[_CPUSETS[file]] = ("ay", bit_mask(write.field, value))
        elif file == "cpu.idle" and value == "1" and systemd >= _SINCE_IDLE:
            found["CPUWeight"] = ("t", 0)
        else:
            quota.take(write)
    found.update(quota.properties(systemd))
    return list(found.items())


def _size(field: str, value: str, least: int = 0) -> int:
    if value in ("max", "-1"):
        return INFINITY
    if not (value.isascii() and value.isdecimal()) or int(value) > INFINITY:
        raise ConfigError(field, f"{value[:100]!r} is neither a number nor max")
    return max(least, int(value))


def bit_mask(field: str, text: str) -> bytes:
    """A list such as "0-3,7" as systemd takes it: bit N of byte N / 8. ConfigError."""
    mask = 0
    for element in text.split(","):
        first, dash, last = element.strip().partition("-")
        if not first and not dash:
            continue
        ends = (first, last if dash else first)
        if not all(each.isascii() and each.isdecimal() and len(each) < 6 for each in ends):
            raise ConfigError(field, f"{text[:100]!r} is not a list such as 0-3,7")
        low, high = int(ends[0]), int(ends[1])
        if low > high:
            raise ConfigError(field, f"{text[:100]!r} has a range that ends before it begins")
        mask |= ((1 << (high - low + 1)) - 1) << low
    if not mask:
        raise ConfigError(field, f"{text[:100]!r} names nothing")
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


class _Quota:
    """CPU bandwidth, gathered from the one file of v2 or the two of v1. 0 is "not asked for", -1 none."""

    def __init__(self, current: Current) -> None:
        self._quota, self._period = 0, 0
        self._former = current

    def take(self, write: Write) -> None:
        words = write.value.split()
        if write.file == "cpu.max":
            if not 1 <= len(words) <= 2:
                raise ConfigError(write.field, f"{write.value[:100]!r} is not a quota and a period")
            quota = _size(write.field, words[0])
            self._quota = -1 if quota == INFINITY else quota
            self._period = _size(write.field, words[1]) if len(words) == 2 else self._period
        elif write.file == "cpu.cfs_quota_us":
            self._quota = int(write.value)
        elif write.file == "cpu.cfs_period_us":
            self._period = int(write.value)

    def properties(self, systemd: int) -> dict[str, tuple[str, object]]:
        """As time within a second, whole per cents rounded up as systemd does."""
        if not self._quota and not self._period:
            return {}
        found: dict[str, tuple[str, object]] = {}
        if self._period and systemd >= _SINCE_QUOTA_PERIOD:
            found["CPUQuotaPeriodUSec"] = ("t", self._period)
        quota = self._quota or self._former.cpu_quota
        period = self._period or self._former.cpu_period or _DEFAULT_PERIOD_USEC
        per_second = INFINITY if quota <= 0 else _up_to_per_cent(quota * _SECOND_USEC // period)
        found["CPUQuotaPerSecUSec"] = ("t", per_second)
        return found


def _up_to_per_cent(per_second: int) -> int:
    return max(1, -(-per_second // _PER_CENT_USEC)) * _PER_CENT_USEC


def rounded(writes: Iterable[Write], current: Current = FRESH) -> tuple[Write, ...]:
    """`writes` with the CPU quota that systemd would make of it, so that it stays the same when systemd reloads."""
    listed = list(writes)
    period = next((int(each.value) for each in listed if each.file == "cpu.cfs_period_us"), 0)
    return tuple([_rounded(write, period or current.cpu_period) for write in listed])


def _rounded(write: Write, period_v1: int) -> Write:
    words = write.value.split()
    if write.file == "cpu.max" and len(words) == 2 and all(word.isdecimal() for word in words):
        return replace(write, value=f"{_round_quota(int(words[0]), int(words[1]))} {words[1]}")
    if write.file == "cpu.cfs_quota_us" and int(write.value) > 0:
        return replace(write, value=str(_round_quota(int(write.value), period_v1)))
    return write


def _round_quota(quota: int, period: int) -> int:
    if quota <= 0 or period <= 0:
        return quota
    return _up_to_per_cent(quota * _SECOND_USEC // period) * period // _SECOND_USEC


def device_properties(policy: DevicePolicy, systemd: int) -> list[Property]:
    """The policy as far as systemd can say it: never less than it allows, as ours is in force beside systemd's."""
    if policy.allow_by_default:  # systemd has no list of what is denied
        return [("DeviceAllow", ("a(ss)", [])), ("DevicePolicy", ("s", "auto"))]
    allowed = [(_device_path(key, systemd), access) for key, access in policy.exceptions]
    # The empty list takes back what is in force; those of a second one are added.
    return [
        ("DevicePolicy", ("s", "strict")),
        ("DeviceAllow", ("a(ss)", [])),
        ("DeviceAllow", ("a(ss)", allowed)),
    ]


def _device_path(key: DeviceKey, systemd: int) -> str:
    kind = "block" if key.type == "b" else "char"
    if systemd < _SINCE_MAJOR_NUMBERS or key.major is None:
        return f"{kind}-*"
    return f"{kind}-{key.major}" if key.minor is None else f"/dev/{kind}/{key.major}:{key.minor}"
