"""Which device nodes a container gets: pure, part of the plan of its root file system."""

from __future__ import annotations

import stat

from runtime.linux.beneath import clean
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec.model import Device


class DeviceNode(Record):
    """A device to make: `mode` has the kind and the permissions."""

    path: str
    mode: int
    major: int
    minor: int
    uid: int = 0
    gid: int = 0


_NODE_KINDS = {"b": stat.S_IFBLK, "c": stat.S_IFCHR, "u": stat.S_IFCHR, "p": stat.S_IFIFO}
_DEFAULT_DEVICES = tuple(
    [
        DeviceNode(f"/dev/{name}", stat.S_IFCHR | 0o666, major, minor)
        for name, major, minor in (
            ("null", 1, 3),
            ("random", 1, 8),
            ("full", 1, 7),
            ("tty", 5, 0),
            ("zero", 1, 5),
            ("urandom", 1, 9),
        )
    ]
)  # config-linux.md, "Default Devices"; /dev/console and /dev/ptmx are made otherwise


def plan_devices(asked: tuple[Device, ...]) -> tuple[DeviceNode, ...]:
    """The nodes for `linux.devices` and, where it does not name them, the default ones (config-linux.md)."""
    replaced = {clean(device.path) for device in asked}
    nodes = [node for node in _DEFAULT_DEVICES if node.path not in replaced]
    for device in asked:
        if clean(device.path) == "/dev/ptmx":
            continue  # the container's own, a symlink into its devpts
        permissions = 0o666 if device.file_mode is None else stat.S_IMODE(device.file_mode)
        nodes.append(
            DeviceNode(
                path=device.path,
                mode=_NODE_KINDS[device.type] | permissions,
                major=device.major,
                minor=device.minor,
                uid=device.uid or 0,
                gid=device.gid or 0,
            )
        )
    return tuple(nodes)
