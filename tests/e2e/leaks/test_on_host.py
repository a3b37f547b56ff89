"""What a container without a mount namespace of its own leaves on the host: listed mount by mount, and removed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from runtime import state
from shim.api import task
from tests.e2e.leaks.conftest import LedgerDoor
from tests.harness.bundles import Bundle
from tests.harness.waiting import eventually

pytestmark = pytest.mark.usefixtures("containerd")

SLEEP = ["sleep", "1000"]


def bundle_on_host(door: LedgerDoor, root: Path | None = None) -> Bundle:
    bundle = door.bundle("c1", SLEEP)
    kept = [each for each in bundle.config["linux"]["namespaces"] if each["type"] != "mount"]
    bundle.config["linux"]["namespaces"] = kept
    for name in ("maskedPaths", "readonlyPaths"):
        bundle.config["linux"].pop(name, None)
    if root is not None:
        bundle.rootfs.rename(root)
        bundle.config["root"]["path"] = str(root)
    bundle.write()
    return bundle


def shown(door: LedgerDoor) -> set[str]:
    return {each.what for each in door.look().leaks if each.kind == "mount"}


@pytest.mark.parametrize("where", ["bundle", "elsewhere"])
def test_its_mounts_are_found_one_by_one_and_go(door: LedgerDoor, where: str) -> None:
    root = door.directory / "elsewhere" if where == "elsewhere" else None
    bundle = bundle_on_host(door, root)
    door.start("c1")
    door.create("c1")
    door.ask("Start", task.StartRequest("c1"))
    door.kill_shim()
    made = set(door.mounts())
    assert str(root or bundle.rootfs) in made
    assert len(made) > 3
    beside = door.directory / "beside"
    beside.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "beside", beside], check=True)
    assert shown(door) == made
    assert door.collect().leaks == []
    assert door.mounts() == [str(beside)]


@pytest.mark.parametrize("who", ["leaks", "delete"])
def test_those_of_a_create_that_was_cut_short_were_on_record_before_they_were_made(
    door: LedgerDoor, who: str
) -> None:
    """Its root lies outside of its bundle, where nobody would look for it."""
    root = door.directory / "elsewhere"
    door.cut_short(bundle_on_host(door, root))
    known = state.announced(str(door.pod_directory()), "c1")
    assert known is not None
    assert known.terms is not None
    assert known.terms["root_on_host"] == str(root)
    made = set(door.mounts())
    assert str(root) in made
    if who == "leaks":
        eventually(lambda: shown(door) == made)
        assert {each.made_by for each in door.look().leaks if each.kind == "mount"} == {
            "a Create that was cut short"
        }
        assert door.collect().leaks == []
    else:
        assert door.launch("delete", "c1").returncode == 0
    assert (door.mounts(), door.cgroups(), door.state_directories()) == ([], [], [])
