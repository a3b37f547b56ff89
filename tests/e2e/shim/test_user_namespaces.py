"""Root file systems with `uidmap=` and `gidmap=` at the shim's door: layers, bind mounts, and what goes wrong."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from shim.api import task
from shim.api.types import Mount
from shim.ttrpc.status import RpcError
from tests.e2e.shim.door import Door, overlay
from tests.harness.bundles import make_rootfs

BASE = 300_000
MAP = {"containerID": 0, "hostID": BASE, "size": 65536}
OPTIONS = [f"uidmap=0:{BASE}:65536", f"gidmap=0:{BASE}:65536"]


@pytest.fixture
def image(door: Door) -> Path:
    """A directory for layers, on a file system that can be id-mapped; a mapped root gets at the bundles."""
    door.directory.chmod(0o711)
    (door.directory / "bundles").mkdir(mode=0o711)
    return door.directory / "image"


def bundle(door: Door) -> None:
    made = door.bundle("c1", ["sleep", "1000"])
    made.config["linux"]["namespaces"].append({"type": "user"})
    made.config["linux"].update(uidMappings=[MAP], gidMappings=[MAP])
    made.write()
    subprocess.run(["rm", "-r", str(made.rootfs)], check=True)
    made.rootfs.mkdir(mode=0o711)


def mapped(mounts: list[Mount]) -> list[Mount]:
    return [Mount(each.type, each.source, each.target, [*OPTIONS, *each.options]) for each in mounts]


def run(door: Door, mounts: list[Mount]) -> int:
    """The pid of a container whose root file system is made of `mounts`."""
    bundle(door)
    door.start("c1")
    pid = door.create("c1", mounts)
    door.ask("Start", task.StartRequest("c1"))
    return pid


def owners(door: Door, *paths: str) -> list[str]:
    """Who owns these files for the container."""
    out = door.directory / "owners"
    out.write_text("")
    door.exec("c1", "e1", ["stat", "-c", "%u", *paths], stdout=str(out))
    assert door.wait("c1", "e1") == 0
    door.delete("c1", "e1")
    return out.read_text().split()


def test_every_layer_is_mapped_and_none_is_mounted_on_the_host(door: Door, image: Path) -> None:
    layers = 60
    mounts = mapped(overlay(image, layers))
    os.chown(image / "upper", BASE, BASE)
    pid = run(door, mounts)
    assert set(owners(door, "/", "/bin/busybox", "/layer-0", f"/layer-{layers - 1}")) == {"0"}
    door.exec("c1", "e2", ["touch", "/made"])
    assert door.wait("c1", "e2") == 0
    assert (image / "upper/made").stat().st_uid == os.stat(f"/proc/{pid}").st_uid == BASE
    assert door.mounts() == [f"{door.directory}/bundles/c1/rootfs"]
    door.end("c1")
    assert (door.mounts(), door.cgroups(), door.zombies()) == ([], [], [])
    assert (image / "snapshots-with-a-long-name-so-that-options-grow/0/fs/layer-0").stat().st_uid == 0


def test_an_image_without_layers_is_a_bind_mount_that_is_mapped(door: Door, image: Path) -> None:
    """As containerd gives it for one that has no parent; what is made in it is root's on the host as well."""
    make_rootfs(image)
    run(door, [Mount("bind", str(image), "", [*OPTIONS, "rw", "rbind"])])
    assert owners(door, "/bin/busybox") == ["0"]
    door.exec("c1", "e2", ["touch", "/made"])
    assert door.wait("c1", "e2") == 0
    assert (image / "made").stat().st_uid == 0
    door.end("c1")
    assert door.mounts() == []


def test_a_read_only_one_stays_so(door: Door, image: Path) -> None:
    make_rootfs(image)
    run(door, [Mount("bind", str(image), "", [*OPTIONS, "ro", "rbind"])])
    door.exec("c1", "e1", ["touch", "/made"])
    assert door.wait("c1", "e1") == 1
    door.end("c1")


def test_another_file_system_is_mapped_as_a_whole(door: Door, image: Path) -> None:
    make_rootfs(image)
    below = [Mount("tmpfs", "tmpfs", "/tmp", [*OPTIONS, "size=64k", "nosuid"])]
    run(door, [Mount("bind", str(image), "", [*OPTIONS, "rbind"]), *below])
    assert owners(door, "/tmp") == ["0"]
    door.end("c1")
    assert door.mounts() == []


def test_a_layer_that_cannot_be_had_is_named_and_nothing_is_left(door: Door, image: Path) -> None:
    mounts = mapped(overlay(image, 2))
    missing = [option.replace("/1/fs", "/2/fs") for option in mounts[0].options]
    bundle(door)
    door.start("c1")
    with pytest.raises(RpcError, match="map ids of layer .*/2/fs: No such file"):
        door.create("c1", [Mount("overlay", "overlay", "", missing)])
    assert (door.mounts(), door.cgroups()) == ([], [])
    door.create("c1", mounts)
    door.end("c1")
