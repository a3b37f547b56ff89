"""Network devices moved between namespaces with all they had, and given back on failure."""

from __future__ import annotations

import os
import struct
from typing import Any

import pytest

from runtime.errors import ConfigError
from runtime.linux.netlink import AF_INET, AF_INET6, Address, Netlink
from runtime.net_devices import (
    MAX_TEXT,
    DevicePlan,
    MovedDevice,
    NetDeviceError,
    bring_up,
    decode,
    encode,
    give_back,
    move,
    plan_net_devices,
)
from runtime.spec.model import NetDevice
from tests.unit.runtime.networks import Networks, addresses, devices, in_networks, ip, needs_networks

# ---- the plan ----------------------------------------------------------------------------------


def test_devices_keep_their_names_unless_they_get_others() -> None:
    asked = {"eth1": NetDevice(), "eth2": NetDevice("eth0"), "eth3": NetDevice("net%d")}
    assert plan_net_devices(asked) == (
        DevicePlan("eth1", "eth1"),
        DevicePlan("eth2", "eth0"),
        DevicePlan("eth3", "net%d"),
    )
    assert plan_net_devices(None) == plan_net_devices({}) == ()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "sixteen-bytes-xx", "ü" * 8, "\u00e0", "\udca0"],
    ids=repr,
)
def test_a_name_the_kernel_would_refuse_is_refused_where_it_stands(name: str) -> None:
    with pytest.raises(ConfigError) as failure:
        plan_net_devices({name: NetDevice()})
    assert failure.value.path == f"linux.netDevices[{name!r}]"
    if name:
        with pytest.raises(ConfigError) as failure:
            plan_net_devices({"eth0": NetDevice(name)})
        assert failure.value.path == "linux.netDevices['eth0'].name"


@pytest.mark.parametrize("name", ["fifteen-bytes-x", "ü" * 7, "a.b", "..."])
def test_what_the_kernel_takes_is_a_name(name: str) -> None:
    assert plan_net_devices({name: NetDevice()}) == (DevicePlan(name, name),)


@pytest.mark.parametrize("target", ["eth%", "eth%s", "%d%d", "%d%"])
def test_a_percent_sign_is_that_of_one_number(target: str) -> None:
    with pytest.raises(ConfigError, match=r"linux\.netDevices\['eth0'\]\.name: .* is not a name"):
        plan_net_devices({"eth0": NetDevice(target)})


def test_two_devices_cannot_have_one_name() -> None:
    for second in ({"eth0": NetDevice()}, {"eth2": NetDevice("eth0")}):
        with pytest.raises(ConfigError, match="'eth0' is already the name of 'eth1' in the container"):
            plan_net_devices({"eth1": NetDevice("eth0"), **second})
    assert len(plan_net_devices({"eth1": NetDevice("net%d"), "eth2": NetDevice("net%d")})) == 2


# ---- on a kernel -------------------------------------------------------------------------------


def told(work: Any) -> str:
    try:
        work()
    except NetDeviceError as error:
        return str(error)
    return "nothing went wrong"


def make_veth(name: str, *given: str, up: bool = True) -> None:
    ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-peer")
    ip("link", "set", f"{name}-peer", "up")
    if up:
        ip("link", "set", name, "up")
    for address in given:
        ip("address", "add", *address.split(), "dev", name)


@needs_networks
def test_a_device_arrives_up_and_with_its_addresses() -> None:
    def work(networks: Networks) -> Any:
        make_veth("v0", "10.1.2.3/24 brd +", "2001:db8::7/64 nodad", "10.9.9.1 peer 10.9.9.2/32")
        ip("link", "set", "v0", "mtu", "1789", "address", "02:11:22:33:44:55")
        moved = move(plan_net_devices({"v0": NetDevice("eth0")}), networks.there)
        text = encode(moved)
        networks.inside(lambda: bring_up(decode(text)))
        device = networks.inside(devices)["eth0"]
        found = sorted(networks.inside(lambda: addresses("eth0")))
        infos = {info["local"]: info for info in device["addr_info"]}
        return [
            "v0" in devices(),
            found,
            [device["mtu"], device["address"], "UP" in device["flags"]],
            [infos["10.1.2.3"]["broadcast"], infos["10.9.9.1"]["address"], infos["2001:db8::7"]["nodad"]],
        ]

    assert in_networks(work) == [
        False,
        ["10.1.2.3/24", "10.9.9.1/32", "2001:db8::7/64"],
        [1789, "02:11:22:33:44:55", True],
        ["10.1.2.255", "10.9.9.2", True],
    ]


@needs_networks
def test_only_permanent_addresses_of_global_scope_come_along() -> None:
    def work(networks: Networks) -> Any:
        make_veth("v0", "10.1.2.3/24", "169.254.1.1/16 scope link", "127.0.0.33/32 scope host")
        ip("address", "add", "10.8.8.8/8", "dev", "v0", "valid_lft", "500", "preferred_lft", "400")
        ip("address", "add", "2001:db8::9/64", "dev", "v0", "valid_lft", "500", "preferred_lft", "400")
        networks_moved = move(plan_net_devices({"v0": NetDevice()}), networks.there)
        networks.inside(lambda: bring_up(networks_moved))
        return networks.inside(lambda: addresses("v0"))

    assert in_networks(work) == ["10.1.2.3/24"]


@needs_networks
def test_a_device_that_was_down_and_bare_is_up_in_the_container() -> None:
    def work(networks: Networks) -> Any:
        make_veth("v0", up=False)
        networks_moved = move(plan_net_devices({"v0": NetDevice()}), networks.there)
        networks.inside(lambda: bring_up(networks_moved))
        return "UP" in networks.inside(devices)["v0"]["flags"]

    assert in_networks(work) is True


@needs_networks
def test_stage_0_can_set_it_up_by_itself() -> None:
    def work(networks: Networks) -> Any:
        make_veth("v0", "10.1.2.3/24")
        bring_up(move(plan_net_devices({"v0": NetDevice()}), networks.there), networks.there)
        return networks.inside(lambda: addresses("v0"))

    assert in_networks(work) == ["10.1.2.3/24"]


@needs_networks
def test_a_template_gets_the_first_number_that_is_free() -> None:
    def work(networks: Networks) -> Any:
        networks.inside(lambda: ip("link", "add", "eth0", "type", "bridge"))
        for name in ("v0", "v1", "v2"):
            make_veth(name)
        asked = {"v0": NetDevice("eth%d"), "v1": NetDevice("eth1"), "v2": NetDevice("eth%d")}
        moved = move(plan_net_devices(asked), networks.there)
        networks.inside(lambda: bring_up(moved))
        return [[device.target for device in moved], sorted(networks.inside(devices))]

    assert in_networks(work) == [["eth2", "eth1", "eth3"], ["eth0", "eth1", "eth2", "eth3", "lo"]]


@needs_networks
def test_a_name_that_is_taken_in_the_container_moves_nothing() -> None:
    def work(networks: Networks) -> Any:
        networks.inside(lambda: ip("link", "add", "eth0", "type", "bridge"))
        make_veth("v0", "10.1.2.3/24")
        make_veth("v1", "10.1.3.3/24")
        asked = {"v0": NetDevice(), "v1": NetDevice("eth0")}
        said = told(lambda: move(plan_net_devices(asked), networks.there))
        return [said, addresses("v0"), "UP" in devices()["v0"]["flags"], addresses("v1")]

    said = "move network device v1: the container's network namespace has a eth0 already"
    assert in_networks(work) == [said, ["10.1.2.3/24"], True, ["10.1.3.3/24"]]


@needs_networks
def test_a_device_that_is_not_there_moves_nothing() -> None:
    def work(networks: Networks) -> Any:
        make_veth("v0", "10.1.2.3/24")
        asked = {"v0": NetDevice(), "v9": NetDevice("eth0")}
        said = told(lambda: move(plan_net_devices(asked), networks.there))
        return [said, addresses("v0")]

    said = "look up network device v9 (as eth0): netlink: get device v9: No such device"
    assert in_networks(work) == [said, ["10.1.2.3/24"]]


@needs_networks
def test_more_addresses_than_can_be_told_move_nothing() -> None:
    def work(networks: Networks) -> Any:
        make_veth("v0")
        with Netlink() as here:
            index = here.link("v0").index
            for number in range(1000):
                local = struct.pack(">I", 0x0A000001 + number)
                here.add_address(index, Address(AF_INET, 32, 0, 0, local))
        said = told(lambda: move(plan_net_devices({"v0": NetDevice()}), networks.there))
        return [said.partition("(")[0], len(addresses("v0"))]

    assert in_networks(work) == ["move network devices: they have too many addresses ", 1000]


@needs_networks
def test_a_device_that_cannot_move_ends_it_and_the_others_are_given_back() -> None:
    """The loopback device is bound to its namespace, which only the move itself tells."""

    def work(networks: Networks) -> Any:
        make_veth("v0", "10.1.2.3/24", "2001:db8::7/64 nodad")
        fds = len(os.listdir("/proc/self/fd"))
        asked = {"v0": NetDevice("eth0"), "lo": NetDevice("lo7")}
        said = told(lambda: move(plan_net_devices(asked), networks.there))
        return [
            said.startswith("move network device lo (as lo7): netlink: move device 1 "),
            addresses("v0"),
            "UP" in devices()["v0"]["flags"],
            "UP" in devices()["lo"]["flags"],
            sorted(networks.inside(devices)),
            len(os.listdir("/proc/self/fd")) - fds,
        ]

    assert in_networks(work) == [True, ["10.1.2.3/24", "2001:db8::7/64"], True, True, ["lo"], 0]


@needs_networks
def test_what_was_moved_can_be_given_back_as_it_was() -> None:
    def work(networks: Networks) -> Any:
        make_veth("v0", "10.1.2.3/24")
        make_veth("v1", up=False)
        moved = move(plan_net_devices({"v0": NetDevice("eth0"), "v1": NetDevice()}), networks.there)
        networks.inside(lambda: bring_up(moved))
        give_back(moved, networks.there)
        flags = ["UP" in devices()[name]["flags"] for name in ("v0", "v1")]
        return [addresses("v0"), flags, sorted(networks.inside(devices))]

    assert in_networks(work) == [["10.1.2.3/24"], [True, False], ["lo"]]


@needs_networks
def test_in_our_own_namespace_nothing_happens() -> None:
    def work(_networks: Networks) -> Any:
        make_veth("v0", "10.1.2.3/24")
        with open("/proc/self/ns/net", "rb") as ours:
            moved = move(plan_net_devices({"v0": NetDevice("eth0")}), ours.fileno())
        return [list(moved), addresses("v0")]

    assert in_networks(work) == [[], ["10.1.2.3/24"]]


@needs_networks
def test_an_address_that_cannot_be_set_is_named_with_its_device() -> None:
    def work(_networks: Networks) -> Any:
        make_veth("v0")
        bad = MovedDevice("x0", "v0", 1, (Address(AF_INET, 40, 0, 0, b"\x0a\x01\x02\x03"),))
        return told(lambda: bring_up((bad,)))

    assert in_networks(work).startswith(
        "set up network device x0 (as v0): netlink: add address 10.1.2.3/40 to"
    )


# ---- the text between stage 0 and init ---------------------------------------------------------


def test_what_moved_crosses_as_text() -> None:
    moved = (
        MovedDevice("v0", "eth0", 7),
        MovedDevice(
            "v\udcff",
            "ü%",
            8,
            (
                Address(
                    AF_INET, 24, 0, 0x200, b"\x0a\x01\x02\x03", b"\x0a\x01\x02\x04", b"\x0a\x01\x02\xff", 9
                ),
                Address(AF_INET6, 64, 0, 0, bytes(15) + b"\x01"),
            ),
        ),
    )
    assert decode(encode(moved)) == moved
    assert encode(()) == ""
    assert decode("") == ()


def test_too_much_for_a_message_is_said_before_anything_moves() -> None:
    many = tuple(Address(AF_INET6, 128, 0, 0, number.to_bytes(16, "big")) for number in range(2000))
    with pytest.raises(NetDeviceError, match="too many addresses"):
        encode((MovedDevice("v0", "v0", 1, many),))
    few = encode((MovedDevice("v0", "v0", 1, many[:600]),))
    assert 4096 < len(few) < MAX_TEXT


@pytest.mark.parametrize(
    "text", ["v0", "v0 eth0 x", "v0 eth0 1 10.0.0.1", "v0 eth0 1 x/24,0,0,,,0", "a b 1 ,,"]
)
def test_a_text_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(NetDeviceError, match="read moved network devices"):
        decode(text)
