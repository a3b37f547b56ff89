"""Network devices that move into a container: which ones (plan), their way there, and setting them up again.

`move` is for stage 0, `bring_up` for init: it is in the namespace, and the kernel has taken the addresses off
on the way. What lies between the two is a text (`encode`, `decode`). Nothing is ever moved back from a
container that ran: its network namespace owns the devices (config-linux.md, "Network Devices").
"""

from __future__ import annotations

import _socket
import errno
import os

from runtime.errors import ConfigError, ManorError, describe
from runtime.linux.netlink import (
    AF_INET,
    AF_INET6,
    IFA_F_PERMANENT,
    RT_SCOPE_UNIVERSE,
    Address,
    Netlink,
    open_in,
)
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec.model import NetDevice

# What `bring_up` must be told, in bytes: it is one field of a message of the stages.
MAX_TEXT = 16 * 1024

_MOST_NAME_BYTES = 15  # IFNAMSIZ less the final NUL
_SPACES = frozenset(b"\t\n\v\f\r \xa0")  # isspace() of the kernel, which looks at bytes
# What makes sense again in another namespace: IFA_F_NODAD, HOMEADDRESS, MANAGETEMPADDR, NOPREFIXROUTE, MCAUTOJOIN.
# The others are the kernel's own notes (permanent, tentative, deprecated …).
_KEPT_FLAGS = 0x02 | 0x10 | 0x100 | 0x200 | 0x400


class NetDeviceError(ManorError):
    """A device could not be moved or set up; says which."""


class DevicePlan(Record):
    """A device called `name` here that is to be called `target` in the container; "%d" in it is a free number."""

    name: str
    target: str


class MovedDevice(Record):
    """A device on its way: its name and index before, its name in the container, and the addresses to have again.

    Whether it `was_up` serves `give_back`.
    """

    name: str
    target: str
    index: int
    addresses: tuple[Address, ...] = ()
    was_up: bool = False


def plan_net_devices(devices: dict[str, NetDevice] | None) -> tuple[DevicePlan, ...]:
    """The plan for `linux.netDevices`, in its order. Pure.

    ConfigError for a name that no device can have, and for two devices of one name in the container. That there is
    a network namespace to move them to is the business of `spec.consistency`.
    """
    plans = []
    taken: dict[str, str] = {}
    for name, device in (devices or {}).items():
        path = f"linux.netDevices[{name[:100]!r}]"
        if not _is_valid(name):
            raise ConfigError(path, "is not a name of a network device")
        target, path = device.name or name, f"{path}.name" if device.name else path
        if not _is_valid(target) or not _is_template_or_plain(target):
            raise ConfigError(path, f"{target[:100]!r} is not a name of a network device")
        if target in taken and "%" not in target:
            raise ConfigError(path, f"{target!r} is already the name of {taken[target]!r} in the container")
        taken[target] = name
        plans.append(DevicePlan(name, target))
    return tuple(plans)


def _is_valid(name: str) -> bool:
    """dev_valid_name in net/core/dev.c."""
    data = name.encode("utf-8", "surrogateescape")
    if not 0 < len(data) <= _MOST_NAME_BYTES or name in (".", ".."):
        return False
    return not any(byte in b"/:\0" or byte in _SPACES for byte in data)


def _is_template_or_plain(name: str) -> bool:
    """__dev_alloc_name in net/core/dev.c: a percent sign is that of one "%d"."""
    return name.count("%") == name.count("%d") <= 1


# ---- stage 0 -----------------------------------------------------------------------------------


def move(plans: tuple[DevicePlan, ...], netns_fd: int) -> tuple[MovedDevice, ...]:
    """Move the devices of `plans` from our network namespace to the one behind `netns_fd`.

    It must be one that init has entered. Nothing happens where it is our own. Before the first device moves, all
    must be there, and none of the new names taken. NetDeviceError for the first that cannot; those moved are then
    given back.
    """
    if not plans or _is_ours(netns_fd):
        return ()
    with _opened() as here, _opened(netns_fd) as there:
        leaving = tuple([_look_at(here, plan) for plan in _name_all(there, plans)])
        encode(leaving)  # too long a text is an error of now, not of half a move
        moved: list[MovedDevice] = []
        try:
            for device in leaving:
                _move_one(here, device, netns_fd)
                moved.append(device)
        except NetDeviceError:
            give_back(tuple(moved), netns_fd)
            raise
    return leaving


def _is_ours(netns_fd: int) -> bool:
    theirs, ours = os.fstat(netns_fd), os.stat("/proc/thread-self/ns/net")
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _opened(netns_fd: int = -1) -> Netlink:
    try:
        return Netlink() if netns_fd < 0 else open_in(netns_fd)
    except OSError as error:
        where = "" if netns_fd < 0 else " in the container's network namespace"
        raise NetDeviceError(f"open netlink socket{where}: {describe(error)}") from error


def _name_all(there: Netlink, plans: tuple[DevicePlan, ...]) -> tuple[DevicePlan, ...]:
    """`plans` with names that are free in the container's namespace, "%d" replaced as the kernel would do it.

    Asked beforehand, as the kernel would move a device under its old name and only then find the new one taken.
    """
    taken = {plan.target for plan in plans}
    named = []
    for plan in plans:
        target = plan.target
        number = 0
        while "%" in plan.target and (target in taken or _exists(there, plan, target)):
            target = plan.target.replace("%d", str(number))
            number += 1
        if "%" not in plan.target and _exists(there, plan, target):
            message = f"the container's network namespace has a {target} already"
            raise NetDeviceError(f"move network device {plan.name}: {message}")
        taken.add(target)
        named.append(DevicePlan(plan.name, target))
    return tuple(named)


def _exists(there: Netlink, plan: DevicePlan, name: str) -> bool:
    try:
        there.link(name)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise _failure("move", plan, error) from error
    return True


def _look_at(here: Netlink, plan: DevicePlan) -> MovedDevice:
    try:
        link = here.link(plan.name)
        # Before it goes down: that alone takes IPv6 addresses away.
        addresses = tuple([_to_keep(address) for address in here.addresses(link.index) if _is_kept(address)])
    except OSError as error:
        raise _failure("look up", plan, error) from error
    return MovedDevice(plan.name, plan.target, link.index, addresses, link.is_up)


def _is_kept(address: Address) -> bool:
    """What the OCI spec has the runtime preserve: permanent addresses of global scope, of any family."""
    return bool(address.flags & IFA_F_PERMANENT) and address.scope == RT_SCOPE_UNIVERSE


def _to_keep(address: Address) -> Address:
    return Address(
        address.family,
        address.prefix,
        address.scope,
        address.flags & _KEPT_FLAGS,
        address.local,
        address.peer,
        address.broadcast,
        address.metric,
    )


def _move_one(here: Netlink, device: MovedDevice, netns_fd: int) -> None:
    try:
        if device.was_up:
            here.set_up(device.index, False)
        here.move(device.index, netns_fd, device.target)
    except OSError as error:
        if device.was_up:
            _restore(here, device)
        raise _failure("move", device, error) from error


def _restore(here: Netlink, device: MovedDevice) -> None:
    """Make a device as it was; what cannot be restored is not worth a second failure."""
    try:
        link = here.link(device.name)
        for address in device.addresses:
            _add(here, link.index, address)
        here.set_up(link.index, device.was_up)
    except OSError:
        pass


def give_back(moved: tuple[MovedDevice, ...], netns_fd: int) -> None:
    """Undo `move` for a container that never ran: else virtual devices would end with its namespace. Never raises."""
    try:
        with open_in(netns_fd) as there, Netlink() as here:
            ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                for device in moved:
                    there.move(there.link(device.target).index, ours, device.name)
                    _restore(here, device)
            finally:
                os.close(ours)
    except OSError:
        pass  # the failure that brought us here is the one to tell


# ---- in the container's network namespace ------------------------------------------------------


def bring_up(moved: tuple[MovedDevice, ...], netns_fd: int = -1) -> None:
    """Give the devices their addresses again and set them up, in our network namespace or in that behind `netns_fd`.

    NetDeviceError for the first that cannot be.
    """
    if not moved:
        return
    with _opened(netns_fd) as here:
        for device in moved:
            try:
                index = here.link(device.target).index
                for address in device.addresses:
                    _add(here, index, address)
                here.set_up(index, True)
            except OSError as error:
                raise _failure("set up", device, error) from error


def _add(here: Netlink, index: int, address: Address) -> None:
    try:
        here.add_address(index, address)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise


def _failure(operation: str, device: DevicePlan | MovedDevice, error: OSError) -> NetDeviceError:
    names = device.name if device.target == device.name else f"{device.name} (as {device.target})"
    return NetDeviceError(f"{operation} network device {names}: {describe(error)}")


# ---- the text between the two ------------------------------------------------------------------


def encode(moved: tuple[MovedDevice, ...]) -> str:
    """What `bring_up` needs of `moved`, as text; "" for none. NetDeviceError if it is more than MAX_TEXT bytes.

    A line a device: target, index, then its addresses, by spaces; an address is
    local/prefix,scope,flags,peer,broadcast,metric.
    """
    lines = []
    for device in moved:
        addresses = (_encode_address(address) for address in device.addresses)
        lines.append(" ".join((device.name, device.target, str(device.index), *addresses)))
    text = "\n".join(lines)
    if len(text.encode("utf-8", "surrogateescape")) > MAX_TEXT:
        raise NetDeviceError(
            f"move network devices: they have too many addresses ({len(text)} bytes of text)"
        )
    return text


def _encode_address(address: Address) -> str:
    rest = (
        str(address.scope),
        str(address.flags),
        _shown(address.family, address.peer),
        _shown(address.family, address.broadcast),
        str(address.metric),
    )
    return ",".join((f"{_shown(address.family, address.local)}/{address.prefix}", *rest))


def _shown(family: int, packed: bytes) -> str:
    return _socket.inet_ntop(family, packed) if packed else ""


def decode(text: str) -> tuple[MovedDevice, ...]:
    """The devices in a text of `encode`. NetDeviceError when it is none."""
    try:
        return tuple([_decode_device(line) for line in text.split("\n") if line])
    except (ValueError, OSError) as error:
        raise NetDeviceError(f"read moved network devices: {error}") from error


def _decode_device(line: str) -> MovedDevice:
    name, target, index, *addresses = line.split(" ")
    return MovedDevice(name, target, int(index), tuple([_decode_address(text) for text in addresses]))


def _decode_address(text: str) -> Address:
    network, scope, flags, peer, broadcast, metric = text.split(",")
    local, _, prefix = network.rpartition("/")
    family = AF_INET6 if ":" in local else AF_INET
    return Address(
        family,
        int(prefix),
        int(scope),
        int(flags),
        _packed(family, local),
        _packed(family, peer),
        _packed(family, broadcast),
        int(metric),
    )


def _packed(family: int, shown: str) -> bytes:
    return _socket.inet_pton(family, shown) if shown else b""
