"""A pod network of an instance's own: a bridge without uplink, addresses from a file, no firewall rules.

The bridge has no address on the host, so any number of instances can use the same subnet beside each other
and beside whatever the machine has.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.harness.instances import CNI_RESULTS, Instance

PLUGINS = Path("/usr/lib/cni")
SUBNET = "10.88.0.0/16"


def leases_dir(instance: Instance) -> Path:
    """Where the addresses in use are kept, one file each."""
    return instance.directory / "cni" / "leases"


def write_configuration(instance: Instance) -> Path:
    """Write the network's configuration and return the directory that containerd is to read."""
    directory = instance.directory / "cni" / "net.d"
    directory.mkdir(parents=True)
    bridge = {
        "type": "bridge",
        "bridge": instance.bridge,
        "isGateway": False,
        "ipMasq": False,
        "hairpinMode": False,
        "ipam": {
            "type": "host-local",
            "dataDir": str(leases_dir(instance)),
            "ranges": [[{"subnet": SUBNET}]],
        },
    }
    network = {"cniVersion": "0.4.0", "name": instance.network, "plugins": [bridge]}
    (directory / "10-manor.conflist").write_text(json.dumps(network, indent=2), encoding="ascii")
    return directory


def leases(instance: Instance) -> set[str]:
    """Addresses that are given out, and results that plugins keep for tearing down."""
    found = {f"address {path.name}" for path in leases_dir(instance).glob("*/[0-9]*")}
    return found | {f"result {path.name}" for path in CNI_RESULTS.glob(f"{instance.network}-*")}


def links(instance: Instance) -> set[str]:
    """Host ends of the pods' veth pairs: what is plugged into the bridge."""
    return {path.name for path in Path("/sys/class/net", instance.bridge, "brif").glob("*")}
