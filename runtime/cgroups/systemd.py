"""Cgroups as units of systemd, over D-Bus: started, given new properties, stopped.

Only who makes, changes or deletes a container of the systemd driver needs this module, as it loads jeepney: the
command line, and on a node booted with systemd a warden, before it forks. Every operation has a connection of
its own, so nothing is held open; what it waits for it yields (`runtime.waiting`).
"""

from __future__ import annotations

import _signal
import os
import select

from runtime.cgroups import directories, limits
from runtime.cgroups.bus import TIMEOUT_S, BusError, Connection, connect, session_sockets, system_sockets
from runtime.cgroups.cgroup import Cgroup, furnish
from runtime.cgroups.devices import plan_devices
from runtime.cgroups.layout import UNIFIED, below_root
from runtime.cgroups.resources import plan_writes
from runtime.cgroups.unit_annotations import HARMLESS, plan_properties
from runtime.cgroups.unit_name import Unit, parse_unit
from runtime.cgroups.unit_properties import (
    device_properties,
    limit_properties,
    oom_policy,
    rounded,
    unit_properties,
)
from runtime.errors import CgroupError, ConfigError
from runtime.linux.fds import OwnedFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runtime.cgroups.layout import Layout
    from runtime.cgroups.unit_properties import Property
    from runtime.cgroups.writes import Write
    from runtime.spec.model import Resources
    from runtime.waiting import Operation

_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_UNIT_EXISTS = "org.freedesktop.systemd1.UnitExists"
_NO_SUCH_UNIT = "org.freedesktop.systemd1.NoSuchUnit"
_DONE = ("done", "skipped")
_FREEZE_TIMEOUT_S = 10.0
_END_TIMEOUT_MS = 2000


class Placeholder:
    """A process that does nothing but be in a scope: systemd starts none without, and init is not born yet."""

    __slots__ = ("_pidfd", "pid")

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = OwnedFd(pidfd)

    def end(self) -> None:
        """Kill and reap it; a second call does nothing."""
        if self._pidfd.closed:
            return
        with self._pidfd:
            number = self._pidfd.fileno()
            try:
                _signal.pidfd_send_signal(number, _signal.SIGKILL)
            except ProcessLookupError:
                pass  # it ended with whoever forked it
            poll = select.poll()
            poll.register(number, select.POLLIN)
            poll.poll(_END_TIMEOUT_MS)
            try:
                os.waitid(os.P_PIDFD, number, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                pass  # it is somebody else's child, or reaped by a loop that takes them all


class Systemd:
    """A service manager: the system's, or with `rootless` the user's.

    `spawn_placeholder` forks a process that sleeps, has no descriptors, is not dumpable and dies with its parent
    (PR_SET_PDEATHSIG), and returns its pid, as systemd sees it, and a pidfd, which is ours to close from then on.
    It is called once for every scope. `allowed` are the properties that annotations may set.
    """

    __slots__ = ("allowed", "rootless", "sockets", "spawn_placeholder")

    def __init__(
        self,
        spawn_placeholder: Callable[[], tuple[int, int]] | None = None,
        rootless: bool = False,
        allowed: Iterable[str] = HARMLESS,
        sockets: tuple[str, ...] = (),
    ) -> None:
        self.spawn_placeholder = spawn_placeholder
        self.rootless = rootless
        self.allowed = frozenset(allowed)
        self.sockets = sockets or (session_sockets() if rootless else system_sockets())

    # ---- a container's cgroup ------------------------------------------------------------------

    def create(
        self,
        layout: Layout,
        cgroups_path: str,
        resources: Resources,
        container_id: str = "",
        annotations: dict[str, str] | None = None,
    ) -> Operation[Cgroup]:
        """Make a container's cgroup as a unit, with its limits; `settle` it when init has joined.

        Properties of `annotations` that are not allowed are left out (`refused_annotations` tells them). On
        failure, which is a CgroupError, ConfigError or Unsupported, nothing that was made is left.
        """
        unit = parse_unit(cgroups_path, container_id, self.rootless)
        asked, _refused = plan_properties(annotations or {}, self.allowed)
        writes = rounded(plan_writes(resources, layout))
        now, _later = limits.split_births(writes)
        policy = plan_devices(resources.devices)
        cgroup: Cgroup | None = None
        with (yield from connect(self.sockets)) as bus:
            version = yield from _version(bus)
            placeholder = self._placeholder(unit)
            try:
                properties = unit_properties(
                    unit, layout.mode == UNIFIED, () if placeholder is None else (placeholder.pid,)
                )
                properties += [*asked, *oom_policy(writes, version)]
                properties += device_properties(policy, version)
                properties += limit_properties(now, version)
                yield from _start(bus, unit.name, _last_wins(properties))
                path = yield from self._path(bus, layout, unit)
                cgroup = Cgroup(layout, path, unit.name, self, placeholder)
                furnish(cgroup, resources, writes, policy, ours=True, rootless=self.rootless)
            except BaseException as failure:
                if placeholder is not None:
                    placeholder.end()
                if not isinstance(failure, GeneratorExit) and not _exists(failure):  # else it is another's
                    yield from _abandon(bus, unit.name)
                    if cgroup is not None:
                        for each in cgroup.paths.values():
                            directories.try_remove(each)
                raise
        return cgroup

    def expected(self, layout: Layout, cgroups_path: str, container_id: str = "") -> Cgroup:
        """The cgroup that `create` would make of the same arguments, for who must remove it after a crash in the
        middle. Touches nothing. Of a user's manager only the unit is right, as its cgroup must be asked for.
        """
        unit = parse_unit(cgroups_path, container_id, self.rootless)
        return Cgroup(layout, unit.path, unit.name, self)

    def refused_annotations(self, annotations: dict[str, str]) -> tuple[str, ...]:
        """The keys of `annotations` that ask for a property which is not allowed, for a warning."""
        return plan_properties(annotations, self.allowed)[1]

    def _placeholder(self, unit: Unit) -> Placeholder | None:
        if unit.is_slice:
            return None
        if self.spawn_placeholder is None:
            raise CgroupError(f"start unit {unit.name}: nobody to put into it")
        return Placeholder(*self.spawn_placeholder())

    def _path(self, bus: Connection, layout: Layout, unit: Unit) -> Operation[str]:
        """Where systemd put it, relative to the mount points."""
        kind = "Slice" if unit.is_slice else "Scope"
        group = yield from _get(
            bus, unit_object(unit.name), f"org.freedesktop.systemd1.{kind}", "ControlGroup"
        )
        root = layout.unified.root if layout.unified is not None else layout.hierarchies[0].root
        path = below_root(str(group), root) if str(group).startswith("/") else None
        if not path:
            raise CgroupError(f"unit {unit.name} has no cgroup that can be seen from here: {group!r}")
        return path

    def update(self, cgroup: Cgroup, resources: Resources) -> Operation[None]:
        """Change the limits of a unit in use, until it is stopped, and then those that systemd does not know.

        On failure, which is a CgroupError, what was in force before is again.
        """
        layout, path = cgroup.layout, cgroup.path
        current = limits.read_current(resources, layout.places(path))
        writes = rounded(plan_writes(resources, layout, current), current)
        former = limits.former_writes(layout, path, writes)
        with (yield from connect(self.sockets)) as bus:
            version = yield from _version(bus)
            properties = limit_properties(writes, version, current)
            if resources.devices:
                properties += device_properties(plan_devices(resources.devices), version)
            try:
                if properties:
                    yield from _set_properties(bus, cgroup, properties)
                limits.put_in_force(layout, path, resources, writes, former)
            except (CgroupError, OSError):
                if before := limit_properties(former, version):
                    yield from _try_set_properties(bus, cgroup, before)
                raise

    def limit(self, cgroup: Cgroup, writes: tuple[Write, ...]) -> Operation[None]:
        """Tell systemd of the limits `writes` of a unit, until it is stopped. The files are the caller's to write."""
        with (yield from connect(self.sockets)) as bus:
            properties = limit_properties(writes, (yield from _version(bus)))
            yield from _set_properties(bus, cgroup, properties)

    def stopping(self, unit: str) -> Operation[CgroupError | None]:
        """`stop`, with what systemd said against it as the result: the directories may go all the same."""
        try:
            yield from self.stop(unit)
        except CgroupError as error:
            return error
        return None

    def stop(self, unit: str) -> Operation[None]:
        """Stop `unit` and have systemd forget it, also if it failed; one that is gone already is fine. CgroupError."""
        with (yield from connect(self.sockets)) as bus:
            yield from _stop(bus, unit)

    def attach(self, unit: str, sub: str, pids: Iterable[int]) -> Operation[None]:
        """Have systemd move processes into `unit`, or the cgroup `sub` below it (systemd 238): for the rootless,
        who may not write to the cgroups that they come from. CgroupError.
        """
        body = (unit, f"/{sub}" if sub else "", list(pids))
        with (yield from connect(self.sockets)) as bus:
            yield from bus.call(_PATH, _MANAGER, "AttachProcessesToUnit", "ssau", body)

    def properties(
        self, unit: str, names: Iterable[str], kind: str = "Scope"
    ) -> Operation[dict[str, object]]:
        """Properties of a unit as systemd has them now."""
        found: dict[str, object] = {}
        with (yield from connect(self.sockets)) as bus:
            for name in names:
                interface = f"org.freedesktop.systemd1.{kind}"
                found[name] = yield from _get(bus, unit_object(unit), interface, name)
        return found


def unit_object(unit: str) -> str:
    """The D-Bus object of a unit: letters and digits as they are, a digit in front and the rest as _xx."""
    escaped = "".join(
        chr(byte)
        if (chr(byte).isascii() and chr(byte).isalpha()) or (chr(byte).isdigit() and index)
        else f"_{byte:02x}"
        for index, byte in enumerate(unit.encode())
    )
    return f"{_PATH}/unit/{escaped}"


def _last_wins(properties: list[Property]) -> list[Property]:
    """Each property once, but DeviceAllow, which adds up."""
    single = {name: (name, variant) for name, variant in properties if name != "DeviceAllow"}
    return [*single.values(), *(each for each in properties if each[0] == "DeviceAllow")]


def _exists(failure: BaseException) -> bool:
    return isinstance(failure, BusError) and failure.name == _UNIT_EXISTS


def _version(bus: Connection) -> Operation[int]:
    """systemd's major version: 252 of "252.39-1~deb12u1" or "v252-rc1"."""
    text = str((yield from _get(bus, _PATH, _MANAGER, "Version"))).lstrip('"v')
    digits = ""
    for letter in text:
        if not letter.isdecimal():
            break
        digits += letter
    return int(digits) if digits else 0


def _get(bus: Connection, path: str, interface: str, name: str) -> Operation[object]:
    (variant,) = yield from bus.call(path, _PROPERTIES, "Get", "ss", (interface, name))
    return variant[1]


def _start(bus: Connection, unit: str, properties: list[Property]) -> Operation[None]:
    yield from bus.listen(_PATH, _MANAGER, "JobRemoved")
    yield from bus.call(_PATH, _MANAGER, "Subscribe")
    auxiliary: list[object] = []
    body = (unit, "replace", properties, auxiliary)
    try:
        try:
            (job,) = yield from bus.call(_PATH, _MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
        except BusError as error:
            if error.name != _UNIT_EXISTS:
                raise
            # Perhaps one that failed and that nobody has collected.
            yield from _forget_failed(bus, unit)
            (job,) = yield from bus.call(_PATH, _MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", body)
    except BusError as error:
        if error.name == "org.freedesktop.DBus.Error.InvalidArgs" or "PropertyReadOnly" in error.name:
            raise ConfigError("", f"start unit {unit}: {error}") from error
        raise
    result = yield from _job_result(bus, str(job))
    if result not in _DONE:
        raise CgroupError(f"start unit {unit}: systemd's job ended with {result!r}")


def _job_result(bus: Connection, job: str) -> Operation[str]:
    while True:
        _id, path, _unit, result = yield from bus.next_signal("JobRemoved")
        if path == job:
            return str(result)


def _set_properties(bus: Connection, cgroup: Cgroup, properties: list[Property]) -> Operation[None]:
    """On v1 with the container held: systemd takes all devices away for a moment when it writes its rules anew."""
    devices = cgroup.layout.find("devices")
    freezes = devices is not None and devices.version == 1 and not cgroup.freezer().asked()
    if freezes:
        yield from cgroup.wait_frozen(_FREEZE_TIMEOUT_S)
    try:
        yield from bus.call(_PATH, _MANAGER, "SetUnitProperties", "sba(sv)", (cgroup.unit, True, properties))
    finally:
        if freezes:
            cgroup.thaw()


def _try_set_properties(bus: Connection, cgroup: Cgroup, properties: list[Property]) -> Operation[None]:
    """Undo a change that failed half-way; the failure itself is the one to tell."""
    try:
        yield from _set_properties(bus, cgroup, properties)
    except (CgroupError, OSError):
        return


def _stop(bus: Connection, unit: str) -> Operation[None]:
    yield from bus.listen(_PATH, _MANAGER, "JobRemoved")
    yield from bus.call(_PATH, _MANAGER, "Subscribe")
    try:
        (job,) = yield from bus.call(_PATH, _MANAGER, "StopUnit", "ss", (unit, "replace"))
        yield from _job_result(bus, str(job))  # whatever it says: the cgroup tells who is left
    except BusError as error:
        if error.name != _NO_SUCH_UNIT:
            raise
    yield from _forget_failed(bus, unit)


def _forget_failed(bus: Connection, unit: str) -> Operation[None]:
    try:
        yield from bus.call(_PATH, _MANAGER, "ResetFailedUnit", "s", (unit,))
    except BusError as error:
        if error.name != _NO_SUCH_UNIT:
            raise


def _abandon(bus: Connection, unit: str) -> Operation[None]:
    """Undo a start that failed half-way; the failure itself is the one to tell."""
    try:
        yield from _stop(bus, unit)
    except CgroupError:
        return


__all__ = ["TIMEOUT_S", "Placeholder", "Systemd", "unit_object"]
