"""A container's cgroup as a whole, on a tree of ordinary files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from runtime.cgroups import counters
from runtime.cgroups.cgroup import Cgroup, create_cgroup, landlord_directory, open_cgroup, reopen
from runtime.cgroups.layout import Hierarchy, Layout, make_layout
from runtime.errors import CgroupError, ConfigError, Unsupported
from runtime.spec.model import Pids, Resources
from tests.harness.processes import descriptors


def hybrid(root: Path, *v1: str) -> Layout:
    hierarchies = [Hierarchy(name, tuple(name.split(",")), str(root / name), 1) for name in v1]
    hierarchies.append(Hierarchy("unified", (), str(root / "unified"), 2))
    for each in hierarchies:
        (root / each.name / "a/c").mkdir(parents=True)
        (root / each.name / "a/c/tasks").touch()
    return make_layout(tuple(hierarchies))


def unified(root: Path, *controllers: str) -> Layout:
    (root / "a/c").mkdir(parents=True)
    return make_layout((Hierarchy("unified", controllers, str(root), 2),))


def test_paths_are_those_of_every_hierarchy(tmp_path: Path) -> None:
    cgroup = open_cgroup(hybrid(tmp_path, "cpu,cpuacct", "name=systemd"), "/a/c")
    assert cgroup.paths == {
        "cpu,cpuacct": f"{tmp_path}/cpu,cpuacct/a/c",
        "name=systemd": f"{tmp_path}/name=systemd/a/c",
        "unified": f"{tmp_path}/unified/a/c",
    }


def test_opening_a_cgroup_touches_nothing(tmp_path: Path) -> None:
    layout = hybrid(tmp_path, "memory")
    assert open_cgroup(layout, "", "the-id").paths["memory"] == f"{tmp_path}/memory/the-id"
    assert not (tmp_path / "memory/the-id").exists()


def test_memory_and_then_the_freezer_are_joined_last(tmp_path: Path) -> None:
    layout = hybrid(tmp_path, "freezer", "memory", "cpu,cpuacct", "pids")
    with open_cgroup(layout, "/a/c").open_join() as join:
        names = [os.readlink(f"/proc/self/fd/{fd}").split("/")[-4] for fd in join.fds()]
        assert names == ["cpu,cpuacct", "pids", "memory", "freezer"]
        assert join.v2_dir is not None
        assert os.readlink(f"/proc/self/fd/{join.v2_dir.fileno()}") == f"{tmp_path}/unified/a/c"
        join.enter_v1()
    assert [(tmp_path / name / "a/c/tasks").read_text() for name in ("memory", "pids")] == ["0", "0"]


def test_join_that_fails_half_way_keeps_nothing_open(tmp_path: Path) -> None:
    layout = hybrid(tmp_path, "cpu", "memory")
    before = descriptors()
    (tmp_path / "unified/a/c/tasks").unlink()
    (tmp_path / "unified/a/c").rmdir()
    with pytest.raises(FileNotFoundError):
        open_cgroup(layout, "/a/c").open_join()
    (tmp_path / "memory/a/c/tasks").unlink()
    with pytest.raises(FileNotFoundError):
        open_cgroup(layout, "/a/c").open_join()
    assert not descriptors() - before


def test_child_is_always_below(tmp_path: Path) -> None:
    cgroup = open_cgroup(hybrid(tmp_path, "memory"), "/a/c")
    assert cgroup.child("/x/./y").paths["memory"] == f"{tmp_path}/memory/a/c/x/y"
    for path in ("..", "x/../../y", "", "/"):
        with pytest.raises(ConfigError):
            cgroup.child(path)


def test_cpus_are_the_parents_where_the_cpuset_was_not_handed_down(tmp_path: Path) -> None:
    cgroup = open_cgroup(unified(tmp_path, "cpuset"), "/a/c")
    assert cgroup.cpuset_cpus() is None
    (tmp_path / "cpuset.cpus.effective").write_text("0-7\n")
    assert cgroup.cpuset_cpus() == "0-7"
    (tmp_path / "a/cpuset.cpus.effective").write_text("0-3\n")
    assert cgroup.cpuset_cpus() == "0-3"
    (tmp_path / "a/c/cpuset.cpus.effective").write_text("2\n")
    assert cgroup.cpuset_cpus() == "2"


def test_machine_without_a_cpuset_has_no_cpus_to_tell(tmp_path: Path) -> None:
    assert open_cgroup(unified(tmp_path, "cpu"), "/a/c").cpuset_cpus() is None


def test_machine_without_a_freezer_can_not_pause(tmp_path: Path) -> None:
    layout = make_layout((Hierarchy("memory", ("memory",), str(tmp_path), 1),))
    with pytest.raises(Unsupported, match="no freezer controller"):
        open_cgroup(layout, "/a/c").freeze()


def test_freezer_of_a_hybrid_machine_is_v1s(tmp_path: Path) -> None:
    assert open_cgroup(hybrid(tmp_path, "freezer"), "/a/c").freezer().version == 1
    assert Cgroup(unified(tmp_path / "u", "cpu"), "a/c").freezer().version == 2


def test_landlord_is_looked_up_in_the_given_procfs(tmp_path: Path) -> None:
    layout = unified(tmp_path / "cg", "cpu")
    (tmp_path / "proc/17").mkdir(parents=True)
    (tmp_path / "proc/17/cgroup").write_text("3:cpu:/elsewhere\n0::/a/c\n")
    proc = os.open(tmp_path / "proc", os.O_PATH)
    try:
        with landlord_directory(layout, 17, proc) as directory:
            assert os.readlink(f"/proc/self/fd/{directory.fileno()}") == f"{tmp_path}/cg/a/c"
        (tmp_path / "proc/17/cgroup").write_text("0::/a/c (deleted)\n")
        with pytest.raises(FileNotFoundError):
            landlord_directory(layout, 17, proc)
        (tmp_path / "proc/17/cgroup").write_text("0::/../..\n")
        with pytest.raises(CgroupError, match="process 17: no unified entry"):
            landlord_directory(layout, 17, proc)
    finally:
        os.close(proc)


# ---- who may not make cgroups everywhere -------------------------------------------------------


def forbid(monkeypatch: pytest.MonkeyPatch, *parts: str) -> None:
    """Let nobody make a directory whose path has one of `parts`."""
    mkdir = os.mkdir

    def refuse(path: str, mode: int = 0o777) -> None:
        if any(part in path for part in parts):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr("runtime.cgroups.limits.set_devices", lambda *_arguments, **_named: None)


def test_rootless_container_has_cgroups_where_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = hybrid(tmp_path, "memory", "pids")
    forbid(monkeypatch, "/memory/", "/unified/")
    cgroup = create_cgroup(layout, "", Resources(), "id", rootless=True)
    assert list(cgroup.paths) == ["pids"]
    assert list(reopen(layout, cgroup.describe()).paths) == ["pids"]


def test_rootless_container_on_a_hybrid_machine_needs_no_v2_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = hybrid(tmp_path, "memory", "pids")
    forbid(monkeypatch, "/unified/")
    assert list(create_cgroup(layout, "/a/d", Resources(), "id", rootless=True).paths) == ["memory", "pids"]
    with pytest.raises(CgroupError, match=f"make cgroup {tmp_path}/unified/.*: Permission denied"):
        create_cgroup(layout, "/a/e", Resources(), "id")


def test_rootless_container_may_have_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = hybrid(tmp_path, "memory")
    forbid(monkeypatch, str(tmp_path))
    made = create_cgroup(layout, "", Resources(), "id", rootless=True)
    cgroup = reopen(layout, made.describe())
    assert (cgroup.paths, cgroup.pids(), cgroup.holders()) == ({}, [], [])
    assert not cgroup.frozen()
    cgroup.thaw()
    cgroup.signal_all(9)
    with cgroup.open_join(1) as join:
        assert (join.fds(), join.v2_dir) == ((), None)
    counters.read(cgroup)
    assert cgroup.try_delete()


@pytest.mark.parametrize(
    ("path", "pids", "rootless"), [("/a/d", None, True), ("", Pids(limit=5), True), ("", None, False)]
)
def test_what_was_asked_for_is_never_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, pids: Pids | None, rootless: bool
) -> None:
    layout = hybrid(tmp_path, "memory", "pids")
    forbid(monkeypatch, "/pids/")
    with pytest.raises(CgroupError, match=f"make cgroup {tmp_path}/pids/.*: Permission denied"):
        create_cgroup(layout, path, Resources(pids=pids), "id", rootless=rootless)
    assert not (tmp_path / "memory/id").exists()


def test_the_limit_of_processes_is_set_when_the_first_one_is_born(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.cgroups.limits.set_devices", lambda *_arguments, **_named: None)
    layout = hybrid(tmp_path, "pids")
    cgroup = create_cgroup(layout, "/a/d", Resources(pids=Pids(limit=0)), "id")
    with pytest.raises(
        CgroupError, match=r"linux\.resources\.pids\.limit: write '1' to .*/pids/a/d/pids\.max"
    ):
        cgroup.confine()
    cgroup = create_cgroup(layout, "/a/e", Resources(pids=Pids(limit=0)), "id")
    file = tmp_path / "pids/a/e/pids.max"
    file.write_text("max")
    cgroup.confine()
    assert file.read_text() == "1ax"
    file.write_text("7")
    cgroup.confine()
    assert file.read_text() == "7", "once"


def test_rootless_containers_devices_are_limited_where_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_named: object) -> None:
        raise CgroupError("device program: Operation not permitted")

    monkeypatch.setattr("runtime.cgroups.limits.set_devices", refuse)
    layout = hybrid(tmp_path, "memory")
    create_cgroup(layout, "", Resources(), "one", rootless=True)
    with pytest.raises(CgroupError, match="device program"):
        create_cgroup(layout, "", Resources(), "two")
