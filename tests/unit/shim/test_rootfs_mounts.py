"""Planning the mounts of a root file system; mounting them is tested end to end."""

from __future__ import annotations

import pytest

from runtime.errors import MountError
from runtime.linux import mount as linux
from shim.api.types import Mount
from shim.rootfs_mounts import MountStep, plan

SNAPSHOTS = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"


def test_an_overlay_is_mounted_with_its_options_as_data() -> None:
    mount = Mount("overlay", "overlay", "", ["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"])
    assert plan([mount], "/b/rootfs") == (
        MountStep("overlay", "/b/rootfs", "overlay", 0, "index=off,workdir=/w,upperdir=/u,lowerdir=/a:/b"),
    )


def test_words_that_are_flags_are_no_data() -> None:
    (step,) = plan([Mount("bind", "/src", "", ["rbind", "ro"])], "/r")
    assert step.flags == linux.MS_BIND | linux.MS_REC | linux.MS_RDONLY
    assert step.data == ""


def test_a_target_is_below_the_root() -> None:
    (step,) = plan([Mount("bind", "/src", "/sub/dir", ["bind"])], "/r")
    assert step.target == "/r/sub/dir"


@pytest.mark.parametrize("target", ["..", "/../etc", "a/../../b"])
def test_a_target_that_leads_out_is_refused(target: str) -> None:
    with pytest.raises(MountError, match="leads out"):
        plan([Mount("bind", "/src", target, ["bind"])], "/r")


def test_many_layers_are_named_from_the_directory_they_have_in_common() -> None:
    layers = [f"{SNAPSHOTS}/{number}/fs" for number in range(100, 160)]
    mount = Mount("overlay", "overlay", "", ["upperdir=/u", f"lowerdir={':'.join(layers)}", "workdir=/w"])
    (step,) = plan([mount], "/r")
    assert isinstance(step, MountStep)
    assert step.base == SNAPSHOTS
    assert step.data.startswith("upperdir=/u,lowerdir=100/fs:101/fs:")
    assert step.data.endswith(":159/fs,workdir=/w")
    assert len(step.data) < 4096


def test_a_few_layers_are_left_as_they_are() -> None:
    (step,) = plan([Mount("overlay", "overlay", "", [f"lowerdir={SNAPSHOTS}/1/fs:{SNAPSHOTS}/2/fs"])], "/r")
    assert isinstance(step, MountStep)
    assert step.base == ""


def test_options_that_no_page_can_hold_are_an_error() -> None:
    layers = ":".join(f"/{number:0100}/x" for number in range(60))
    with pytest.raises(MountError, match="bytes of options are too many"):
        plan([Mount("overlay", "overlay", "", [f"lowerdir={layers}"])], "/r")
