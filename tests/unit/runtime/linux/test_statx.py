"""Files are known without their server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.linux.statx import identity


def test_a_file_is_the_one_that_stat_knows(tmp_path: Path) -> None:
    for path in ("/", "/proc", str(tmp_path)):
        found = os.stat(path)
        assert identity(path) == (os.major(found.st_dev), os.minor(found.st_dev), found.st_ino)


def test_a_symlink_is_itself_or_what_it_leads_to(tmp_path: Path) -> None:
    link = tmp_path / "\udcfflink"
    link.symlink_to(tmp_path)
    assert identity(str(link)) == identity(str(tmp_path))
    assert identity(str(link), follow_symlinks=False)[2] == os.lstat(link).st_ino


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        identity(str(tmp_path / "nowhere"))
