"""What `events` says of a container's cgroups, in the fields of runc's types.Stats.

Read here, file by file, where `runtime.cgroups` counts less than runc's users look at (memory.stat as it is, the
cpuset files); the rest comes from there. Amounts of time are nanoseconds, sizes are bytes.
"""

from __future__ import annotations

from runtime.cgroups import counters, stats_v1, stats_v2
from runtime.cgroups.files import parse_pairs, read_file
from runtime.record import as_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.cgroups.cgroup import Cgroup

_LARGEST = (1 << 64) - 1
_CPUSET_NUMBERS = (
    *("cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page"),
    *("memory_spread_slab", "memory_pressure", "sched_load_balance", "sched_relax_domain_level"),
)
_MOST_CPUS = 1 << 16


def stats_of(cgroup: Cgroup) -> dict[str, Any]:
    """The `data` of a "stats" event. OSError or CgroupError where the cgroup is gone."""
    counted = counters.read(cgroup)
    if isinstance(counted, stats_v1.Metrics):
        made = _from_v1(counted, cgroup)
    else:
        made = _from_v2(counted, cgroup)
    return made | {"intel_rdt": {}, "network_interfaces": None}


# ---- v1 ----------------------------------------------------------------------------------------


def _from_v1(counted: stats_v1.Metrics, cgroup: Cgroup) -> dict[str, Any]:
    directories = {
        controller: cgroup.paths[each.name]
        for each in cgroup.layout.hierarchies
        for controller in each.controllers
    }
    memory = counted.memory
    return {
        "cpu": _cpu_v1(counted.cpu, directories.get("cpuacct", "")),
        "cpuset": _cpuset(directories.get("cpuset", "")),
        "memory": {} if memory is None else _memory_v1(memory, directories["memory"]),
        "pids": {} if counted.pids is None else _filled(as_dict(counted.pids)),
        "blkio": {} if counted.blkio is None else _block_io_v1(counted.blkio),
        "hugetlb": {
            each.pagesize: _filled({"usage": each.usage, "max": each.max}) | {"failcnt": each.failcnt}
            for each in counted.hugetlb
        },
    }


def _cpu_v1(counted: stats_v1.CPUStat | None, directory: str) -> dict[str, Any]:
    if counted is None:
        return {}
    usage, throttling = counted.usage, counted.throttling
    kernel, user = _per_cpu_modes(directory)
    lists = {"percpu": list(usage.per_cpu), "percpu_kernel": kernel, "percpu_user": user}
    made: dict[str, Any] = _filled({"total": usage.total, **lists})
    made |= {"kernel": usage.kernel, "user": usage.user}
    throttled = {
        "periods": throttling.periods,
        "throttledPeriods": throttling.throttled_periods,
        "throttledTime": throttling.throttled_time,
    }
    return {"usage": made, **_filled({"throttling": _filled(throttled)})}


def _per_cpu_modes(directory: str) -> tuple[list[int], list[int]]:
    """cpuacct.usage_all: a header, then "0 USER SYSTEM" a line."""
    rows = [line.split() for line in stats_v1.text(f"{directory}/cpuacct.usage_all").splitlines()[1:]]
    return [int(row[2]) for row in rows if len(row) > 2], [int(row[1]) for row in rows if len(row) > 2]


def _memory_v1(counted: stats_v1.MemoryStat, directory: str) -> dict[str, Any]:
    made: dict[str, Any] = _filled({"cache": counted.cache})
    parts = {
        "usage": counted.usage,
        "swap": counted.swap,
        "kernel": counted.kernel,
        "kernelTCP": counted.kernel_tcp,
    }
    for name, entry in parts.items():
        if entry is not None and entry != stats_v1.MemoryEntry():
            made[name] = _entry(entry.limit, entry.usage, entry.max, entry.failcnt)
    return made | {"raw": parse_pairs(stats_v1.text(f"{directory}/memory.stat"))}


def _entry(limit: int, usage: int, peak: int, failures: int) -> dict[str, int]:
    return {"limit": limit, **_filled({"usage": usage, "max": peak}), "failcnt": failures}


def _block_io_v1(counted: stats_v1.BlkIOStat) -> dict[str, Any]:
    tables = {
        "ioServiceBytesRecursive": counted.io_service_bytes_recursive,
        "ioServicedRecursive": counted.io_serviced_recursive,
    }
    return _filled(
        {
            name: [_operation(each.major, each.minor, each.op, each.value) for each in entries]
            for name, entries in tables.items()
        }
    )


def _operation(major: int, minor: int, name: str, value: int) -> dict[str, Any]:
    return _filled({"major": major, "minor": minor, "op": name, "value": value})


# ---- v2 ----------------------------------------------------------------------------------------


def _from_v2(counted: stats_v2.Metrics, cgroup: Cgroup) -> dict[str, Any]:
    unified = cgroup.layout.unified
    directory = "" if unified is None else cgroup.paths[unified.name]
    pids = counted.pids
    limit = 0 if pids is None or pids.limit == _LARGEST else pids.limit  # 0 is none, as ever with runc
    return {
        "cpu": {} if counted.cpu is None else _cpu_v2(counted.cpu),
        "cpuset": _cpuset(directory),
        "memory": {} if counted.memory is None else _memory_v2(counted.memory, directory),
        "pids": {} if pids is None else _filled({"current": pids.current, "limit": limit}),
        "blkio": {} if counted.io is None else _block_io_v2(counted.io),
        "hugetlb": {
            each.pagesize: _filled({"usage": each.current}) | {"failcnt": each.failcnt}
            for each in counted.hugetlb
        },
    }


def _cpu_v2(counted: stats_v2.CPUStat) -> dict[str, Any]:
    usage: dict[str, Any] = _filled({"total": counted.usage_usec * 1000})
    usage |= {"kernel": counted.system_usec * 1000, "user": counted.user_usec * 1000}
    throttled = {
        "periods": counted.nr_periods,
        "throttledPeriods": counted.nr_throttled,
        "throttledTime": counted.throttled_usec * 1000,
    }
    return {"usage": usage, **_filled({"throttling": _filled(throttled)}), **_pressure(counted.psi)}


def _memory_v2(counted: stats_v2.MemoryStat, directory: str) -> dict[str, Any]:
    made: dict[str, Any] = _filled({"cache": counted.file})
    made["usage"] = _entry(counted.usage_limit, counted.usage, counted.max_usage, 0)
    # v1 counts memory and swap together, and so does runc everywhere.
    swap_limit = counted.swap_limit
    if swap_limit != _LARGEST:
        swap_limit = min(swap_limit + counted.usage_limit, _LARGEST)
    made["swap"] = _entry(swap_limit, counted.swap_usage + counted.usage, 0, 0)
    made["raw"] = parse_pairs(stats_v1.text(f"{directory}/memory.stat"))
    return made | _pressure(counted.psi)


def _block_io_v2(counted: stats_v2.IOStat) -> dict[str, Any]:
    bytes_, operations = [], []
    for each in counted.usage:
        bytes_.append(_operation(each.major, each.minor, "Read", each.rbytes))
        bytes_.append(_operation(each.major, each.minor, "Write", each.wbytes))
        operations.append(_operation(each.major, each.minor, "Read", each.rios))
        operations.append(_operation(each.major, each.minor, "Write", each.wios))
    tables = {"ioServiceBytesRecursive": bytes_, "ioServicedRecursive": operations}
    return _filled(tables) | _pressure(counted.psi)


def _pressure(counted: stats_v2.PSIStats | None) -> dict[str, Any]:
    if counted is None:
        return {}
    nothing = stats_v2.PSIData()
    return {"psi": {"some": as_dict(counted.some or nothing), "full": as_dict(counted.full or nothing)}}


# ---- both --------------------------------------------------------------------------------------


def _cpuset(directory: str) -> dict[str, Any]:
    """The cpuset files; of v2, which has no flags, the two lists alone."""
    made: dict[str, Any] = _filled({"cpus": _numbers(directory, "cpuset.cpus")})
    made["cpu_exclusive"] = _number(directory, "cpuset.cpu_exclusive")
    made |= _filled({"mems": _numbers(directory, "cpuset.mems")})
    return made | {name: _number(directory, f"cpuset.{name}") for name in _CPUSET_NUMBERS[1:]}


def _number(directory: str, file: str) -> int:
    try:
        return int(read_file(f"{directory}/{file}"))
    except (OSError, ValueError):
        return 0


def _numbers(directory: str, file: str) -> list[int]:
    """[0, 1, 2, 7] for "0-2,7"."""
    try:
        text = read_file(f"{directory}/{file}").strip()
    except OSError:
        return []
    found: list[int] = []
    for part in text.split(","):
        first, _dash, last = part.partition("-")
        if first.isdecimal():
            found += range(int(first), min(int(last or first), _MOST_CPUS) + 1)
    return found


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that are not zero or empty: Go's omitempty."""
    return {name: value for name, value in fields.items() if value}
