"""Putting a plan of limits into force in every hierarchy, and reading back what an update depends on.

Thin: what to write, and in which order, was decided in `resources` and `devices`.
"""

from __future__ import annotations

from runtime.cgroups import directories
from runtime.cgroups.devices import attach_v2, plan_devices, write_v1
from runtime.cgroups.files import open_directory, parse_pairs, read_file, write_all
from runtime.cgroups.layout import UNIFIED
from runtime.cgroups.resources import PARTITION, plan_writes
from runtime.cgroups.writes import FRESH, NO_LIMIT, Current, former_value
from runtime.errors import CgroupError
from runtime.record import replace
from runtime.undo import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from runtime.cgroups.devices import DevicePolicy
    from runtime.cgroups.layout import Hierarchy, Layout, Places
    from runtime.cgroups.writes import Write
    from runtime.spec.model import Cpu, Memory, Resources


def split_births(writes: Iterable[Write]) -> tuple[tuple[Write, ...], tuple[Write, ...]]:
    """`writes` apart: those that may be in force before the first process is born, and those that limit births.

    A clone stage counts as a process: with a limit of one, it could not clone the process that it is there for.
    """
    now: list[Write] = []
    later: list[Write] = []
    for write in writes:
        (later if write.file == "pids.max" else now).append(write)
    return tuple(now), tuple(later)


def configure(layout: Layout, path: str, writes: tuple[Write, ...], later: tuple[Write, ...] = ()) -> None:
    """Do `writes` in the directory `path` of the hierarchies they are for; CgroupError.

    What `later` needs is handed down as well: a limit that can't be had fails now.
    """
    for hierarchy in layout.hierarchies:
        mine = [write for write in (*writes, *later) if write.hierarchy == hierarchy.name]
        if hierarchy.version == 2 and (mine or layout.mode == UNIFIED):
            _hand_down(layout, hierarchy, path, mine)
    do_writes(layout, path, writes)


def do_writes(layout: Layout, path: str, writes: tuple[Write, ...]) -> None:
    """Do `writes`, whose controllers are handed down, in the directory `path` of their hierarchies; CgroupError."""
    for hierarchy in layout.hierarchies:
        mine = [write for write in writes if write.hierarchy == hierarchy.name]
        if mine:
            with open_directory(hierarchy, path) as directory:
                write_all(directory.fileno(), f"{hierarchy.mountpoint}/{path}", mine)
                _check_partition(directory.fileno(), f"{hierarchy.mountpoint}/{path}", mine)


def _check_partition(directory: int, path: str, writes: list[Write]) -> None:
    """CgroupError for a partition of CPUs that the kernel has noted but not made: only reading it back tells."""
    for write in writes:
        if write.file == PARTITION and "invalid" in (state := read_file(PARTITION, directory).strip()):
            raise CgroupError(f"{write.field}: {path}/{PARTITION} is {state!r}")


def _hand_down(layout: Layout, hierarchy: Hierarchy, path: str, writes: list[Write]) -> None:
    """All v2 controllers on a unified machine, so that they count; on a hybrid one those that limit something."""
    needed = {write.file.partition(".")[0]: write.field for write in reversed(writes)}
    needed.pop("cgroup", None)  # the core's own files are always there
    wanted = hierarchy.controllers if layout.mode == UNIFIED else tuple(needed)
    directories.hand_down(hierarchy, path, wanted, needed)


def set_devices(layout: Layout, path: str, policy: DevicePolicy, *, fresh: bool) -> None:
    """Put the device `policy` in force; `fresh` for a cgroup that nobody is in yet. CgroupError."""
    hierarchy = layout.find("devices") or layout.unified
    if hierarchy is None:
        raise CgroupError("linux.resources.devices: no devices controller and no cgroup v2 on this machine")
    name = f"{hierarchy.mountpoint}/{path}"
    with open_directory(hierarchy, path) as directory:
        if hierarchy.version == 2:
            attach_v2(directory.fileno(), name, policy)
        else:
            write_v1(directory.fileno(), name, policy, fresh=fresh)


def update(layout: Layout, path: str, resources: Resources) -> None:
    """Change a cgroup in use to `resources`, as far as they say; CgroupError."""
    writes = plan_writes(resources, layout, read_current(resources, layout.places(path)))
    put_in_force(layout, path, resources, writes, former_writes(layout, path, writes))


def former_writes(layout: Layout, path: str, writes: tuple[Write, ...]) -> tuple[Write, ...]:
    """What is in force for the files of `writes`, as writes that bring it back. Undone from the last to the first."""
    found = []
    for hierarchy in layout.hierarchies:
        if mine := [write for write in writes if write.hierarchy == hierarchy.name]:
            with open_directory(hierarchy, path) as directory:
                found += [former for write in mine if (former := _former(directory.fileno(), write))]
    return tuple(found)


def _former(directory: int, write: Write | None) -> Write | None:
    while write is not None:
        try:
            return replace(write, value=former_value(write, read_file(write.file, directory)))
        except FileNotFoundError:
            write = write.otherwise
        except OSError:
            break  # a file that is for writing only does something, and sets nothing
    return None


def put_in_force(
    layout: Layout, path: str, resources: Resources, writes: tuple[Write, ...], former: tuple[Write, ...]
) -> None:
    """Do `writes` in a cgroup in use, and change its devices where `resources` name some.

    CgroupError, and then what was in force before (`former_writes`) is again.
    """
    with Undo() as undo:
        for write in former:
            undo.push(do_writes, layout, path, (write,))
        configure(layout, path, writes)
        if resources.devices:
            set_devices(layout, path, plan_devices(resources.devices), fresh=False)
        undo.keep()


def read_current(resources: Resources, places: Places) -> Current:
    """What is in force now for the fields that `resources` set, in the directories of `places`; OSError."""
    current = FRESH
    if resources.memory is not None and "memory" in places:
        directory, version = places["memory"]
        current = (_memory_v1 if version == 1 else _memory_v2)(resources.memory, directory, current)
    if resources.cpu is not None and "cpu" in places:
        directory, version = places["cpu"]
        current = (_cpu_v1 if version == 1 else _cpu_v2)(resources.cpu, directory, current)
    return current


def _memory_v1(asked: Memory, directory: str, current: Current) -> Current:
    if asked.limit:
        current = replace(current, swap_limit=_limit(f"{directory}/memory.memsw.limit_in_bytes"))
    if asked.disable_oom_killer is False:
        control = parse_pairs(_text(f"{directory}/memory.oom_control"))
        current = replace(current, oom_killer_disabled=control.get("oom_kill_disable") == 1)
    if asked.check_before_update:
        current = replace(current, memory_usage=_number(f"{directory}/memory.usage_in_bytes", 0))
    return current


def _memory_v2(asked: Memory, directory: str, current: Current) -> Current:
    if asked.swap:
        current = replace(current, memory_limit=_limit(f"{directory}/memory.max"))
    if asked.check_before_update:
        current = replace(current, memory_usage=_number(f"{directory}/memory.current", 0))
    return current


def _cpu_v1(asked: Cpu, directory: str, current: Current) -> Current:
    if asked.quota or asked.period or asked.burst is not None:
        current = replace(
            current,
            cpu_quota=_number(f"{directory}/cpu.cfs_quota_us", current.cpu_quota),
            cpu_period=_number(f"{directory}/cpu.cfs_period_us", current.cpu_period),
        )
    if asked.realtime_period:
        runtime = _number(f"{directory}/cpu.rt_runtime_us", current.realtime_runtime)
        current = replace(current, realtime_runtime=runtime)
    return current


def _cpu_v2(asked: Cpu, directory: str, current: Current) -> Current:
    if asked.quota or asked.period or asked.burst is not None:
        words = _text(f"{directory}/cpu.max").split()
        if len(words) == 2:
            quota = -1 if words[0] == "max" else int(words[0])
            current = replace(current, cpu_quota=quota, cpu_period=int(words[1]))
    return current


def _limit(file: str) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() and int(text) < NO_LIMIT else None


def _number(file: str, otherwise: int) -> int:
    text = _text(file)
    return int(text) if text.lstrip("-").isdecimal() else otherwise


def _text(file: str) -> str:
    try:
        return read_file(file).strip()
    except FileNotFoundError:
        return ""
