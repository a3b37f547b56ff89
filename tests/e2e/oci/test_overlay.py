"""File systems whose options are longer than fsconfig(2) takes: overlays of many layers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.oci.conftest import Oci
from tests.harness.bundles import Bundle

PAGE = os.sysconf("SC_PAGE_SIZE")


def overlay(directory: Path, size: int, *options: str) -> dict[str, Any]:
    """An overlay on /data of layers with a file `n` each, their paths together of some `size` bytes."""
    layers: list[Path] = []
    while sum(len(str(layer)) + 1 for layer in layers) < size:
        layers.append(directory / f"layer-{len(layers)}-{'x' * 100}")
        layers[-1].mkdir(parents=True)
        (layers[-1] / str(len(layers))).write_text(f"{len(layers)}\n")
    for name in ("upper", "work"):
        (directory / name).mkdir(exist_ok=True)
    words = [
        f"lowerdir={':'.join(map(str, layers))}",
        f"upperdir={directory}/upper",
        f"workdir={directory}/work",
    ]
    return {"destination": "/data", "type": "overlay", "source": "layers", "options": [*words, *options]}


def run(oci: Oci, bundle: Bundle) -> tuple[int, str, str]:
    bundle.write()
    done = oci("run", "--bundle", bundle.path, bundle.path.name)
    return done.code, done.stdout, done.stderr


@pytest.mark.parametrize("user_namespace", [False, True])
def test_an_overlay_has_a_page_of_options(oci: Oci, user_namespace: bool) -> None:
    bundle = oci.bundle(
        "sh", "-c", "cat /data/1 /data/12 && echo new >/data/new && grep ' /data ' /proc/mounts"
    )
    bundle.config["mounts"].append(overlay(oci.directory / "l", 2000, "nosuid", "noatime", "rprivate"))
    if user_namespace:
        mapping = [{"containerID": 0, "hostID": 0, "size": 65536}]
        bundle.config["linux"]["namespaces"].append({"type": "user"})
        bundle.config["linux"].update(uidMappings=mapping, gidMappings=mapping)
    code, stdout, stderr = run(oci, bundle)
    assert (code, stderr) == (0, "")
    first, last, mount = stdout.splitlines()
    assert (first, last) == ("1", "12")
    assert mount.startswith("layers /data overlay rw,nosuid,noatime,lowerdir=")
    assert (oci.directory / "l" / "upper" / "new").read_text() == "new\n"


def test_a_file_system_that_is_read_only_is_so_with_long_options(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "cat /data/1 && ! touch /data/new && grep ' /data ' /proc/mounts")
    bundle.config["mounts"].append(overlay(oci.directory / "l", 500, "ro"))
    code, stdout, stderr = run(oci, bundle)
    assert code == 0, stderr
    assert stdout.splitlines()[1].startswith("layers /data overlay ro,relatime,lowerdir=")


def test_nothing_is_left_of_a_mount_that_is_refused(oci: Oci) -> None:
    bundle = oci.bundle("true")
    bundle.config["mounts"].append(overlay(oci.directory / "l", 500, "nonsense=1"))
    assert run(oci, bundle)[0] == 1


@pytest.mark.manor_only("runc hands the kernel what it cuts off after a page")
def test_options_of_more_than_a_page_are_refused(oci: Oci) -> None:
    bundle = oci.bundle("true")
    bundle.config["mounts"].append(overlay(oci.directory / "l", PAGE))
    code, _stdout, stderr = run(oci, bundle)
    assert code == 1
    assert f"bytes of options, the kernel takes {PAGE - 1}" in stderr
