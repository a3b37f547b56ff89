"""Status and table from state files alone."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from runtime import state
from runtime.cli.inspect import _table, _user
from runtime.linux.procstat import start_time
from runtime.status import is_frozen, status_of


def known(pid: int, **changes: object) -> state.State:
    fields: dict[str, object] = {
        "id": "c",
        "bundle": "/b",
        "pid": pid,
        "start_time": start_time(pid) if pid else 0,
        "created": "",
        "cgroups_path": "",
        "cgroup_directories": (),
        "namespaces": 0,
        "rootfs": "",
        "annotations": {},
        "oci_version": "1.0.0",
    }
    return state.State(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> str:
    (tmp_path / "c").mkdir()
    return str(tmp_path)


def test_who_lives_runs(root: str) -> None:
    assert status_of(root, known(os.getpid())) == "running"


def test_who_has_a_gate_is_created(root: str, tmp_path: Path) -> None:
    (tmp_path / "c" / "start.sock").touch()
    assert status_of(root, known(os.getpid())) == "created"


def test_whose_pid_is_anothers_is_stopped(root: str) -> None:
    assert status_of(root, known(os.getpid(), start_time=1)) == "stopped"


def test_who_has_no_pid_yet_is_creating_as_long_as_somebody_is_at_work(root: str, tmp_path: Path) -> None:
    assert status_of(root, known(0)) == "stopped"
    fd = os.open(tmp_path / "c", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert status_of(root, known(0)) == "creating"
    os.close(fd)
    assert status_of(root, known(0)) == "stopped"


@pytest.mark.parametrize(
    ("files", "frozen"),
    [
        ({"cpu,freezer/freezer.state": "FROZEN\n"}, True),
        ({"freezer/freezer.state": "FREEZING\n"}, False),
        ({"freezer/freezer.state": "THAWED\n", "unified/cgroup.events": "populated 1\nfrozen 1\n"}, False),
        ({"unified/cgroup.events": "populated 1\nfrozen 1\n"}, True),
        ({"unified/cgroup.events": "populated 1\nfrozen 0\n"}, False),
        ({"freezer/gone": ""}, False),
        ({}, False),
    ],
)
def test_frozen_is_what_the_freezer_in_use_says(tmp_path: Path, files: dict[str, str], frozen: bool) -> None:
    directories: dict[str, str] = {}
    for name, text in files.items():
        hierarchy, _slash, file = name.partition("/")
        (tmp_path / hierarchy).mkdir()
        (tmp_path / hierarchy / file).write_text(text)
        directories[hierarchy] = str(tmp_path / hierarchy)
    assert is_frozen(tuple(directories.items())) is frozen


def test_the_table_has_runcs_widths() -> None:
    rows = [
        ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"),
        ("a-long-name", "1", "running", "/b", "t", "root"),
    ]
    assert _table(rows) == (
        "ID            PID         STATUS      BUNDLE      CREATED     OWNER\n"
        "a-long-name   1           running     /b          t           root\n"
    )


def test_a_user_is_named_or_numbered() -> None:
    users: dict[int, str] = {}
    assert _user(0, users) == "root"
    assert _user(4_000_000_000, users) == "#4000000000"
