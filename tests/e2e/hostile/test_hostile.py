"""Hostile configs at the door: `manor-oci create` refuses each in one line, and nothing is left of it.

What each of them is refused for is judged in tests/unit/runtime/spec/test_hostile.py, thousands at a time; here some
of them go the whole way, files of 64 MiB included.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups.layout import detect_layout
from tests.harness.bundles import make_rootfs
from tests.harness.mountinfo import mounts_of
from tests.unit.runtime.spec.hostile import Case, Raw, cases, odd_files, places, whole_config, with_value

COUNT = int(os.environ.get("MANOR_HOSTILE_CASES", "300")) // 8
DEADLINE_S = 1.0  # of the command's own time, its start included
COMMAND = Path(sys.executable).parent / "manor-oci"


class Door:
    """`manor-oci` with a root of its own, and a bundle whose config is replaced for each case."""

    def __init__(self, path: Path) -> None:
        self.path, self.root, self.bundle = path, path / "root", path / "bundle"
        self.bundle.mkdir()
        make_rootfs(self.bundle / "rootfs")
        self.before = self.inventory()

    def create(self, data: bytes, name: str = "hostile") -> subprocess.CompletedProcess[str]:
        (self.bundle / "config.json").write_bytes(data)
        command = [str(COMMAND), "--root", str(self.root), "create", "--bundle", str(self.bundle), name]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False, text=True
        )

    def inventory(self) -> set[str]:
        """State, mounts, cgroups and files that were not there before."""
        found = {str(path) for path in self.root.glob("*") if path.name != "@seccomp"}
        found |= set(mounts_of(self.path))
        for hierarchy in detect_layout().hierarchies:
            for name in ("manor-tests/hostile", "hostile"):
                path = Path(hierarchy.mountpoint) / name
                found |= {str(path)} if path.exists() else set()
        found |= {str(path) for path in (self.bundle / "rootfs").rglob("*")}
        return found


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path)
    yield made
    assert made.inventory() <= made.before


def refuse(door: Door, case: Case) -> None:
    """`case` is refused cleanly, and at once."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    answer = door.create(case.data)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = answer.stderr
    assert answer.returncode == 1, f"{case}: {answer.returncode} {said}"
    assert answer.stdout == "", str(case)
    assert "Traceback" not in said, f"{case}: {said}"
    assert "internal error" not in said, f"{case}: {said}"
    assert said.count("\n") == 1, f"{case}: {said}"
    assert len(said) < 1500, str(case)
    assert own_s < DEADLINE_S, (
        f"{case} took {own_s:.2f} s of its own, {time.monotonic() - began:.2f} s in all"
    )
    assert door.inventory() <= door.before, str(case)


def test_files_that_are_no_config_are_refused_and_leave_nothing(door: Door) -> None:
    for case in odd_files():
        refuse(door, case)


def misplaced() -> Iterator[Case]:
    """A value of a wrong type at every fourth place of the whole config, and what JSON has no form for."""
    values: list[Any] = [
        True,
        ["x"],
        {"x": 1},
        1.5,
        7,
        "x",
        Raw("NaN"),
        Raw('"a\\u0000b"'),
        Raw("[" * 100_000),
    ]
    for index, place in enumerate(places(whole_config())):
        good: Any = whole_config()
        for part in place:
            good = good[part]
        value = values[index % len(values)]
        if index % 4 == 0 and type(value) is not type(good):
            yield with_value(place, value, whole_config)


def test_a_value_out_of_place_is_refused_and_leaves_nothing(door: Door) -> None:
    count = 0
    for case in misplaced():
        refuse(door, case)
        count += 1
    assert count > 40


def test_whatever_else_there_is_never_ends_in_a_traceback(door: Door) -> None:
    """Some of these are no config for this machine, some are; what comes to be is deleted again."""
    for index, case in enumerate(cases(20261122, COUNT + 80)):
        if index < 80:
            continue
        answer = door.create(case.data)
        assert answer.returncode in (0, 1), f"{case}: {answer}"
        assert "Traceback" not in answer.stderr, f"{case}: {answer.stderr}"
        assert "internal error" not in answer.stderr, f"{case}: {answer.stderr}"
        if answer.returncode == 0:
            subprocess.run(
                [COMMAND, "--root", door.root, "delete", "--force", "hostile"], check=True, timeout=60
            )
        door.inventory()
