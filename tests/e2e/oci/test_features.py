"""features: the OCI features document is whole, and each thing that it claims is true."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.oci.conftest import Oci


@pytest.fixture
def document(oci: Oci) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(oci.ok("features"))
    return found


def test_it_is_the_document_of_the_specification(document: dict[str, Any]) -> None:
    assert (document["ociVersionMin"], document["ociVersionMax"]) == ("1.0.0", "1.3.0")
    assert document["hooks"] == [
        *("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    ]
    linux = document["linux"]
    assert linux["namespaces"] == sorted(("cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"))
    assert len(linux["capabilities"]) == 41
    assert {"v1", "v2", "systemd", "systemdUser", "rdma"} <= set(linux["cgroup"])
    assert linux["seccomp"]["enabled"]
    assert all(linux[name]["enabled"] for name in ("apparmor", "selinux", "intelRdt", "netDevices"))
    assert "MPOL_BIND" in linux["memoryPolicy"]["modes"]
    assert "org.systemd.property." in document["potentiallyUnsafeConfigAnnotations"]


@pytest.mark.manor_only("runs runc as well, and compares")
def test_it_lacks_nothing_that_runc_has(oci: Oci, document: dict[str, Any]) -> None:
    from tests.harness import tools

    done = oci.run([str(tools.program(tools.RUNC_1, "runc")), "features"])
    theirs = json.loads(done.stdout)
    # runc's checkpoints are its own, and built without libseccomp it knows no filters.
    theirs["annotations"] = {}
    theirs["potentiallyUnsafeConfigAnnotations"] = ["org.systemd.property."]

    def missing(wanted: Any, found: Any, path: str) -> list[str]:
        if isinstance(wanted, dict):
            return [
                line
                for key, value in wanted.items()
                for line in (
                    [f"{path}.{key}"] if key not in found else missing(value, found[key], f"{path}.{key}")
                )
            ]
        if isinstance(wanted, list):
            return [f"{path}: {each}" for each in wanted if each not in found]
        return [] if wanted == found else [f"{path} is {found}"]

    lacking = missing(theirs, document, "")
    assert lacking in ([], [".linux.cgroup.systemdUser is False"])


# Options that cannot be tried on a tmpfs of a container's, and why.
_ELSEWHERE = {
    "bind": "a bind mount",
    "rbind": "a bind mount",
    "idmap": "a bind mount with a mapping",
    "ridmap": "a bind mount with a mapping",
    "remount": "of one that is there",
    "iversion": "tmpfs has none",
    "mand": "gone from the kernel since Linux 5.15",
}


@pytest.mark.manor_only('this kernel takes no "defaults" for data, as runc gives it')
def test_every_mount_option_is_taken(oci: Oci, document: dict[str, Any]) -> None:
    options = [each for each in document["mountOptions"] if each not in _ELSEWHERE]

    def mounted(config: dict[str, Any]) -> None:
        for index, option in enumerate(options):
            config["mounts"].append(
                {"destination": f"/m{index}", "type": "tmpfs", "source": "tmpfs", "options": [option]}
            )

    bundle = oci.bundle("true", change=mounted)
    done = oci("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code == 0, done.stderr


def test_every_namespace_can_be_had(oci: Oci, document: dict[str, Any]) -> None:
    def all_of_them(config: dict[str, Any]) -> None:
        kinds = document["linux"]["namespaces"]
        config["linux"]["namespaces"] = [{"type": kind} for kind in kinds]
        for which in ("uidMappings", "gidMappings"):
            config["linux"][which] = [{"containerID": 0, "hostID": 0, "size": 65536}]

    bundle = oci.bundle("sh", "-c", "cd /proc/self/ns; for n in *; do readlink $n; done", change=all_of_them)
    done = oci("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code == 0, done.stderr
    inside = set(done.stdout.split())
    for name in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"):
        assert os.readlink(f"/proc/self/ns/{name}") not in inside


def test_every_capability_can_be_had(oci: Oci, document: dict[str, Any]) -> None:
    status = Path("/proc/self/status").read_text().split()
    held = int(status[status.index("CapBnd:") + 1], 16) & int(status[status.index("CapPrm:") + 1], 16)
    known = document["linux"]["capabilities"]
    asked = [name for number, name in enumerate(known) if held >> number & 1]

    def capable(config: dict[str, Any]) -> None:
        kinds = ("bounding", "effective", "permitted", "inheritable", "ambient")
        config["process"]["capabilities"] = dict.fromkeys(kinds, asked)

    bundle = oci.bundle("grep", "^Cap", "/proc/self/status", change=capable)
    done = oci("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code == 0, done.stderr
    assert {int(line.split()[1], 16) for line in done.stdout.splitlines()} == {held}
