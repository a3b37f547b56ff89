"""rtnetlink(7), as far as a network device is moved and set up again: links and addresses, nothing else.

One request at a time on one socket, in the network namespace that the socket was opened in. What the kernel
sends is read with a bound and checked before it is used. Which device goes where, and which of its addresses
with it, is the business of `runtime/net_devices.py`.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct

from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd
from runtime.linux.process import setns
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NETLINK_ROUTE = 0
SOL_NETLINK = 270
NETLINK_EXT_ACK = 11  # Linux 4.12
NETLINK_GET_STRICT_CHK = 12  # Linux 4.20

# linux/netlink.h
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLM_F_DUMP_INTR = 0x10
_NLM_F_CREATE, _NLM_F_EXCL = 0x400, 0x200
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLMSGERR_ATTR_MSG = 1
_NLA_TYPE_MASK = 0x3FFF

# linux/rtnetlink.h
_RTM_NEWLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 18, 19
_RTM_NEWADDR, _RTM_GETADDR = 20, 22

# linux/if_link.h, linux/if_addr.h, linux/if.h
_IFLA_IFNAME, _IFLA_NET_NS_FD = 3, 28
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS, _IFA_RT_PRIORITY = 1, 2, 4, 8, 9
IFF_UP = 0x1
IFA_F_PERMANENT = 0x80
RT_SCOPE_UNIVERSE = 0
AF_INET, AF_INET6 = _socket.AF_INET, _socket.AF_INET6

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ADDRESS = struct.Struct("=BBBBi")  # struct ifaddrmsg

_BUFFER_BYTES = 64 * 1024  # more than the kernel puts into one datagram of a dump
_MOST_DATAGRAMS = 1024
_DUMP_ATTEMPTS = 5
_TIMEOUT_S = 10.0


class Link(Record):
    """A network device: its index and name in its namespace, and IFF_* flags."""

    index: int
    name: str
    flags: int

    @property
    def is_up(self) -> bool:
        """Whether it is administratively up."""
        return bool(self.flags & IFF_UP)


class Address(Record):
    """An address of a device. `local`, `peer` and `broadcast` are in network order, b"" for none.

    `flags` are all 32 bits of IFA_F_*; `metric` is the priority of its prefix route, 0 for the kernel's choice.
    """

    family: int
    prefix: int
    scope: int
    flags: int
    local: bytes
    peer: bytes = b""
    broadcast: bytes = b""
    metric: int = 0


class Interrupted(Exception):
    """A dump that something changed under; internal, it is asked for again."""


class Netlink:
    """A NETLINK_ROUTE socket of one network namespace; a context manager. Its methods raise OSError.

    The text of an OSError is the request, what the kernel answered, and the kernel's own words where it has some.
    """

    __slots__ = ("_sequence", "_socket")

    def __init__(self) -> None:
        """Open it in the namespace that we are in."""
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
        self._socket = _socket.socket(_socket.AF_NETLINK, kind, NETLINK_ROUTE)
        self._sequence = 0
        self._socket.settimeout(_TIMEOUT_S)
        for option in (NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            try:
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            except OSError:
                pass  # an older kernel: its errors have no text, and its dumps hold more than we ask for

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._socket.close()

    def link(self, name: str) -> Link:
        """RTM_GETLINK: the device called `name`; ENODEV without one."""
        body = _LINK.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name)
        for kind, answer in self._ask(_RTM_GETLINK, 0, body, f"get device {name}"):
            if kind == _RTM_NEWLINK:
                return _parse_link(answer)
        raise OSError(errno.EBADMSG, f"netlink: get device {name}: the kernel answered with something else")

    def move(self, index: int, netns_fd: int, name: str) -> None:
        """RTM_SETLINK: give the device to the namespace behind `netns_fd`, where it is called `name`.

        One message, so that no other name can meet it on the way; "%d" in `name` is the kernel's to fill in
        (dev_alloc_name). It arrives down and without addresses.
        """
        body = _LINK.pack(0, 0, index, 0, 0)
        body += _attribute(_IFLA_NET_NS_FD, struct.pack("=I", netns_fd)) + _text(_IFLA_IFNAME, name)
        self._do(_RTM_SETLINK, 0, body, f"move device {index} to a network namespace as {name}")

    def set_up(self, index: int, up: bool) -> None:
        """RTM_SETLINK: set IFF_UP of the device, or clear it."""
        body = _LINK.pack(0, 0, index, IFF_UP if up else 0, IFF_UP)
        self._do(_RTM_SETLINK, 0, body, f"set device {index} {'up' if up else 'down'}")

    def addresses(self, index: int) -> tuple[Address, ...]:
        """RTM_GETADDR: all addresses of the device, IPv4 and IPv6, in the kernel's order."""
        body = _ADDRESS.pack(0, 0, 0, 0, index)
        for _attempt in range(_DUMP_ATTEMPTS):
            try:
                answers = tuple(
                    self._ask(_RTM_GETADDR, _NLM_F_DUMP, body, f"get addresses of device {index}")
                )
            except Interrupted:
                continue
            return tuple(
                [
                    _parse_address(answer)
                    for kind, answer in answers
                    if kind == _RTM_NEWADDR and _address_index(answer) == index
                ]
            )
        raise OSError(errno.EAGAIN, f"netlink: get addresses of device {index}: they keep changing")

    def add_address(self, index: int, address: Address) -> None:
        """RTM_NEWADDR: give the device `address`; EEXIST if it has it."""
        body = _ADDRESS.pack(address.family, address.prefix, address.flags & 0xFF, address.scope, index)
        body += _attribute(_IFA_LOCAL, address.local)
        body += _attribute(_IFA_ADDRESS, address.peer or address.local)
        if address.broadcast:
            body += _attribute(_IFA_BROADCAST, address.broadcast)
        if address.flags:
            body += _attribute(_IFA_FLAGS, struct.pack("=I", address.flags))
        if address.metric:
            body += _attribute(_IFA_RT_PRIORITY, struct.pack("=I", address.metric))
        subject = f"{_socket.inet_ntop(address.family, address.local)}/{address.prefix}"
        self._do(_RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_EXCL, body, f"add address {subject} to device {index}")

    # ---- requests and answers ------------------------------------------------------------------

    def _do(self, kind: int, flags: int, body: bytes, what: str) -> None:
        for _answer in self._ask(kind, flags | _NLM_F_ACK, body, what):
            pass

    def _ask(self, kind: int, flags: int, body: bytes, what: str) -> Iterator[tuple[int, bytes]]:
        """Send one request and give the messages of its answer, up to the one that ends it."""
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags | _NLM_F_REQUEST, self._sequence, 0)
        try:
            self._socket.sendto(header + body, (0, 0))
            yield from self._answers(bool(flags & _NLM_F_DUMP), bool(flags & _NLM_F_ACK), what)
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, f"netlink: {what}: no answer in {_TIMEOUT_S:.0f} s") from None

    def _answers(self, dump: bool, acknowledged: bool, what: str) -> Iterator[tuple[int, bytes]]:
        interrupted = False
        for _datagram in range(_MOST_DATAGRAMS):
            for kind, flags, body in self._messages(what):
                if flags & _NLM_F_DUMP_INTR:
                    interrupted = True
                if kind == _NLMSG_ERROR:
                    _raise_error(flags, body, what)
                    return
                if kind == _NLMSG_DONE:
                    if interrupted:
                        raise Interrupted
                    return
                yield kind, body
                if not dump and not acknowledged:
                    return
        raise OSError(errno.EMSGSIZE, f"netlink: {what}: an answer without end")

    def _messages(self, what: str) -> Iterator[tuple[int, int, bytes]]:
        """The messages of the next datagram that answers our last request: (type, flags, body)."""
        data, _ancillary, flags, sender = self._socket.recvmsg(_BUFFER_BYTES)
        if flags & _socket.MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, f"netlink: {what}: an answer of more than {_BUFFER_BYTES} bytes")
        if sender[0] != 0:
            return  # not from the kernel: another process may send to our port
        while len(data) >= _HEADER.size:
            length, kind, message_flags, sequence, _port = _HEADER.unpack_from(data)
            if not _HEADER.size <= length <= len(data):
                raise OSError(errno.EBADMSG, f"netlink: {what}: a message that is not whole")
            if sequence == self._sequence:
                yield kind, message_flags, data[_HEADER.size : length]
            data = data[_aligned(length) :]


def open_in(netns_fd: int) -> Netlink:
    """A socket of the network namespace behind `netns_fd`; we are in our own again when it is open.

    For a process with one thread that may enter that namespace (CAP_SYS_ADMIN there and here). OSError of setns(2).
    """
    with OwnedFd(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as ours:
        setns(
            ours.fileno(), c.CLONE_NEWNET
        )  # who may not do this could enter the other one, and not come back
        setns(netns_fd, c.CLONE_NEWNET)
        try:
            return Netlink()
        finally:
            setns(ours.fileno(), c.CLONE_NEWNET)


# ---- attributes --------------------------------------------------------------------------------


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode("utf-8", "surrogateescape") + b"\0")


def _attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data` by type; the last of two of one type. OSError for one that is not whole."""
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            raise OSError(errno.EBADMSG, "netlink: an attribute that is not whole")
        found[kind & _NLA_TYPE_MASK] = data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]
    return found


def _number(value: bytes | None) -> int:
    return int.from_bytes(value[:4], "little" if struct.pack("=H", 1)[0] else "big") if value else 0


def _parse_link(body: bytes) -> Link:
    if len(body) < _LINK.size:
        raise OSError(errno.EBADMSG, "netlink: a device that is not whole")
    _family, _kind, index, flags, _change = _LINK.unpack_from(body)
    name = _attributes(body[_LINK.size :]).get(_IFLA_IFNAME, b"")
    return Link(index, name.rstrip(b"\0").decode("utf-8", "surrogateescape"), flags)


def _address_index(body: bytes) -> int:
    if len(body) < _ADDRESS.size:
        raise OSError(errno.EBADMSG, "netlink: an address that is not whole")
    index: int = _ADDRESS.unpack_from(body)[4]
    return index


def _parse_address(body: bytes) -> Address:
    family, prefix, flags, scope, _index = _ADDRESS.unpack_from(body)
    attributes = _attributes(body[_ADDRESS.size :])
    other = attributes.get(_IFA_ADDRESS, b"")
    # On a point-to-point link IFA_LOCAL is our end and IFA_ADDRESS the other; else IPv6 has no IFA_LOCAL.
    local = attributes.get(_IFA_LOCAL, other)
    if len(local) != (4 if family == AF_INET else 16):
        raise OSError(errno.EBADMSG, f"netlink: an address of family {family} with {len(local)} bytes")
    return Address(
        family,
        prefix,
        scope,
        _number(attributes[_IFA_FLAGS]) if _IFA_FLAGS in attributes else flags,
        local,
        b"" if other == local else other,
        attributes.get(_IFA_BROADCAST, b""),
        _number(attributes.get(_IFA_RT_PRIORITY)),
    )


def _raise_error(flags: int, body: bytes, what: str) -> None:
    """What an NLMSG_ERROR says; number 0 is an acknowledgement. The request follows it, then, if asked for, texts."""
    if len(body) < 4 + _HEADER.size:
        raise OSError(errno.EBADMSG, f"netlink: {what}: an answer that is not whole")
    number = -struct.unpack_from("=i", body)[0]
    if not number:
        return
    text = os.strerror(number)
    if flags & _NLM_F_ACK_TLVS:
        request_length = _HEADER.size if flags & _NLM_F_CAPPED else _HEADER.unpack_from(body, 4)[0]
        said = _attributes(body[4 + _aligned(request_length) :]).get(_NLMSGERR_ATTR_MSG, b"")
        if said:
            text += f" ({said.rstrip(bytes(1)).decode('utf-8', 'replace')[:200]})"
    raise OSError(number, f"netlink: {what}: {text}")
