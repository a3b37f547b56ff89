"""Planning the mounts of a root file system; mounting them is tested end to end."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from runtime.errors import MountError
from runtime.linux import mount as linux
from runtime.linux.constants import WALL
from runtime.stages.clone import Step
from shim import rootfs_mounts
from shim.api.types import Mount
from shim.loop import Loop
from shim.rootfs_mounts import MountStep, in_child, plan, unmount
from shim.tasks import spawn
from tests.harness.processes import descriptors
from tests.unit.shim.loops import turn_until

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


def test_where_nothing_is_mounted_the_kernel_is_not_asked_to_unmount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy disk each call may take longer than containerd waits: then a Delete would never be done."""
    asked: list[str] = []

    def umount2(path: str, _flags: int) -> None:
        asked.append(path)
        raise OSError(errno.EINVAL, "not a mount point")

    monkeypatch.setattr("shim.rootfs_mounts.linux.umount2", umount2)
    unmount(str(tmp_path))
    unmount(str(tmp_path / "nothing"))
    assert asked == []


@pytest.mark.usefixtures("nothing_is_left")
@pytest.mark.parametrize("ends_by_itself", [True, False])
def test_an_unmount_goes_on_when_the_callers_time_is_over_and_other_work_ends(
    loop: Loop, tmp_path: Path, ends_by_itself: bool
) -> None:
    """containerd gives Delete ten seconds and asks again: what was begun must not be begun anew each time."""

    def run(_step: Step) -> None:
        (tmp_path / "begun").touch()
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        (tmp_path / "done").touch()

    ended: list[Exception | None] = []
    generator = in_child("unmount", run, ends_by_itself)
    task = spawn(loop, generator, lambda _value, failure: ended.append(failure))
    turn_until(loop, (tmp_path / "begun").exists)
    task.cancel(TimeoutError())
    assert isinstance(ended[0], MountError)
    (tmp_path / "go").touch()
    pid, status = os.waitpid(-1, WALL)
    assert pid
    assert (tmp_path / "done").exists() == ends_by_itself
    assert os.waitstatus_to_exitcode(status) == (0 if ends_by_itself else -signal.SIGKILL)


def test_where_no_process_can_be_had_that_is_told_and_nothing_stays_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EAGAIN, "clone3: Resource temporarily unavailable")

    monkeypatch.setattr(rootfs_mounts, "clone_stage", refuse)
    before = descriptors()
    with pytest.raises(MountError, match="^unmount: clone: Resource temporarily unavailable$"):
        next(in_child("unmount", lambda _step: None))
    assert not descriptors() - before
