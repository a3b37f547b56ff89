"""Planning id-mapped root file systems from mount options; mounting them is tested end to end."""

from __future__ import annotations

import pytest

from runtime.errors import MountError
from runtime.linux import mount as linux
from shim.api.types import Mount
from shim.mapped_mounts import MOST_LAYERS, IdMaps, MappedMount
from shim.rootfs_mounts import plan

MAPS = ["uidmap=0:1000:10,10:5000:1", "gidmap=0:2000:10"]
AS_MAPPED = IdMaps("0 1000 10\n10 5000 1\n", "0 2000 10\n")


def test_the_layers_of_an_overlay_are_mapped_and_named_by_number() -> None:
    mount = Mount(
        "overlay", "overlay", "", [*MAPS, "workdir=/w", "upperdir=/u", "lowerdir=/a:/b/c", "index=off"]
    )
    assert plan([mount], "/r") == (
        MappedMount(
            *("overlay", "/r", "overlay", 0, "workdir=/w,upperdir=/u,lowerdir=0:1,index=off", AS_MAPPED),
            layers=("/a", "/b/c"),
        ),
    )


def test_more_layers_than_a_page_of_paths_holds_are_none_too_many() -> None:
    layers = [f"/var/lib/containerd/{'x' * 60}/{number}" for number in range(MOST_LAYERS)]
    (step,) = plan([Mount("overlay", "overlay", "", [*MAPS, f"lowerdir={':'.join(layers)}"])], "/r")
    assert isinstance(step, MappedMount)
    assert len(step.data) < 3000
    assert step.layers == tuple(layers)


def test_flags_of_a_bind_mount_become_attributes() -> None:
    (step,) = plan([Mount("bind", "/src", "", [*MAPS, "ro", "rbind", "nosuid"])], "/r")
    assert isinstance(step, MappedMount)
    assert step.attributes == linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID
    assert step.flags & linux.MS_REC


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (MAPS[:1], "must both be there"),
        (["uidmap=0:1000", MAPS[1]], "CONTAINER:HOST:SIZE"),
        (["uidmap=0:-1:1", MAPS[1]], "CONTAINER:HOST:SIZE"),
        (["uidmap=", MAPS[1]], "CONTAINER:HOST:SIZE"),
        (["uidmap=0:1:0", MAPS[1]], "no range of ids"),
        (["uidmap=0:4294967295:1", MAPS[1]], "no range of ids"),
        ([*MAPS, "upperdir=/u"], "layers cannot be mapped"),
        ([*MAPS, "lowerdir=a:b"], "layers cannot be mapped"),
        ([*MAPS, "lowerdir=/a::/data"], "layers cannot be mapped"),
    ],
)
def test_maps_and_layers_that_are_none_are_refused(options: list[str], complaint: str) -> None:
    with pytest.raises(MountError, match=complaint):
        plan([Mount("overlay", "overlay", "", options)], "/r")
