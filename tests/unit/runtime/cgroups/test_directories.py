"""Directories of cgroups, on ordinary ones: what is made, what is undone, what is walked and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.cgroups.directories import (
    all_processes,
    hand_down,
    inherit_cpuset,
    make_directory,
    processes,
    remove_made,
    try_remove,
    walk,
)
from runtime.cgroups.layout import Hierarchy
from runtime.errors import CgroupError
from tests.harness.processes import descriptors


def hierarchy(root: Path, *controllers: str, version: int = 2) -> Hierarchy:
    return Hierarchy("unified" if version == 2 else ",".join(controllers), controllers, str(root), version)


def test_missing_parents_are_made_and_remembered_outermost_first(tmp_path: Path) -> None:
    made: list[str] = []
    assert make_directory(hierarchy(tmp_path), "a/b/c", made)
    assert made == [f"{tmp_path}/a", f"{tmp_path}/a/b", f"{tmp_path}/a/b/c"]


def test_directory_that_was_there_is_not_ours_to_undo(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    made: list[str] = []
    assert not make_directory(hierarchy(tmp_path), "a/b", made)
    assert make_directory(hierarchy(tmp_path), "a/c", made)
    assert made == [f"{tmp_path}/a/c"]
    remove_made(made)
    assert sorted(os.listdir(tmp_path / "a")) == ["b"]


def test_undo_spares_a_parent_that_somebody_else_uses_by_now(tmp_path: Path) -> None:
    made: list[str] = []
    make_directory(hierarchy(tmp_path), "a/b", made)
    (tmp_path / "a/other").mkdir()
    remove_made(made)
    assert os.listdir(tmp_path / "a") == ["other"]


def test_directory_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CgroupError, match=f"make cgroup {tmp_path}/file/x: Not a directory"):
        make_directory(hierarchy(tmp_path), "file/x", [])


def cpusets(root: Path, values: dict[str, str]) -> None:
    """A tree of v1 cpusets by path, "" for the root's."""
    for name, value in values.items():
        directory = root / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cpuset.cpus").write_text(value)
        (directory / "cpuset.mems").write_text("0" if value else "")


def test_empty_cpusets_are_filled_from_the_first_ancestor_that_has_cpus(tmp_path: Path) -> None:
    cpusets(tmp_path, {"": "0-3\n", "a": "0-1\n", "a/b": "\n", "a/b/c": ""})
    inherit_cpuset(str(tmp_path), "a/b/c")
    assert (tmp_path / "a/b/cpuset.cpus").read_text() == "0-1"
    assert (tmp_path / "a/b/c/cpuset.cpus").read_text() == "0-1"
    assert (tmp_path / "a/b/c/cpuset.mems").read_text() == "0"


def test_asked_cpus_are_left_to_their_write_but_the_parent_is_filled(tmp_path: Path) -> None:
    cpusets(tmp_path, {"": "0-3", "a": "", "a/b": ""})
    inherit_cpuset(str(tmp_path), "a/b", ["cpuset.cpus", "memory.limit_in_bytes"])
    assert (tmp_path / "a/cpuset.cpus").read_text() == "0-3"
    assert (tmp_path / "a/b/cpuset.cpus").read_text() == ""
    assert (tmp_path / "a/b/cpuset.mems").read_text() == "0"


def v2_tree(root: Path, path: str, offered: str, present: str) -> Hierarchy:
    directory = root
    for part in ["", *path.split("/")]:
        directory = directory / part
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.subtree_control").write_text("")
        (directory / "cgroup.controllers").write_text(present)
    return hierarchy(root, *offered.split())


def test_controllers_that_are_there_are_not_handed_down_again(tmp_path: Path) -> None:
    tree = v2_tree(tmp_path, "a/b", "cpu memory", "cpu memory\n")
    hand_down(tree, "a/b", tree.controllers, {"memory": "linux.resources.memory.limit"})
    assert (tmp_path / "cgroup.subtree_control").read_text() == ""


def test_missing_controllers_are_handed_down_from_the_root_to_the_parent(tmp_path: Path) -> None:
    tree = v2_tree(tmp_path, "a/b", "cpu memory pids", "cpu\n")
    hand_down(tree, "a/b", tree.controllers, {})
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert (tmp_path / "a/cgroup.subtree_control").read_text() == "+memory +pids"
    assert (tmp_path / "a/b/cgroup.subtree_control").read_text() == ""


def test_controller_that_a_limit_needs_and_that_does_not_arrive_is_named_with_its_field(
    tmp_path: Path,
) -> None:
    tree = v2_tree(tmp_path, "a/b", "cpu memory", "cpu\n")
    with pytest.raises(
        CgroupError, match=r"memory\.limit: enable cgroup controller memory for .*/a/b: a parent"
    ):
        hand_down(tree, "a/b", tree.controllers, {"memory": "linux.resources.memory.limit"})
    (tmp_path / "a/cgroup.subtree_control").unlink()
    with pytest.raises(CgroupError, match=r"write '\+memory' to .*/a/cgroup.subtree_control: No such file"):
        hand_down(tree, "a/b", tree.controllers, {"memory": "linux.resources.memory.limit"})


def test_walk_shows_every_directory_and_leaves_children_before_parents(tmp_path: Path) -> None:
    for path in ("a/b/c", "a/d", "e"):
        (tmp_path / path).mkdir(parents=True)
    entered, left = 0, []
    for fd, name in walk(str(tmp_path)):
        if name:
            assert os.path.isdir(f"/proc/self/fd/{fd}/{name}")
            left.append(name)
        else:
            entered += 1
    assert entered == 6
    assert sorted(left) == ["a", "b", "c", "d", "e"]
    assert left.index("c") < left.index("b") < left.index("a")
    assert left.index("d") < left.index("a")


def test_walk_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert list(walk(str(tmp_path / "gone"))) == []


def test_walk_keeps_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    before = descriptors()
    assert len(list(walk(str(tmp_path)))) == 5
    unfinished = walk(str(tmp_path))
    next(unfinished)
    unfinished.close()
    assert not descriptors() - before


def test_nested_directories_are_removed_however_deep(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    home = os.getcwd()
    os.chdir(top)
    try:
        for _level in range(60):
            os.mkdir("x" * 200)
            os.chdir("x" * 200)
    finally:
        os.chdir(home)
    assert try_remove(str(top))
    assert not top.exists()


def test_removing_what_is_gone_succeeds(tmp_path: Path) -> None:
    assert try_remove(str(tmp_path / "gone"))


def test_busy_child_keeps_its_parents_but_not_its_siblings(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a/busy").mkdir(parents=True)
    (top / "b").mkdir()
    (top / "a/busy/file").touch()  # an ordinary directory is kept by a file, as a cgroup is by a process
    assert not try_remove(str(top))
    assert os.listdir(top) == ["a"]


def test_processes_of_the_whole_tree_are_listed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "cgroup.procs").write_text("1\n2\n")
    (tmp_path / "a/cgroup.procs").write_text("".join(f"{pid}\n" for pid in range(100, 9000)))
    assert sorted(processes(str(tmp_path))) == [1, 2, *range(100, 9000)]
    assert processes(str(tmp_path / "gone")) == []


def test_listing_stops_when_enough_are_found(tmp_path: Path) -> None:
    for number in range(5):
        directory = tmp_path / f"h{number}"
        directory.mkdir()
        (directory / "cgroup.procs").write_text(f"{number * 2 + 1}\n{number * 2 + 2}\n")
    found = all_processes([str(tmp_path / f"h{number}") for number in range(5)], 3)
    assert found == {1, 2, 3, 4}
    assert len(all_processes([str(tmp_path / f"h{number}") for number in range(5)])) == 10
    (tmp_path / "h0/below").mkdir()
    (tmp_path / "h0/below/cgroup.procs").write_text("77\n")
    assert processes(str(tmp_path / "h0"), 2) == [1, 2]
    assert processes(str(tmp_path / "h0")) == [1, 2, 77]
