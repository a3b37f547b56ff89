"""What `linux.resources` means for this machine's cgroups, as an ordered tuple of file writes.

Pure: the decision is a value. Each controller is looked up where the layout has it, so a hybrid machine
needs no case of its own; `plan_v1` and `plan_v2` know the files. Device rules are not here (`devices`).
A limit that is asked for and can't be set is an error, never left out.
"""

from __future__ import annotations

from runtime.cgroups import plan_v1, plan_v2
from runtime.cgroups.writes import FRESH, PREFIX, Current, Write, check_list, check_name
from runtime.errors import CgroupError, ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cgroups.layout import Hierarchy, Layout
    from runtime.spec.model import Cpu, HugepageLimit, Memory, Pids, Rdma, Resources

    Planner = Callable[[str], list[Write]]

__all__ = ["FRESH", "PARTITION", "Current", "Write", "ignored_fields", "plan_writes"]

_MOST_VALUE = 4096  # a cgroup file takes one page
PARTITION = "cpuset.cpus.partition"
_WEIGHTS = ("cpu.weight", "cpu.weight.nice", "cpu.shares")
_SETTABLE_CORE_FILES = ("cgroup.max.depth", "cgroup.max.descendants")


def plan_writes(resources: Resources, layout: Layout, current: Current = FRESH) -> tuple[Write, ...]:
    """The writes that give a container `resources`, in an order in which the kernel takes each of them.

    `current` is what is in force: FRESH for a cgroup just made, else as read back before an update.
    CgroupError names a field whose controller this machine does not have, ConfigError one whose value
    no machine could take. Zero means "not set" for limits, shares and times, as in runc.
    """
    writes: list[Write] = []
    if resources.memory is not None:
        writes += _plan_memory(resources.memory, layout, current)
    if resources.cpu is not None:
        writes += _plan_cpu(resources.cpu, layout, current)
    if resources.pids is not None and resources.pids.limit is not None:
        writes += _plan_pids(resources.pids, layout)
    if (block_io := resources.block_io) is not None:
        writes += _in_hierarchy_of(
            "blkio",
            layout,
            lambda name: plan_v1.block_io(block_io, name),
            lambda name: plan_v2.io(block_io, name),
        )
    for limit in resources.hugepage_limits:
        writes += _plan_hugetlb(limit, layout)
    if (network := resources.network) is not None:
        writes += _on_v1_only("net_cls", layout, lambda name: plan_v1.net_cls(network, name))
        writes += _on_v1_only("net_prio", layout, lambda name: plan_v1.net_prio(network, name))
    for device, limit_of_device in (resources.rdma or {}).items():
        writes += _plan_rdma(device, limit_of_device, layout)
    writes += _plan_unified(resources.unified or {}, layout)
    return tuple(_weightless_if_idle(writes))


def _weightless_if_idle(writes: list[Write]) -> list[Write]:
    """What is to be idle has no weight, as the kernel refuses to set one then. The last word counts, and is first."""
    idle = [write for write in writes if write.file == "cpu.idle"]
    if not idle:
        return writes
    without = ("cpu.idle", *_WEIGHTS) if idle[-1].value.strip() == "1" else ("cpu.idle",)
    return [idle[-1], *(write for write in writes if write.file not in without)]


def ignored_fields(resources: Resources) -> tuple[str, ...]:
    """What `resources` set to no effect, each with the reason, for a warning: as with runc."""
    told = _ignored_weights(resources)
    memory = resources.memory
    if memory is None:
        return tuple(told)
    for name, value in (("kernel", memory.kernel), ("kernelTCP", memory.kernel_tcp)):
        if value is not None:
            told.append(f"{PREFIX}.memory.{name} is ignored: kernel memory has no limit of its own any more")
    if memory.use_hierarchy is False:
        told.append(f"{PREFIX}.memory.useHierarchy is ignored: limits always count what is below")
    return tuple(told)


def _ignored_weights(resources: Resources) -> list[str]:
    asked, unified = resources.cpu, resources.unified or {}
    idle = unified.get("cpu.idle") or (str(asked.idle) if asked is not None else "")
    if idle.strip() != "1":
        return []
    fields = ["cpu.shares"] if asked is not None and asked.shares else []
    fields += [f"unified.{file}" for file in _WEIGHTS if file in unified]
    return [f"{PREFIX}.{field} is ignored: unable to apply both a weight and cpu.idle" for field in fields]


def _in_hierarchy_of(controller: str, layout: Layout, v1: Planner, v2: Planner) -> list[Write]:
    hierarchy = _find(layout, controller)
    if hierarchy is not None:
        return (v1 if hierarchy.version == 1 else v2)(hierarchy.name)
    if asked := v1(""):
        raise CgroupError(f"{asked[0].field}: no cgroup controller {controller} on this machine")
    return []


def _find(layout: Layout, controller: str) -> Hierarchy | None:
    found = layout.find(controller)
    if found is None and controller == "blkio":  # io is its name in v2
        found = layout.find("io")
    return found


def _on_v1_only(controller: str, layout: Layout, v1: Planner) -> list[Write]:
    hierarchy = layout.find(controller)
    asked = v1("" if hierarchy is None else hierarchy.name)
    if asked and hierarchy is None:
        raise CgroupError(f"{asked[0].field}: no cgroup controller {controller} on this machine")
    return asked


def _plan_memory(memory: Memory, layout: Layout, current: Current) -> list[Write]:
    field = f"{PREFIX}.memory"
    limit, swap = memory.limit or 0, memory.swap or 0
    for name, value in (("limit", limit), ("swap", swap), ("reservation", memory.reservation or 0)):
        if value < -1:
            raise ConfigError(f"{field}.{name}", f"{value} is neither a size in bytes nor -1")
    if 0 < swap < limit:
        raise ConfigError(
            f"{field}.swap", f"{swap} is less than the memory limit of {limit}, which it includes"
        )
    if swap > 0 and limit == -1:
        raise ConfigError(f"{field}.swap", f"{swap} can't be set where memory has no limit")
    if memory.swappiness is not None and not -1 <= memory.swappiness <= 100:
        raise ConfigError(f"{field}.swappiness", f"{memory.swappiness} is not in 0..100")
    if memory.check_before_update:
        for name, words, value in (("swap", "memory+swap", swap), ("limit", "memory", limit)):
            if 0 < value <= current.memory_usage:
                raise CgroupError(
                    f"{field}.{name}: rejecting {words} limit {value} below the usage of {current.memory_usage}"
                )
    return _in_hierarchy_of(
        "memory",
        layout,
        lambda name: plan_v1.memory(memory, current, name),
        lambda name: plan_v2.memory(memory, current, name),
    )


def _plan_cpu(cpu: Cpu, layout: Layout, current: Current) -> list[Write]:
    check_list(f"{PREFIX}.cpu.cpus", cpu.cpus)
    check_list(f"{PREFIX}.cpu.mems", cpu.mems)
    writes = _in_hierarchy_of(
        "cpu",
        layout,
        lambda name: plan_v1.cpu(cpu, current, name),
        lambda name: plan_v2.cpu(cpu, current, name),
    )
    return writes + _in_hierarchy_of(
        "cpuset", layout, lambda name: plan_v1.cpuset(cpu, name), lambda name: plan_v1.cpuset(cpu, name)
    )


def _plan_pids(pids: Pids, layout: Layout) -> list[Write]:
    limit = pids.limit or 1  # 0 as 1, as systemd and runc have it: a container has one task at least
    value = str(limit) if limit > 0 else "max"

    def write(name: str) -> list[Write]:
        return [Write(name, "pids.max", value, f"{PREFIX}.pids.limit")]

    return _in_hierarchy_of("pids", layout, write, write)


def _plan_hugetlb(limit: HugepageLimit, layout: Layout) -> list[Write]:
    check_name(f"{PREFIX}.hugepageLimits.pageSize", limit.page_size)
    return _in_hierarchy_of(
        "hugetlb",
        layout,
        lambda name: plan_v1.hugetlb(limit, name),
        lambda name: plan_v2.hugetlb(limit, name),
    )


def _plan_rdma(device: str, limit: Rdma, layout: Layout) -> list[Write]:
    field = f"{PREFIX}.rdma"
    check_name(field, device)
    words = [device]
    if limit.hca_handles is not None:
        words.append(f"hca_handle={limit.hca_handles}")
    if limit.hca_objects is not None:
        words.append(f"hca_object={limit.hca_objects}")

    def write(name: str) -> list[Write]:
        return [Write(name, "rdma.max", " ".join(words), f"{field}.{device}")] if len(words) > 1 else []

    return _in_hierarchy_of("rdma", layout, write, write)


def _plan_unified(unified: dict[str, str], layout: Layout) -> list[Write]:
    """`unified`: v2 files by name. They come last, so that they win over what the other fields say."""
    writes: list[Write] = []
    for key in sorted(unified, key=lambda each: each == PARTITION):  # its CPUs first
        value = unified[key]
        field = f"{PREFIX}.unified"
        check_name(field, key)
        if len(value) >= _MOST_VALUE or "\0" in value:
            raise ConfigError(f"{field}.{key}", f"a value of {len(value)} characters, or with NUL in it")
        hierarchy = layout.unified
        if hierarchy is None:
            raise CgroupError(f"{field}.{key}: this machine has no cgroup v2")
        controller, dot, _parameter = key.partition(".")
        if not dot:
            raise ConfigError(field, f"{key!r} is not of the form controller.parameter")
        if controller not in hierarchy.controllers and key not in _SETTABLE_CORE_FILES:
            raise CgroupError(
                f"{field}.{key}: invalid configuration for this machine: no v2 cgroup controller {controller}"
            )
        for line in value.splitlines() or [""]:  # a file such as io.max takes one line a write
            writes.append(Write(hierarchy.name, key, line, f"{field}.{key}"))
    return writes
