"""What `explain` says of a container's cgroup: directories, limits and devices, as the plans have them."""

from __future__ import annotations

from runtime.cgroups.cgroup import open_cgroup
from runtime.cgroups.devices import plan_devices, v1_steps
from runtime.cgroups.driver import FS, driver_of
from runtime.cgroups.limits import split_births
from runtime.cgroups.resources import plan_writes
from runtime.cgroups.unit_name import parse_unit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.cgroups.layout import Layout
    from runtime.cgroups.writes import Write
    from runtime.cli.explain import Plans

    Detail = dict[str, Any]


def cgroup_details(plans: Plans) -> list[Detail]:
    """Directories, limits and devices of the container's cgroup."""
    layout, linux = plans.host.layout, plans.spec.linux
    path = linux.cgroups_path or ""
    paths = _cgroup_paths(plans)
    found: list[Detail] = []
    if driver_of(path, plans.host.systemd_cgroup) == FS:
        found += [{"make": directory} for directory in paths.values()]
    else:
        unit = parse_unit(path, plans.id)
        found.append({"have systemd make": unit.name, "in": unit.slice})
    now, _later = split_births(plan_writes(linux.resources, layout))
    return found + _write_details(layout, paths, now) + _device_rules(plans, paths)


def limit_of_processes(plans: Plans) -> list[Detail]:
    """What is written when init is born and its stages have ended."""
    layout = plans.host.layout
    _now, later = split_births(plan_writes(plans.spec.linux.resources, layout))
    return _write_details(layout, _cgroup_paths(plans), later)


def _cgroup_paths(plans: Plans) -> dict[str, str]:
    layout, path = plans.host.layout, plans.spec.linux.cgroups_path or ""
    if driver_of(path, plans.host.systemd_cgroup) == FS:
        return open_cgroup(layout, path, plans.id).paths
    unit = parse_unit(path, plans.id)
    return {each.name: f"{each.mountpoint}/{unit.path}" for each in layout.hierarchies}


def _write_details(layout: Layout, paths: dict[str, str], writes: tuple[Write, ...]) -> list[Detail]:
    found: list[Detail] = []
    for hierarchy in layout.hierarchies:
        for write in writes:
            if write.hierarchy == hierarchy.name:
                file = f"{paths[write.hierarchy]}/{write.file}"
                other = write.otherwise
                found.append(
                    {
                        "write": write.value,
                        "to": file,
                        "or, without that file,": None if other is None else f"{other.value} to {other.file}",
                        "for": write.field,
                    }
                )
    return found


def _device_rules(plans: Plans, paths: dict[str, str]) -> list[Detail]:
    policy = plan_devices(plans.spec.linux.resources.devices)
    layout = plans.host.layout
    hierarchy = layout.find("devices") or layout.unified
    if hierarchy is None:
        return []
    place, field = paths[hierarchy.name], "linux.resources.devices"
    if hierarchy.version == 1:
        return [
            {"write": rule, "to": f"{place}/{file}", "for": field}
            for file, rules in v1_steps(policy)
            for rule in rules
        ]
    kind = "denies" if policy.allow_by_default else "allows"
    rules = [f"{key} {access}" for key, access in policy.exceptions]
    return [{"attach to": place, "a device program that": kind, "only": rules, "for": field}]
