"""Messages of rtnetlink(7), as bytes and to the kernel."""

from __future__ import annotations

import _socket
import errno
import os
import re
import struct
from typing import TYPE_CHECKING, Any

import pytest

from runtime.linux import netlink
from runtime.linux.netlink import AF_INET, AF_INET6, IFA_F_PERMANENT, Address, Netlink
from runtime.record import replace
from tests.unit.runtime.networks import Networks, addresses, devices, in_networks, ip, needs_networks

if TYPE_CHECKING:
    from collections.abc import Iterator

NODAD, NOPREFIXROUTE = 0x02, 0x200
LOCAL = _socket.inet_pton(AF_INET, "10.1.2.3")
LOCAL6 = _socket.inet_pton(AF_INET6, "2001:db8::7")


def told(work: Any) -> str:
    """The text of the OSError that `work` raises, with its number."""
    try:
        work()
    except OSError as error:
        return f"{errno.errorcode[error.errno or 0]}: {error.strerror}"
    return "nothing went wrong"


# ---- on a kernel -------------------------------------------------------------------------------


@needs_networks
def test_a_device_is_found_by_its_name() -> None:
    def work(_networks: Networks) -> Any:
        ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        with Netlink() as here:
            before = here.link("veth0")
            here.set_up(before.index, True)
            after = here.link("veth0")
            here.set_up(before.index, False)
            last = here.link("veth0")
        index = devices()["veth0"]["ifindex"]
        return [before.name, before.index == index, before.is_up, after.is_up, last.is_up]

    assert in_networks(work) == ["veth0", True, False, True, False]


@needs_networks
def test_a_device_that_is_not_there_is_named() -> None:
    def work(_networks: Networks) -> str:
        with Netlink() as here:
            return told(lambda: here.link("eth9"))

    assert in_networks(work) == "ENODEV: netlink: get device eth9: No such device"


@needs_networks
def test_what_the_kernel_has_to_say_is_passed_on() -> None:
    def work(_networks: Networks) -> str:
        ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        with Netlink() as here:
            index = here.link("veth0").index
            return told(lambda: here.add_address(index, Address(AF_INET, 33, 0, 0, LOCAL)))

    assert in_networks(work) == (
        "EINVAL: netlink: add address 10.1.2.3/33 to device 3: Invalid argument (ipv4: Invalid prefix length)"
    )


@needs_networks
def test_a_device_moves_and_is_renamed_in_one_step() -> None:
    def work(networks: Networks) -> Any:
        ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        with Netlink() as here:
            here.move(here.link("veth0").index, networks.there, "eth0")
        return [sorted(devices()), sorted(networks.inside(devices))]

    assert in_networks(work) == [["lo", "veth1"], ["eth0", "lo"]]


@needs_networks
def test_addresses_are_read_with_all_that_belongs_to_them() -> None:
    def work(_networks: Networks) -> Any:
        ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        for address in (
            ("10.1.2.3/24", "brd", "10.1.2.255"),
            ("10.9.9.1", "peer", "10.9.9.2/32"),
            ("2001:db8::7/64", "nodad", "noprefixroute", "metric", "77"),
            ("169.254.1.1/16", "scope", "link"),
            ("10.8.8.8/8", "valid_lft", "500", "preferred_lft", "400"),
        ):
            ip("address", "add", *address, "dev", "veth0")
        ip("address", "add", "10.77.0.1/16", "dev", "veth1")
        with Netlink() as here:
            found = here.addresses(here.link("veth0").index)
        return [
            (a.family, a.prefix, a.scope, a.flags, a.local.hex(), a.peer.hex(), a.broadcast.hex(), a.metric)
            for a in sorted(found, key=lambda address: address.local)
        ]

    permanent = IFA_F_PERMANENT
    assert in_networks(work) == [
        [2, 24, 0, permanent, "0a010203", "", "0a0102ff", 0],
        [2, 8, 0, 0, "0a080808", "", "", 0],
        [2, 32, 0, permanent, "0a090901", "0a090902", "", 0],
        [10, 64, 0, permanent | NODAD | NOPREFIXROUTE, LOCAL6.hex(), "", "", 77],
        [2, 16, 253, permanent, "a9fe0101", "", "", 0],
    ]


@needs_networks
def test_addresses_are_set_with_all_that_belongs_to_them() -> None:
    wanted = (
        Address(AF_INET, 24, 0, NOPREFIXROUTE, LOCAL, b"", b"\x0a\x01\x02\xff", 5),
        Address(AF_INET, 32, 0, 0, b"\x0a\x09\x09\x01", b"\x0a\x09\x09\x02"),
        Address(AF_INET6, 64, 0, NODAD, LOCAL6, b"", b"", 7),
    )

    def work(_networks: Networks) -> Any:
        ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        with Netlink() as here:
            index = here.link("veth0").index
            for address in wanted:
                here.add_address(index, address)
            twice = told(lambda: here.add_address(index, wanted[0]))
            found = {address.local: address for address in here.addresses(index)}
        same = [found[a.local] == replace(a, flags=a.flags | IFA_F_PERMANENT) for a in wanted]
        return [addresses("veth0"), same, twice.partition(":")[0]]

    shown = ["10.1.2.3/24", "10.9.9.1/32", "2001:db8::7/64"]
    assert in_networks(work) == [shown, [True, True, True], "EEXIST"]


@needs_networks
def test_more_addresses_than_one_datagram_holds() -> None:
    def work(_networks: Networks) -> int:
        ip("link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        with Netlink() as here:
            index = here.link("veth0").index
            for number in range(1500):
                local = struct.pack(">I", 0x0A000000 + number + 1)
                here.add_address(index, Address(AF_INET, 32, 0, 0, local))
            return len(here.addresses(index))

    assert in_networks(work) == 1500


@needs_networks
def test_a_socket_of_another_namespace_leaves_us_in_ours() -> None:
    def work(networks: Networks) -> Any:
        networks.inside(lambda: ip("link", "add", "far0", "type", "bridge"))
        ip("link", "add", "near0", "type", "bridge")
        before = os.readlink("/proc/self/ns/net")
        fds = len(os.listdir("/proc/self/fd"))
        with netlink.open_in(networks.there) as there:
            found = [there.link("far0").name, told(lambda: there.link("near0")).partition(":")[0]]
        return [found, os.readlink("/proc/self/ns/net") == before, len(os.listdir("/proc/self/fd")) - fds]

    assert in_networks(work) == [["far0", "ENODEV"], True, 0]


@needs_networks
def test_what_is_no_network_namespace_is_refused_and_leaves_us_in_ours() -> None:
    def work(_networks: Networks) -> Any:
        before = os.readlink("/proc/self/ns/net")
        with open("/proc/self/ns/uts", "rb") as uts:
            said = told(lambda: netlink.open_in(uts.fileno()))
        return [said, os.readlink("/proc/self/ns/net") == before]

    assert in_networks(work) == ["EINVAL: setns: Invalid argument", True]


# ---- what a kernel would never say -------------------------------------------------------------


def message(kind: int, body: bytes, sequence: int = 1, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


class Saying:
    """A socket that answers every request with the datagrams given."""

    def __init__(self, *datagrams: bytes, sender: int = 0, flags: int = 0) -> None:
        self.left: Iterator[bytes] = iter(datagrams)
        self.sender, self.flags = sender, flags

    def sendto(self, data: bytes, _address: tuple[int, int]) -> int:
        return len(data)

    def recvmsg(self, _size: int) -> tuple[bytes, list[Any], int, tuple[int, int]]:
        try:
            return next(self.left), [], self.flags, (self.sender, 0)
        except StopIteration:
            raise TimeoutError from None

    def close(self) -> None:
        pass


def answered(saying: Saying) -> Netlink:
    made = Netlink()
    made.close()
    made._socket = saying  # type: ignore[assignment]
    return made


DONE = message(3, struct.pack("=i", 0), flags=2)
LINK = struct.pack("=BxHiII", 0, 1, 5, 1, 0) + struct.pack("=HH", 9, 3) + b"eth0\0\0\0\0"


@pytest.mark.parametrize(
    ("saying", "expected"),
    [
        (Saying(b"\x05\0\0\0" + bytes(12)), "EBADMSG: .*a message that is not whole"),
        (Saying(message(16, LINK)[:-4] + b""), "EBADMSG: .*a message that is not whole"),
        (Saying(message(16, b"\0\0")), "EBADMSG: .*a device that is not whole"),
        (Saying(message(16, LINK[:16] + b"\xff\0\x03\0")), "EBADMSG: .*an attribute that is not whole"),
        (Saying(message(16, LINK[:16] + b"\x02\0\x03\0")), "EBADMSG: .*an attribute that is not whole"),
        (Saying(message(2, b"\0\0")), "EBADMSG: .*an answer that is not whole"),
        (Saying(message(20, b"")), "EBADMSG: .*answered with something else"),
        (Saying(message(16, LINK), flags=_socket.MSG_TRUNC), "EMSGSIZE: .*of more than"),
        (Saying(message(16, LINK), sender=77), "ETIMEDOUT: .*no answer"),
        (Saying(message(16, LINK, sequence=9)), "ETIMEDOUT: .*no answer"),
        (Saying(b""), "ETIMEDOUT: .*no answer"),
    ],
)
def test_an_answer_that_is_none_is_an_error(saying: Saying, expected: str) -> None:
    assert re.search(expected, told(lambda: answered(saying).link("eth0")))


def test_an_answer_to_something_else_is_passed_over() -> None:
    stale = message(16, LINK.replace(b"eth0", b"eth7"), sequence=0)
    assert answered(Saying(stale + message(16, LINK))).link("eth0").name == "eth0"


def test_a_dump_that_something_changed_under_is_asked_for_again() -> None:
    body = struct.pack("=BBBBi", 2, 24, 128, 0, 5) + struct.pack("=HH", 8, 2) + LOCAL
    torn = message(20, body, flags=0x10) + DONE
    whole = message(20, body, sequence=2) + message(3, bytes(4), sequence=2)
    assert [a.local for a in answered(Saying(torn, whole)).addresses(5)] == [LOCAL]
    torn_for_ever = [message(20, body, n, 0x10) + message(3, bytes(4), n) for n in range(1, 9)]
    assert told(lambda: answered(Saying(*torn_for_ever)).addresses(5)).startswith("EAGAIN")


def test_of_a_dump_only_the_device_asked_for_counts() -> None:
    bodies = [struct.pack("=BBBBi", 2, 24, 128, 0, index) + b"\x08\0\x02\0" + LOCAL for index in (4, 5)]
    found = answered(Saying(b"".join(message(20, body) for body in bodies) + DONE)).addresses(5)
    assert len(found) == 1


def test_an_answer_without_end_is_cut() -> None:
    body = struct.pack("=BBBBi", 2, 24, 128, 0, 5) + b"\x08\0\x02\0" + LOCAL
    endless = Saying(*[message(20, body)] * 2000)
    assert told(lambda: answered(endless).addresses(5)).startswith("EMSGSIZE")


def test_an_address_of_the_wrong_size_is_an_error() -> None:
    body = struct.pack("=BBBBi", 10, 64, 128, 0, 5) + b"\x08\0\x02\0" + LOCAL
    assert told(lambda: answered(Saying(message(20, body) + DONE)).addresses(5)).startswith("EBADMSG")
