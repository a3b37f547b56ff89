"""Layouts as mountinfo tells them, and the paths that a config may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.cgroups.layout import (
    HYBRID,
    LEGACY,
    UNIFIED,
    Hierarchy,
    detect_layout,
    make_layout,
    parse_cgroups_path,
    parse_mountinfo,
    unified_path,
)
from runtime.errors import CgroupError, ConfigError, Unsupported

OTHER_MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
31 23 0:28 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
"""
LEGACY_MOUNTS = """\
32 31 0:29 / /sys/fs/cgroup/systemd rw shared:10 - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:11 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/memory rw shared:12 - cgroup cgroup rw,memory,clone_children
35 31 0:32 / /sys/fs/cgroup/cpuset rw shared:13 - cgroup cgroup rw,cpuset,cpuset_v2_mode
"""
V2_BESIDE = "36 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
V2_ALONE = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


def test_legacy_machine_has_one_hierarchy_for_each_v1_mount() -> None:
    hierarchies = parse_mountinfo(OTHER_MOUNTS + LEGACY_MOUNTS)
    assert [(each.name, each.controllers, each.mountpoint, each.version) for each in hierarchies] == [
        ("name=systemd", ("name=systemd",), "/sys/fs/cgroup/systemd", 1),
        ("cpu,cpuacct", ("cpu", "cpuacct"), "/sys/fs/cgroup/cpu,cpuacct", 1),
        ("memory", ("memory",), "/sys/fs/cgroup/memory", 1),
        ("cpuset", ("cpuset",), "/sys/fs/cgroup/cpuset", 1),
    ]
    layout = make_layout(hierarchies)
    assert layout.mode == LEGACY
    assert layout.unified is None
    found = layout.find("cpuacct")
    assert found is not None
    assert found.name == "cpu,cpuacct"


def test_v2_mount_beside_v1_controllers_is_a_hybrid_machine() -> None:
    layout = make_layout(parse_mountinfo(OTHER_MOUNTS + LEGACY_MOUNTS + V2_BESIDE))
    assert layout.mode == HYBRID
    assert layout.unified is not None
    assert layout.unified.mountpoint == "/sys/fs/cgroup/unified"
    assert len(layout.v1) == 4


def test_v2_mount_alone_is_a_unified_machine() -> None:
    assert make_layout(parse_mountinfo(OTHER_MOUNTS + V2_ALONE)).mode == UNIFIED


def test_named_v1_hierarchy_without_controllers_leaves_the_machine_unified() -> None:
    layout = make_layout(parse_mountinfo(LEGACY_MOUNTS.splitlines()[0] + "\n" + V2_BESIDE))
    assert layout.mode == UNIFIED
    assert [each.name for each in layout.v1] == ["name=systemd"]


def test_machine_without_cgroups_is_an_error() -> None:
    with pytest.raises(CgroupError, match="no cgroup hierarchy is mounted"):
        make_layout(parse_mountinfo(OTHER_MOUNTS))


def test_second_mount_of_a_hierarchy_does_not_replace_the_usual_one() -> None:
    elsewhere = "80 22 0:31 / /var/lib/x/rootfs/sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    for text in (elsewhere + LEGACY_MOUNTS, LEGACY_MOUNTS + elsewhere):
        found = make_layout(parse_mountinfo(text)).find("memory")
        assert found is not None
        assert found.mountpoint == "/sys/fs/cgroup/memory"


def test_mount_of_a_part_yields_to_a_mount_of_the_whole_tree() -> None:
    part = "30 23 0:26 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    whole = "31 23 0:26 / /mnt/cgroup rw - cgroup2 cgroup2 rw\n"
    for text in (part + whole, whole + part):
        (found,) = parse_mountinfo(text)
        assert (found.mountpoint, found.root) == ("/mnt/cgroup", "/")


def test_escaped_mount_points_are_decoded() -> None:
    (found,) = parse_mountinfo("30 23 0:26 / /mnt/with\\040blank\\134 rw - cgroup2 cgroup2 rw\n")
    assert found.mountpoint == "/mnt/with blank\\"


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x1e", "\x85", "\u2028"])
def test_only_a_line_feed_ends_a_line_of_mountinfo(end: str, tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    place = tmp_path / f"a{end}b"
    place.mkdir()
    (place / "cgroup.controllers").write_text("pids\n")
    mountinfo.write_text(f"30 23 0:26 / {place} rw - cgroup2 cgroup2 rw\n", encoding="utf-8", newline="")
    (found,) = detect_layout(str(mountinfo)).hierarchies
    assert found.mountpoint == str(place)


def test_detection_reads_the_controllers_of_the_v2_root(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"30 23 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw\n")
    layout = detect_layout(str(mountinfo))
    assert layout.hierarchies == (
        Hierarchy("unified", ("cpuset", "cpu", "io", "memory", "pids"), str(tmp_path), 2),
    )
    assert layout.places("a/b")["pids"] == (f"{tmp_path}/a/b", 2)
    assert layout.view().mounts == (("unified", str(tmp_path), 2),)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("/kubepods/pod1/c1", "kubepods/pod1/c1"),
        ("default/c1", "default/c1"),
        ("//a/./b/", "a/b"),
        ("", "the-id"),
        ("/", "the-id"),
        ("/a:b:c", "a:b:c"),
        ("...", "..."),
    ],
)
def test_cgroups_path_is_taken_below_the_mount_point(given: str, meant: str) -> None:
    assert parse_cgroups_path(given, "the-id") == meant


@pytest.mark.parametrize("path", ["/a/../b", "..", "a/..", "/a\0b", "a\nb", "/" + "x" * 256, "/x" * 1800])
def test_cgroups_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"linux\.cgroupsPath"):
        parse_cgroups_path(path)


def test_empty_cgroups_path_without_an_id_is_refused() -> None:
    with pytest.raises(ConfigError, match="names no cgroup"):
        parse_cgroups_path("")


@pytest.mark.parametrize(
    "path", ["kubepods-pod1.slice:cri-containerd:c1", "system.slice:manor:x", ":manor:x"]
)
def test_systemd_form_is_not_taken_for_a_directory(path: str) -> None:
    with pytest.raises(Unsupported, match="systemd cgroup driver"):
        parse_cgroups_path(path)


def test_unified_entry_is_found_among_the_v1_ones() -> None:
    text = "4:memory:/elsewhere\n1:name=systemd:/\n0::/kubepods/pod1/c1/init\n"
    assert unified_path(text, "/") == "kubepods/pod1/c1/init"
    assert unified_path("0::/\n", "/") == ""


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x1e", "\x85", "\u2028"])
def test_a_container_that_names_a_v1_cgroup_like_an_entry_has_made_none(end: str) -> None:
    """The kernel refuses a line feed in the name of a cgroup, and nothing else."""
    text = f"4:freezer:/c1/x{end}0::/victim\n0::/c1\n"
    assert unified_path(text, "/") == "c1"


def test_unified_entry_is_relative_to_what_the_mount_shows() -> None:
    assert unified_path("0::/docker/1/pod\n", "/docker/1") == "pod"
    assert unified_path("0::/docker/1\n", "/docker/1") == ""
    assert unified_path("0::/docker/10/pod\n", "/docker/1") is None


@pytest.mark.parametrize("text", ["4:memory:/x\n", "", "0::/../../outside\n", "0::x\n"])
def test_unified_entry_that_is_not_ours_to_see_is_none(text: str) -> None:
    assert unified_path(text, "/") is None
