"""Network namespaces that stand in for the host's and a pod's, with devices in them that a test may lose."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.oci.conftest import Done, Oci, oci, programs, pytest_collection_modifyitems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.bundles import Bundle

__all__ = ["Oci", "oci", "programs", "pytest_collection_modifyitems"]


class Place:
    """A network namespace, as long as the process lives that holds it."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up; echo; exec sleep 1000"],
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        self.path = f"/proc/{self._holder.pid}/ns/net"

    def words(self, *words: str) -> list[str]:
        """A command line that runs in it."""
        return ["nsenter", f"--net={self.path}", *words]

    def ip(self, *arguments: str) -> str:
        """What ip(8) prints in it."""
        done = subprocess.run(self.words("ip", *arguments), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def devices(self) -> dict[str, dict[str, Any]]:
        """What ip(8) says of its devices, by name; the loopback device is left out."""
        found = {device["ifname"]: device for device in json.loads(self.ip("-j", "address", "show"))}
        found.pop("lo")
        return found

    def addresses(self, name: str) -> list[str]:
        """The addresses of a device but for those that the kernel makes by itself."""
        infos = self.devices()[name]["addr_info"]
        return [f"{info['local']}/{info['prefixlen']}" for info in infos if info["scope"] != "link"]

    def add_veth(self, name: str, *addresses: str) -> None:
        """One end of a pair, up; the other end is `name`-peer."""
        self.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-peer")
        for device in (f"{name}-peer", name):
            self.ip("link", "set", device, "up")
        for address in addresses:
            self.ip("address", "add", *address.split(), "dev", name)

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """One that a container's user may pass through, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="manor-test-") as name:
        os.chmod(name, 0o711)
        yield Path(name)


@pytest.fixture
def host() -> Iterator[Place]:
    """Where the runtime is run."""
    made = Place()
    yield made
    made.close()


@pytest.fixture
def pod() -> Iterator[Place]:
    """A namespace that containers join by path."""
    made = Place()
    yield made
    made.close()


class Scene:
    """Containers of the runtime under test with devices of `host`."""

    def __init__(self, oci: Oci, host: Place) -> None:
        self.oci, self.host = oci, host

    def bundle(
        self, devices: dict[str, Any], *program: str, change: Callable[[dict[str, Any]], None] | None = None
    ) -> Bundle:
        def with_devices(config: dict[str, Any]) -> None:
            config["linux"]["netDevices"] = devices
            if change is not None:
                change(config)

        return self.oci.bundle(*(program or ("busybox", "ip", "address", "show")), change=with_devices)

    def run(self, bundle: Bundle) -> Done:
        """Run it to its end."""
        words = self.oci.words("run", "--bundle", bundle.path, bundle.path.name)
        return self.oci.run(self.host.words(*words))


@pytest.fixture
def scene(oci: Oci, host: Place) -> Scene:
    """What most tests need."""
    return Scene(oci, host)
