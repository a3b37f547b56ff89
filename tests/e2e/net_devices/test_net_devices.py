"""linux.netDevices: devices of the runtime's network namespace that are the container's from then on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.net_devices.conftest import Place, Scene


def join(pod: Place) -> Any:
    """A change of a config: the network namespace is the pod's."""

    def change(config: dict[str, Any]) -> None:
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] == "network":
                namespace["path"] = pod.path

    return change


def with_user_namespace(config: dict[str, Any]) -> None:
    mappings = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    config["linux"] |= {"uidMappings": mappings, "gidMappings": mappings}
    config["linux"]["namespaces"].append({"type": "user"})


def test_a_device_is_the_containers_with_all_it_was(scene: Scene) -> None:
    scene.host.add_veth("v0", "10.55.1.2/24", "10.55.9.9/32")
    scene.host.ip("link", "set", "v0", "mtu", "1389", "address", "02:00:00:11:22:33")
    done = scene.run(scene.bundle({"v0": {}}))
    assert done.code == 0, done.stderr
    assert "v0@" in done.stdout
    device = done.stdout.partition("v0@")[2]
    assert "mtu 1389" in device
    assert "link/ether 02:00:00:11:22:33" in device
    assert "inet 10.55.1.2/24" in device
    assert "inet 10.55.9.9/32" in device
    assert "UP" in device.split(">")[0]


def test_it_can_have_another_name_there(scene: Scene) -> None:
    scene.host.add_veth("v0", "10.55.1.2/24")
    done = scene.run(scene.bundle({"v0": {"name": "eth0"}}))
    assert done.code == 0, done.stderr
    assert "v0@" not in done.stdout
    assert "inet 10.55.1.2/24" in done.stdout.partition(" eth0@")[2]


@pytest.mark.manor_only("runc sets a device down before it reads its addresses, which takes IPv6 ones away")
def test_ipv6_addresses_come_along(scene: Scene) -> None:
    scene.host.add_veth("v0", "2001:db8::5/64 nodad")
    done = scene.run(scene.bundle({"v0": {}}))
    assert done.code == 0, done.stderr
    assert "inet6 2001:db8::5/64" in done.stdout


def test_addresses_for_this_host_or_for_a_while_stay_behind(scene: Scene) -> None:
    scene.host.add_veth("v0", "10.55.1.2/24", "127.0.0.33/32 scope host", "10.55.2.2/24 scope link")
    scene.host.ip("address", "add", "10.55.3.3/24", "dev", "v0", "valid_lft", "500", "preferred_lft", "400")
    done = scene.run(scene.bundle({"v0": {}}))
    assert done.code == 0, done.stderr
    inets = [line.split()[1] for line in done.stdout.partition("v0@")[2].splitlines() if " inet " in line]
    assert inets == ["10.55.1.2/24"]


def test_a_container_with_a_user_namespace_gets_it_too(scene: Scene) -> None:
    scene.host.add_veth("v0", "10.55.1.2/24")
    bundle = scene.bundle({"v0": {}}, change=with_user_namespace)
    bundle.rootfs.chmod(0o755)
    done = scene.run(bundle)
    assert done.code == 0, done.stderr
    assert "inet 10.55.1.2/24" in done.stdout


def test_what_a_joined_namespace_has_been_given_it_keeps(scene: Scene, pod: Place) -> None:
    scene.host.add_veth("v0", "10.55.1.2/24")
    done = scene.run(scene.bundle({"v0": {"name": "net7"}}, change=join(pod)))
    assert done.code == 0, done.stderr
    assert sorted(scene.host.devices()) == ["v0-peer"]
    assert pod.addresses("net7") == ["10.55.1.2/24"]
    assert "UP" in pod.devices()["net7"]["flags"]


@pytest.mark.manor_only("runc asks for the device by the template's name afterwards")
def test_a_name_with_a_number_left_open_gets_a_free_one(scene: Scene, pod: Place) -> None:
    pod.add_veth("eth0")
    scene.host.add_veth("v0", "10.55.1.2/24")
    done = scene.run(scene.bundle({"v0": {"name": "eth%d"}}, change=join(pod)))
    assert done.code == 0, done.stderr
    assert pod.addresses("eth1") == ["10.55.1.2/24"]


def test_many_addresses_come_along(scene: Scene, pod: Place) -> None:
    wanted = [f"10.56.{number // 200}.{number % 200 + 1}/32" for number in range(400)]
    scene.host.add_veth("v0", *wanted)
    done = scene.run(scene.bundle({"v0": {}}, change=join(pod)))
    assert done.code == 0, done.stderr
    assert pod.addresses("v0") == wanted


def test_a_device_that_is_not_there_fails_the_create(scene: Scene) -> None:
    done = scene.run(scene.bundle({"no-such-dev": {}}))
    assert done.code == 1
    assert "no-such-dev" in done.error


def test_without_a_network_namespace_of_its_own_there_is_nowhere_to_move_to(scene: Scene) -> None:
    def on_the_host(config: dict[str, Any]) -> None:
        kept = [each for each in config["linux"]["namespaces"] if each["type"] != "network"]
        config["linux"]["namespaces"] = kept

    scene.host.add_veth("v0", "10.55.1.2/24")
    done = scene.run(scene.bundle({"v0": {"name": "eth0"}}, change=on_the_host))
    assert done.code == 1
    assert "network" in done.error
    assert scene.host.addresses("v0") == ["10.55.1.2/24"]


@pytest.mark.manor_only("runc moves a device first and then finds its new name taken, and it is gone")
def test_a_name_that_is_taken_costs_nobody_a_device(scene: Scene, pod: Place) -> None:
    pod.add_veth("eth0")
    scene.host.add_veth("v0", "10.55.1.2/24")
    scene.host.add_veth("v1", "10.55.2.2/24")
    devices = {"v1": {}, "v0": {"name": "eth0"}}
    done = scene.run(scene.bundle(devices, change=join(pod)))
    assert done.code == 1
    assert "move network device v0: the container's network namespace has a eth0 already" in done.error
    assert scene.host.addresses("v0") == ["10.55.1.2/24"]
    assert scene.host.addresses("v1") == ["10.55.2.2/24"]
    assert sorted(pod.devices()) == ["eth0", "eth0-peer"]


@pytest.mark.manor_only("runc leaves them to the namespace, which ends and takes them with it")
def test_a_create_that_fails_later_gives_devices_back(scene: Scene) -> None:
    def with_hook(config: dict[str, Any]) -> None:
        config["hooks"] = {"createRuntime": [{"path": "/bin/false"}]}

    scene.host.add_veth("v0", "10.55.1.2/24", "2001:db8::5/64 nodad")
    done = scene.run(scene.bundle({"v0": {"name": "eth0"}}, change=with_hook))
    assert done.code == 1
    assert "createRuntime hook #0" in done.error
    assert scene.host.addresses("v0") == ["10.55.1.2/24", "2001:db8::5/64"]
    assert "UP" in scene.host.devices()["v0"]["flags"]


@pytest.mark.manor_only("runc looks at devices one by one, and names no place in the config")
@pytest.mark.parametrize(
    ("devices", "path"),
    [
        ({"a b": {}}, "linux.netDevices['a b']"),
        ({"v0": {"name": "sixteen-bytes-xx"}}, "linux.netDevices['v0'].name"),
        ({"v0": {"name": "e"}, "v1": {"name": "e"}}, "linux.netDevices['v1'].name"),
    ],
    ids=str,
)
def test_a_name_that_cannot_be_is_refused_where_it_stands(
    scene: Scene, devices: dict[str, Any], path: str
) -> None:
    done = scene.run(scene.bundle(devices))
    assert done.code == 1
    assert path in done.error
