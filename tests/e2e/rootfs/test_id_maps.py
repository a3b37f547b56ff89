"""Id-mapped mounts and sources that only the host's side can open, with and without a user namespace, beside runc."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ConfigError, StageError
from runtime.rootfs.id_map import Sources
from runtime.stages import mount_sources
from runtime.stages.plan import DIRECT, STAGED
from tests.e2e.rootfs.conftest import MAPPING, Runner, by_runc, with_user_namespace
from tests.harness.bundles import Bundle

Change = Callable[[Bundle], None]


@pytest.fixture(params=[(DIRECT, False), (STAGED, False), (DIRECT, True)], ids=["direct", "staged", "apart"])
def way(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """Who asks the host's side differs with the shape, and so does who ends it."""
    chosen: tuple[str, bool] = request.param
    return chosen


def ids(*lines: tuple[int, int, int]) -> list[dict[str, int]]:
    return [{"containerID": inside, "hostID": outside, "size": size} for inside, outside, size in lines]


SPREAD = ids((100, 101000, 3), (200, 102000, 3), (300, 103000, 3))
SPREAD_GROUPS = ids((210, 101100, 10), (220, 102200, 10), (230, 103300, 10))


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A directory with files of several owners, and another one mounted below it."""
    tree, other = tmp_path / "tree", tmp_path / "other"
    for directory, owners in ((tree, (100, 200, 300)), (other, (100, 101, 102))):
        directory.mkdir()
        for name, uid, gid in zip("abc", owners, (211, 222, 233), strict=True):
            (directory / name).write_text(name)
            os.chown(directory / name, uid, gid)
    (tree / "below").mkdir()
    subprocess.run(["mount", "--bind", str(other), str(tree / "below")], check=True)
    yield tree
    subprocess.run(["umount", str(tree / "below")], check=True)


def mounted(source: Path, *options: str, **mapping: Any) -> dict[str, Any]:
    return {"destination": "/data", "source": str(source), "options": list(options or ["bind"]), **mapping}


def owners(runner: Runner, mount: dict[str, Any], change: Change | None) -> list[str]:
    """The owners of files in /data, which must be the same with runc."""
    found = []
    for engine in ("manor", "runc"):
        names = [f"/data/{name}" for name in ("a", "b", "c", "below/a", "below/b", "below/c")]
        bundle = runner.bundle("stat", "-c", "%u:%g", *names)
        bundle.config["mounts"].append(mount)
        if change is not None:
            change(bundle)
        found.append(runner.run(bundle).stdout if engine == "manor" else by_runc(bundle).stdout)
    assert found[0] == found[1]
    return found[0].split()


AS_ON_DISK = ["100:211", "101:222", "102:233"]
NOBODY = ["65534:65534"] * 3


@pytest.mark.parametrize(
    ("options", "change", "above", "below"),
    [
        (["rbind"], None, ["101000:101101", "102000:102202", "103000:103303"], AS_ON_DISK),
        (["rbind", "idmap"], None, ["101000:101101", "102000:102202", "103000:103303"], AS_ON_DISK),
        (["rbind", "idmap"], with_user_namespace, ["1000:1101", "2000:2202", "3000:3303"], NOBODY),
        (
            *(["rbind", "ridmap"], with_user_namespace, ["1000:1101", "2000:2202", "3000:3303"]),
            ["1000:1101", "1001:2202", "1002:3303"],
        ),
        (["rbind", "idmap", "ridmap"], None, *([["101000:101101", "102000:102202", "103000:103303"]]), None),
        (
            ["rbind", "ridmap", "idmap"],
            None,
            *([["101000:101101", "102000:102202", "103000:103303"]]),
            AS_ON_DISK,
        ),
    ],
)
@pytest.mark.usefixtures("id_maps")
def test_owners_are_shown_through_the_maps_of_the_mount(
    runner: Runner,
    tree: Path,
    options: list[str],
    change: Change | None,
    above: list[str],
    below: list[str] | None,
) -> None:
    mount = mounted(tree, *options, uidMappings=SPREAD, gidMappings=SPREAD_GROUPS)
    found = owners(runner, mount, change)
    assert found[:3] == above
    assert found[3:] == (below or ["101000:101101", "101001:102202", "101002:103303"])


@pytest.mark.parametrize(("option", "below"), [("idmap", NOBODY), ("ridmap", AS_ON_DISK)])
@pytest.mark.usefixtures("id_maps")
def test_without_maps_of_its_own_a_mount_has_those_of_the_user_namespace(
    runner: Runner, tree: Path, option: str, below: list[str]
) -> None:
    found = owners(runner, mounted(tree, "rbind", option), with_user_namespace)
    assert found == ["100:211", "200:222", "300:233", *below]


@pytest.mark.usefixtures("id_maps")
def test_without_maps_of_its_own_a_mount_has_those_of_a_user_namespace_joined_by_path(
    runner: Runner, tree: Path
) -> None:
    runner.shape = ""  # the one that such a join takes
    other = runner.bundle("sleep", "1000")
    with_user_namespace(other)
    pid = runner.create(other).pid

    def join(bundle: Bundle) -> None:
        with_user_namespace(bundle)
        bundle.config["linux"]["namespaces"][-1]["path"] = f"/proc/{pid}/ns/user"
        del bundle.config["linux"]["uidMappings"], bundle.config["linux"]["gidMappings"]

    found = owners(runner, mounted(tree, "rbind", "idmap"), join)
    assert found == ["100:211", "200:222", "300:233", *NOBODY]


@pytest.mark.usefixtures("id_maps")
def test_writes_to_an_id_mapped_mount_are_owned_by_the_mapped_user(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    bundle = runner.bundle("touch", "/data/new")
    with_user_namespace(bundle)
    bundle.config["mounts"].append(mounted(tmp_path / "volume", uidMappings=MAPPING, gidMappings=MAPPING))
    assert runner.run(bundle).code == 0
    made = (tmp_path / "volume/new").stat()
    assert (made.st_uid, made.st_gid) == (0, 0)


def test_two_sources_that_the_mapped_root_cannot_reach(runner: Runner, tmp_path: Path) -> None:
    bundle = runner.bundle("cat", "/one/file", "/two")
    with_user_namespace(bundle)
    for name in ("first", "second"):
        (tmp_path / name / "dir").mkdir(parents=True)
        (tmp_path / name / "dir/file").write_text(f"{name}\n")
        (tmp_path / name).chmod(0o700)
    bundle.config["mounts"] += [
        {"destination": "/one", "source": str(tmp_path / "first/dir"), "options": ["bind"]},
        {"destination": "/two", "source": str(tmp_path / "second/dir/file"), "options": ["bind", "ro"]},
    ]
    assert runner.run(bundle).stdout == "first\nsecond\n"


@pytest.mark.usefixtures("id_maps")
def test_a_source_may_be_a_place_below_an_earlier_mount(runner: Runner, tmp_path: Path) -> None:
    """The host's side looks at it as the container's mounts stand by then, not as the host sees the directory."""
    bundle = runner.bundle("cat", "/final/x/y/file")
    with_user_namespace(bundle)
    for name in ("a", "b"):
        (tmp_path / "private" / name / "x/y").mkdir(parents=True)
        (tmp_path / "private" / name / "file").write_text(f"{name}\n")
    (tmp_path / "private").chmod(0o700)
    inside = {"uidMappings": MAPPING, "gidMappings": MAPPING}
    bundle.config["mounts"] += [
        {"destination": "/mnt", "source": f"{tmp_path}/private/a", "options": ["bind"]},
        {"destination": "/mnt/x/y", "source": f"{tmp_path}/private/b", "options": ["bind"]},
        {"destination": "/final", "source": f"{bundle.rootfs}/mnt", "options": ["rbind"], **inside},
    ]
    assert runner.run(bundle).stdout == "b\n"
    assert by_runc(bundle).stdout == "b\n"


@pytest.mark.usefixtures("id_maps")
@pytest.mark.parametrize("mapped", [False, True])
def test_a_source_in_the_image_leads_to_nowhere_outside(runner: Runner, tmp_path: Path, mapped: bool) -> None:
    """The host's side has rights that the mapped root has not: a symlink of the image must not borrow them."""
    (tmp_path / "secret").mkdir(mode=0o700)
    (tmp_path / "secret/file").write_text("secret\n")
    bundle = runner.bundle("ls", "/data")
    with_user_namespace(bundle)
    (bundle.rootfs / "volume").symlink_to(tmp_path / "secret")
    maps = {"uidMappings": MAPPING, "gidMappings": MAPPING} if mapped else {}
    bundle.config["mounts"].append(mounted(bundle.rootfs / "volume", **maps))
    with pytest.raises(StageError, match=r"mounts\[5\]: source .*"):
        runner.create(bundle)
    inside = bundle.rootfs / str(tmp_path / "secret").lstrip("/")
    inside.mkdir(parents=True)
    (inside / "own").touch()
    assert runner.run(bundle).stdout == "own\n"


@pytest.mark.usefixtures("id_maps")
def test_twenty_id_mapped_mounts_leave_no_descriptor_in_a_container_that_may_have_twenty(
    runner: Runner, tmp_path: Path
) -> None:
    (tmp_path / "volume").mkdir()
    bundle = runner.bundle("ls", "/proc/self/fd")
    with_user_namespace(bundle)
    for number in range(20):
        mount = mounted(tmp_path / "volume", uidMappings=MAPPING, gidMappings=MAPPING)
        bundle.config["mounts"].append(mount | {"destination": f"/data/{number}"})
    bundle.config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 20, "hard": 20}]
    assert runner.run(bundle).stdout.split() == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("mount", "complaint"),
    [
        ({"uidMappings": ids((0, 0, 9), (5, 50, 9))}, r"mounts\[5\]: id map: write .*: Invalid argument"),
        ({"source": "/proc"}, r"mounts\[5\]: map the ids of /proc: .*Invalid argument .*file system support"),
        ({"source": "/no/such/source"}, r"mounts\[5\]: source /no/such/source: .*No such file"),
    ],
)
def test_what_the_host_cannot_do_is_told_with_the_mount_it_was_about(
    runner: Runner, tmp_path: Path, mount: dict[str, Any], complaint: str
) -> None:
    bundle = runner.bundle("true")
    bundle.config["mounts"].append(mounted(tmp_path, uidMappings=MAPPING, gidMappings=MAPPING) | mount)
    with pytest.raises((ConfigError, StageError), match=complaint):
        runner.create(bundle)


def test_a_source_that_does_not_come_is_not_waited_for_for_ever(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setattr(mount_sources, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(Sources, "open", lambda _self, _number: os.open(fifo, os.O_RDONLY))
    bundle = runner.bundle("true")
    bundle.config["mounts"].append(mounted(tmp_path, uidMappings=MAPPING, gidMappings=MAPPING))
    with pytest.raises(StageError, match=r"the host did not open the sources of the mounts within 0 s"):
        runner.create(bundle)


def test_an_end_of_the_hosts_side_is_told(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sources, "open", lambda _self, _number: os._exit(3))
    bundle = runner.bundle("true")
    bundle.config["mounts"].append(mounted(tmp_path, uidMappings=MAPPING, gidMappings=MAPPING))
    with pytest.raises(StageError, match="0:MOUNT ended without a word"):
        runner.create(bundle)
