"""The file system's part of `explain`: the plan of mounts, devices and masks in words.

It reads the `RootfsPlan` that `rootfs.apply`, `pivot` and `protect` carry out, and decides nothing.
"""

from __future__ import annotations

import stat

from runtime.linux import mount as m
from runtime.rootfs.plan import BindStep, FilesystemStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.rootfs.device_plan import DeviceNode
    from runtime.rootfs.plan import RootfsPlan, Step

    Detail = dict[str, Any]

_ATTRIBUTES = {
    "ro": m.MOUNT_ATTR_RDONLY,
    "nosuid": m.MOUNT_ATTR_NOSUID,
    "nodev": m.MOUNT_ATTR_NODEV,
    "noexec": m.MOUNT_ATTR_NOEXEC,
    "nodiratime": m.MOUNT_ATTR_NODIRATIME,
    "nosymfollow": m.MOUNT_ATTR_NOSYMFOLLOW,
}
_ATIMES = {m.MOUNT_ATTR_NOATIME: "noatime", m.MOUNT_ATTR_STRICTATIME: "strictatime"}
_PROPAGATIONS = {
    m.MS_PRIVATE: "private",
    m.MS_SLAVE: "slave",
    m.MS_SHARED: "shared",
    m.MS_UNBINDABLE: "unbindable",
}
_KINDS = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}


def flags(attributes: int) -> list[str]:
    """The names of MOUNT_ATTR_*, as mountinfo has them."""
    found = [name for name, bit in _ATTRIBUTES.items() if attributes & bit]
    atime = _ATIMES.get(attributes & m.MOUNT_ATTR__ATIME)
    return found if atime is None else [*found, atime]


def propagation(bits: int, recursive: bool) -> str:
    """A propagation's name in a config: rslave, private …"""
    return ("r" if recursive else "") + _PROPAGATIONS[bits & ~m.MS_REC]


def mount_details(plan: RootfsPlan) -> tuple[Detail, ...]:
    """The propagation of what is there, the root, and every mount in order."""
    kind = propagation(plan.propagation, bool(plan.propagation & m.MS_REC))
    start: list[Detail] = [{"leave / as it is": True} if plan.on_host else {"make /": kind}]
    start.append({"bind the root" if plan.bind_root else "take the root": plan.root})
    return (*start, *(_step(each) for each in plan.steps))


def _step(step: Step) -> Detail:
    if isinstance(step, FilesystemStep):
        return _filesystem(step)
    if isinstance(step, BindStep):
        return _bind(step)
    return {"symlink": step.destination, "to": step.target, "for": step.path}


def _filesystem(step: FilesystemStep) -> Detail:
    return {
        "mount": step.type,
        "on": step.destination,
        "source": step.source,
        "options": [key if value is None else f"{key}={value}" for key, value in step.options],
        "flags": flags(step.attributes),
        "propagation": [propagation(*each) for each in step.propagation],
        "with what is there copied up": step.copy_up,
        "read-only in the end": step.late_read_only,
        "or bind": None if step.instead is None else step.instead.source,
        "for": step.path,
    }


def _bind(step: BindStep) -> Detail:
    change, deep = step.change, step.recursive_change
    return {
        "bind": step.source,
        "on": step.destination,
        "below our own cgroup": step.below_own_cgroup is not None,
        "recursively": step.recursive,
        "flags": None if change is None else flags(change.set) or ["none"],
        "recursive flags": flags(deep.set),
        "recursively without": flags(deep.clear),
        "propagation": [propagation(*each) for each in step.propagation],
        "with ids mapped": step.id_map is not None,
        "for": step.path,
    }


def device_details(plan: RootfsPlan) -> tuple[Detail, ...]:
    """What is made in /dev."""
    if not plan.populate_dev:
        return ({"leave /dev as it is": True},)
    made = [_device(each, plan.bind_devices) for each in plan.devices]
    if plan.console:
        made.append({"make the place of": "/dev/console"})
    return tuple(made)


def _device(node: DeviceNode, bind: bool) -> Detail:
    return {
        "bind device" if bind else "make device": node.path,
        "of type": _KINDS[stat.S_IFMT(node.mode)],
        "number": f"{node.major}:{node.minor}",
        "mode": f"{stat.S_IMODE(node.mode):04o}",
        "uid": node.uid,
        "gid": node.gid,
    }


def pivot_details(plan: RootfsPlan) -> tuple[Detail, ...]:
    """The way into the root."""
    way = "by chroot" if plan.on_host else "by moving it over /" if plan.no_pivot else "by pivot_root"
    found: list[Detail] = [{way: plan.root}]
    if plan.root_propagation:
        kind = propagation(plan.root_propagation, bool(plan.root_propagation & m.MS_REC))
        found.append({"make the root": kind})
    return tuple(found)


def protection_details(plan: RootfsPlan) -> tuple[Detail, ...]:
    """What becomes read-only, and what is masked."""
    late = [
        step.destination for step in plan.steps if isinstance(step, FilesystemStep) and step.late_read_only
    ]
    found: list[Detail] = [{"make read-only": path} for path in late]
    if plan.read_only:
        found.append({"make read-only": "/"})
    found += [{"make read-only": path, "and all below": True} for path in plan.readonly_paths]
    return (*found, *({"mask": path} for path in plan.masked_paths))
