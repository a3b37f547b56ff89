"""What a container asks of the host while it is made: hooks, network devices, resctrl groups, id maps.

Few containers have any of it. The plan of a container carries calls made here; those without carry none.
"""

from __future__ import annotations

import os

from runtime import hooks, net_devices, rdt, state
from runtime.linux.fds import OwnedFd
from runtime.net_devices import plan_net_devices
from runtime.operations.lifecycle_hooks import host_hooks
from runtime.rdt import find_resctrl, plan_rdt
from runtime.stages.clone import spawn_hook
from runtime.user_mapping import write_by_tools, write_mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.container import CreateRequest, Host
    from runtime.net_devices import MovedDevice
    from runtime.rdt import RdtPlan
    from runtime.user_mapping import UserMapping
    from runtime.waiting import Operation


class Attendance:
    """What one container asks of the host while its init waits with its mounts made and the root still the host's.

    In this order: its resctrl group, its network devices, prestart and createRuntime hooks, which may look at
    both. ConfigError or Unsupported for what may not be asked for.
    """

    __slots__ = ("_devices", "_hooks", "_id", "_moved", "_namespace", "_rdt", "host", "rdt")

    def __init__(self, host: Host, request: CreateRequest) -> None:
        linux = request.spec.linux
        self.host = host
        self._id = request.id
        self._devices = plan_net_devices(linux.net_devices)
        self._rdt: tuple[RdtPlan, str] | None = None
        if linux.intel_rdt is not None:
            self._rdt = plan_rdt(linux.intel_rdt, request.id), find_resctrl()
        self._hooks = host_hooks(request)
        self._moved: tuple[MovedDevice, ...] = ()
        self._namespace = OwnedFd(-1)
        self.rdt: tuple[str, bool] | None = None

    @property
    def asked(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._devices or self._rdt or self._hooks)

    @property
    def group(self) -> tuple[str, bool] | None:
        """The resctrl group that is to be made, as `rdt` will have it; None without one."""
        return None if self._rdt is None else rdt.expected(*self._rdt)

    @property
    def set_up_net_devices(self) -> Callable[[str], None] | None:
        """What init does with the devices it is told of."""
        return _set_up if self._devices else None

    def attend(self, pid: int) -> Operation[str]:
        """Do it for the init `pid`; the text of HostDone."""
        said = ""
        if self._rdt is not None:
            plan, root = self._rdt
            self.rdt = rdt.enter(plan, root, pid)
            if made := rdt.place(*self.rdt):
                state.note_rdt(f"{self.host.root}/{self._id}", made)
        if self._devices:
            self._namespace = OwnedFd(
                os.open(f"{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.host.procfs.fileno())
            )
            self._moved = net_devices.move(self._devices, self._namespace.fileno())
            said = net_devices.encode(self._moved)
        if self._hooks is not None:
            yield from self._hooks(pid)
        return said

    def undo(self) -> None:
        """For a container that will not run: devices come back, and its resctrl group goes."""
        if self._moved:
            net_devices.give_back(self._moved, self._namespace.fileno())
        if self.rdt is not None:
            rdt.remove(*self.rdt)

    def close(self) -> None:
        """Close what was opened for an undo."""
        self._namespace.close()


def _set_up(said: str) -> None:
    net_devices.bring_up(net_devices.decode(said))


def write_maps(host: Host, pid: int, mapping: UserMapping, time_offsets: str) -> Operation[None]:
    """The uid and gid maps of `pid`'s user namespace, by newuidmap and newgidmap where we may not. MappingError.

    And the offsets of the time namespace that it has made for its children (time_namespaces(7)).
    """
    write_mapping(pid, mapping)
    yield from write_by_tools(pid, mapping, lambda arguments: hooks.run_tool(arguments, spawn_hook, 30))
    if time_offsets:
        name = f"{pid}/timens_offsets"
        with OwnedFd(os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=host.procfs.fileno())) as offsets:
            os.write(offsets.fileno(), time_offsets.encode())
