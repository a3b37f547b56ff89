"""Writes of a plan: what stands in for a missing file, and what a refusal says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.cgroups.files import open_directory, parse_pairs, read_file, write_all
from runtime.cgroups.layout import Hierarchy
from runtime.cgroups.writes import Write
from runtime.errors import CgroupError


def write(file: str, value: str = "1", **more: object) -> Write:
    return Write("h", file, value, "linux.resources.x", **more)  # type: ignore[arg-type]


def do(directory: Path, *writes: Write) -> None:
    fd = os.open(directory, os.O_PATH)
    try:
        write_all(fd, "/cg/a", writes)
    finally:
        os.close(fd)


def test_writes_are_done_in_order(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    do(tmp_path, write("f", "first"), write("f", "again"))
    assert (tmp_path / "f").read_text() == "again"


def test_missing_file_is_replaced_by_its_other_or_tolerated(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    do(tmp_path, write("old", "1", otherwise=write("new", "2")), write("none", optional=True))
    assert (tmp_path / "new").read_text() == "2"
    assert not (tmp_path / "none").exists()


def test_refusal_names_field_file_and_value(tmp_path: Path) -> None:
    with pytest.raises(
        CgroupError, match=r"linux\.resources\.x: write '1' to /cg/a/none: this kernel has no such file"
    ):
        do(tmp_path, write("none"))
    (tmp_path / "directory").mkdir()
    with pytest.raises(CgroupError, match=r"write '7' to /cg/a/directory: Is a directory"):
        do(tmp_path, write("directory", "7"))


def test_symlink_among_the_files_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(CgroupError, match="link"):
        do(tmp_path, write("link"))
    assert (tmp_path / "target").read_text() == ""


def test_cgroup_directory_is_not_opened_through_a_symlink_or_out_of_the_mount(tmp_path: Path) -> None:
    (tmp_path / "mount/a/b").mkdir(parents=True)
    (tmp_path / "mount/link").symlink_to("a")
    (tmp_path / "outside").mkdir()
    hierarchy = Hierarchy("h", (), str(tmp_path / "mount"), 1)
    for path in ("a/b", ""):
        open_directory(hierarchy, path).close()
    for path in ("link/b", "../outside", "/etc"):
        with pytest.raises(OSError, match=path):
            open_directory(hierarchy, path)


def test_long_files_are_read_whole(tmp_path: Path) -> None:
    text = "".join(f"{number}\n" for number in range(20_000))
    (tmp_path / "f").write_text(text)
    assert read_file(str(tmp_path / "f")) == text


def test_flat_keyed_files_become_numbers() -> None:
    assert parse_pairs("a 1\nb 22\nc\nd x\ne -1\n") == {"a": 1, "b": 22}
