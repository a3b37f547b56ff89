"""Freezing as the files tell it, and waiting for a freezer that takes its time or never gets there."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.cgroups.freezer import Freezer
from runtime.errors import CgroupError
from runtime.waiting import Sleep

FREEZE = {1: "FROZEN", 2: "1"}
THAW = {1: "THAWED", 2: "0"}


class NeverFrozen(Freezer):
    """A freezer whose tasks go on for ever; `told` is what was written to it."""

    def __init__(self, version: int) -> None:
        super().__init__("/nowhere", version)
        self.told: list[str] = []

    def _write(self, value: str, *, or_gone: bool = False) -> None:
        self.told.append(value)

    def frozen(self) -> bool:
        return False


def test_v1_is_frozen_when_all_stand_still(tmp_path: Path) -> None:
    freezer = Freezer(str(tmp_path), 1)
    for state, expected in (("FREEZING\n", False), ("FROZEN\n", True), ("THAWED\n", False)):
        (tmp_path / "freezer.state").write_text(state)
        assert freezer.frozen() is expected


def test_v1_is_asked_to_freeze_by_itself_and_not_by_a_parent(tmp_path: Path) -> None:
    (tmp_path / "freezer.state").write_text("FROZEN\n")
    for text, expected in (("0\n", False), ("1\n", True)):
        (tmp_path / "freezer.self_freezing").write_text(text)
        assert Freezer(str(tmp_path), 1).asked() is expected


def test_v2_waits_until_the_kernel_says_so(tmp_path: Path) -> None:
    (tmp_path / "cgroup.freeze").write_text("0")
    events = tmp_path / "cgroup.events"
    events.write_text("populated 1\nfrozen 0\n")
    waiting = Freezer(str(tmp_path), 2).wait_frozen(10)
    assert isinstance(next(waiting), Sleep)
    assert (tmp_path / "cgroup.freeze").read_text() == "1"
    assert isinstance(next(waiting), Sleep)
    events.write_text("populated 1\nfrozen 1\n")
    with pytest.raises(StopIteration):
        next(waiting)


@pytest.mark.parametrize(("version", "freezes", "thaws"), [(1, 61, 2), (2, 1, 0)])
def test_v1_alone_is_told_again_while_tasks_keep_coming(version: int, freezes: int, thaws: int) -> None:
    freezer = NeverFrozen(version)
    waiting = freezer.wait_frozen(10)
    for _round in range(61):
        assert next(waiting).seconds < 0.1  # type: ignore[union-attr]
    assert (freezer.told.count(FREEZE[version]), freezer.told.count(THAW[version])) == (freezes, thaws)


@pytest.mark.parametrize("version", [1, 2])
def test_freezer_that_never_gets_there_lets_everybody_run_again(version: int) -> None:
    freezer = NeverFrozen(version)
    with pytest.raises(CgroupError, match="freeze /nowhere: tasks still run after 0 s"):
        next(freezer.wait_frozen(0))
    assert freezer.told == [FREEZE[version], THAW[version]]


@pytest.mark.parametrize("version", [1, 2])
def test_cgroup_that_is_gone_is_not_frozen_and_needs_no_thaw(tmp_path: Path, version: int) -> None:
    freezer = Freezer(str(tmp_path / "gone"), version)
    assert not freezer.frozen()
    assert not freezer.asked()
    freezer.thaw()
    with pytest.raises(CgroupError, match=f"write '{FREEZE[version]}' to {tmp_path}/gone"):
        freezer.freeze()


@pytest.mark.parametrize(("version", "below"), [(1, "THAWED"), (2, "FROZEN")])
def test_for_the_killed_what_the_container_has_frozen_is_thawed_in_v1(
    tmp_path: Path, version: int, below: str
) -> None:
    directories = [tmp_path, tmp_path / "made", tmp_path / "made/below"]
    for directory in directories:
        directory.mkdir(exist_ok=True)
        for file in ("freezer.state", "cgroup.freeze"):
            (directory / file).write_text("FROZEN")
    Freezer(str(tmp_path), version).thaw_all()
    assert [(directory / "freezer.state").read_text() for directory in directories[1:]] == [below] * 2
    own = tmp_path / ("freezer.state" if version == 1 else "cgroup.freeze")
    assert own.read_text().startswith(THAW[version])
