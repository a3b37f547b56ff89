"""Waiting for a freezer, on files that a test plays the kernel with."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.cgroups.freezer import Freezer
from runtime.errors import CgroupError
from runtime.waiting import Sleep


def v1(directory: Path, state: str = "THAWED") -> Freezer:
    (directory / "freezer.state").write_text(state)
    (directory / "freezer.self_freezing").write_text("0\n")
    return Freezer(str(directory), 1)


def v2(directory: Path) -> Freezer:
    (directory / "cgroup.freeze").write_text("0\n")
    (directory / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    return Freezer(str(directory), 2)


def test_v1_frozen_means_that_all_stand_still(tmp_path: Path) -> None:
    freezer = v1(tmp_path)
    for state, expected in (("FREEZING\n", False), ("FROZEN\n", True), ("THAWED\n", False)):
        (tmp_path / "freezer.state").write_text(state)
        assert freezer.frozen() is expected


def test_v2_waits_until_the_kernel_says_so(tmp_path: Path) -> None:
    freezer = v2(tmp_path)
    waiting = freezer.wait_frozen(10)
    assert isinstance(next(waiting), Sleep)
    assert (tmp_path / "cgroup.freeze").read_text().startswith("1")
    assert isinstance(next(waiting), Sleep)
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    with pytest.raises(StopIteration):
        next(waiting)


def test_v1_is_told_again_while_tasks_keep_coming(tmp_path: Path) -> None:
    freezer = v1(tmp_path)
    told = []
    freezer_write, state = freezer._write, tmp_path / "freezer.state"

    def write(value: str, *, or_gone: bool = False) -> None:
        told.append(value)
        freezer_write(value, or_gone=or_gone)
        state.write_text("FREEZING\n")

    class Recorded(Freezer):
        _write = staticmethod(write)  # type: ignore[assignment]

    waiting = Recorded(str(tmp_path), 1).wait_frozen(10)
    for _step in range(30):
        next(waiting)
    assert told.count("FROZEN") > 20
    assert told.count("THAWED") == 1


@pytest.mark.parametrize("version", [1, 2])
def test_freezer_that_never_gets_there_lets_everybody_run_again(tmp_path: Path, version: int) -> None:
    freezer = v1(tmp_path, "FREEZING") if version == 1 else v2(tmp_path)
    (tmp_path / "freezer.state").unlink(missing_ok=True)
    if version == 1:
        (tmp_path / "freezer.state").symlink_to("/dev/null")
        (tmp_path / "freezer.state").unlink()
        (tmp_path / "freezer.state").write_text("FREEZING")
    with pytest.raises(CgroupError, match="tasks still run after 0 s"):
        while True:
            next(_stuck(freezer, tmp_path))
    file, value = ("freezer.state", "THAWED") if version == 1 else ("cgroup.freeze", "0")
    assert (tmp_path / file).read_text().startswith(value)


def _stuck(freezer: Freezer, directory: Path):  # type: ignore[no-untyped-def]  # noqa: ANN202
    if freezer.version == 1:
        freezer.freeze = lambda: None  # type: ignore[method-assign]
    return freezer.wait_frozen(0)


@pytest.mark.parametrize("version", [1, 2])
def test_cgroup_that_is_gone_is_not_frozen_and_needs_no_thaw(tmp_path: Path, version: int) -> None:
    freezer = Freezer(str(tmp_path / "gone"), version)
    assert not freezer.frozen()
    assert not freezer.asked()
    freezer.thaw()
    with pytest.raises(CgroupError, match="write"):
        freezer.freeze()
