"""What a container asks of the host around its start and its end: hooks, network devices, resctrl groups, listeners.

Few containers have any of it. The plan of a container carries calls made here; those without carry none.
"""

from __future__ import annotations

import os

from runtime import hooks, net_devices, rdt, seccomp_notify, state
from runtime.linux.fds import OwnedFd
from runtime.net_devices import plan_net_devices
from runtime.payload import own_home, prepare_environment
from runtime.rdt import find_resctrl, plan_rdt
from runtime.record import replace
from runtime.spec.json import dump
from runtime.spec.model import Hooks
from runtime.stages.clone import spawn_hook
from runtime.user_mapping import write_by_tools, write_mapping
from runtime.waiting import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtime.container import Container, CreateRequest, Host, Terms
    from runtime.net_devices import MovedDevice
    from runtime.rdt import RdtPlan
    from runtime.spec.model import Spec
    from runtime.user_mapping import UserMapping
    from runtime.waiting import Operation


def hooks_to_keep(spec: Spec) -> Hooks | None:
    """Those of `spec` that are still to be run when it stands at the start gate; None for none."""
    asked = spec.hooks
    if asked is None:
        return None
    kept = replace(asked, prestart=(), create_runtime=(), create_container=())
    return None if kept == Hooks() else kept


def environment() -> tuple[str, ...]:
    """Our own, which a hook of the runtime's namespaces has if it names none."""
    return tuple(f"{name}={value}" for name, value in os.environ.items())


def programs_environment(env: tuple[str, ...]) -> tuple[str, ...]:
    """The one that the container's program will have, as `env` entries."""
    return tuple(
        os.fsdecode(name + b"=" + value) for name, value in prepare_environment(env, own_home).items()
    )


class Attendance:
    """What one container asks of the host while its init waits with its mounts made and the root still the host's.

    In this order: its resctrl group, its network devices, prestart and createRuntime hooks, which may look at
    both. ConfigError or Unsupported for what may not be asked for.
    """

    __slots__ = ("_devices", "_hooks", "_moved", "_namespace", "_rdt", "host", "rdt")

    def __init__(self, host: Host, request: CreateRequest) -> None:
        linux = request.spec.linux
        self.host = host
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
    def set_up_net_devices(self) -> Callable[[str], None] | None:
        """What init does with the devices it is told of."""
        return _set_up if self._devices else None

    def attend(self, pid: int) -> Operation[str]:
        """Do it for the init `pid`; the text of HostDone."""
        said = ""
        if self._rdt is not None:
            plan, root = self._rdt
            self.rdt = rdt.enter(plan, root, pid)
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


def notify(
    said: Terms, container_id: str, bundle: str, status: str, landlord: int = 0
) -> Callable[[int, OwnedFd], Operation[None]] | None:
    """Hand the seccomp listener over to the agent that the profile names; None for a filter without one.

    `landlord` is the pid of init where it is a tenant's: the state is that of the container.
    """
    if said.listener is None:
        return None
    agent, metadata = said.listener

    def hand_over(pid: int, listener: OwnedFd) -> Operation[None]:
        shown = state.shown(said.oci_version, container_id, status, landlord or pid, bundle, said.annotations)
        message = seccomp_notify.process_state(pid, metadata, shown)
        yield from seccomp_notify.send(agent, message, listener.fileno())

    return hand_over


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


def host_hooks(request: CreateRequest) -> Callable[[int], Operation[None]] | None:
    """prestart and createRuntime: on the host, while the mounts stand and the root is still the host's."""
    asked = request.spec.hooks
    if asked is None or not (asked.prestart or asked.create_runtime):
        return None

    def run_them(pid: int) -> Operation[None]:
        said = dump(_state_of(request, state.CREATING, pid))
        around = spawn_hook, environment(), request.bundle
        yield from hooks.run("prestart", asked.prestart, said, *around)
        yield from hooks.run("createRuntime", asked.create_runtime, said, *around)

    return run_them


def container_hooks(request: CreateRequest, moment: str, status: str) -> Callable[[], None] | None:
    """createContainer or startContainer: run by init, as its children. They are told the pid that it has inside.

    As with runc, the first begin in the root file system and with no environment, the others as the process will.
    """
    asked = request.spec.hooks
    if asked is None:
        return None
    listed = asked.create_container if moment == "createContainer" else asked.start_container
    if not listed:
        return None
    rootfs = os.path.join(request.bundle, request.spec.root.path)

    def run_them() -> None:
        said = dump(_state_of(request, status, os.getpid()))
        if moment == "createContainer":
            run(hooks.run(moment, listed, said, spawn_hook, (), rootfs))
        else:
            run(hooks.run(moment, listed, said, spawn_hook, programs_environment(request.spec.process.env)))

    return run_them


def _state_of(request: CreateRequest, status: str, pid: int) -> dict[str, Any]:
    spec = request.spec
    return state.shown(spec.oci_version, request.id, status, pid, request.bundle, spec.annotations)


def run_poststart(container: Container) -> Operation[None]:
    """HookError for the first that fails (runtime.md, "Lifecycle", 9: the container is then to be stopped)."""
    asked = container.terms.hooks
    if asked is not None and asked.poststart:
        said = _told(container, state.RUNNING)
        yield from hooks.run("poststart", asked.poststart, said, spawn_hook, environment(), container.bundle)


def run_poststop(container: Container) -> Operation[tuple[str, ...]]:
    """All of them, whatever fails; a warning for each that did."""
    asked = container.terms.hooks
    if asked is None or not asked.poststop:
        return ()
    said = _told(container, state.STOPPED)
    return (
        yield from hooks.run_all(
            "poststop", asked.poststop, said, spawn_hook, environment(), container.bundle
        )
    )


def _told(container: Container, status: str) -> bytes:
    said: Terms = container.terms
    return dump(
        state.shown(said.oci_version, container.id, status, container.pid, container.bundle, said.annotations)
    )
