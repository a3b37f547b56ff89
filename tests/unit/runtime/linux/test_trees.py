"""What is removed with a directory, and what it only leads to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.linux.trees import mount_id, remove_tree
from tests.harness.processes import descriptors


def remove(path: Path) -> None:
    above = os.open(path.parent, os.O_PATH)
    try:
        remove_tree(above, path.name)
    finally:
        os.close(above)


def test_a_directory_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    os.mkfifo(tmp_path / "a" / "fifo")
    remove(tmp_path / "a")
    remove(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_what_is_nested_too_deeply_is_said_and_takes_no_descriptors(tmp_path: Path) -> None:
    deepest = tmp_path / "a"
    for _level in range(300):
        deepest /= "d"
    deepest.mkdir(parents=True)
    before = descriptors()
    with pytest.raises(OSError, match="Too many levels"):
        remove(tmp_path / "a")
    assert not descriptors() - before
    assert deepest.is_dir()


@pytest.mark.parametrize("place", ["a", "a/b", "a/b/c"])
def test_what_a_symlink_leads_to_stays(tmp_path: Path, place: str) -> None:
    victim = tmp_path / "victim"
    (victim / "inner").mkdir(parents=True)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).symlink_to(victim)
    remove(tmp_path / "a")
    assert [each.name for each in tmp_path.iterdir()] == ["victim"]
    assert (victim / "inner").is_dir()


def test_what_is_mounted_in_there_is_known_by_its_mount() -> None:
    numbers = {}
    for path in ("/", "/proc", "/proc/self"):
        fd = os.open(path, os.O_PATH)
        numbers[path] = mount_id(fd)
        os.close(fd)
    assert numbers["/proc"] == numbers["/proc/self"] != numbers["/"]


def test_nothing_that_is_mounted_is_entered() -> None:
    """/proc would refuse anyhow, were it tried: but with another error, for what is in it."""
    with pytest.raises(OSError, match="busy") as failure:
        remove(Path("/proc"))
    assert failure.value.filename == "proc"
