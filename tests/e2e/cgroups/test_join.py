"""Being born in a cgroup, and what happens where that can't be: the fallback to the landlord's cgroup."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from runtime.cgroups.cgroup import landlord_directory
from runtime.cgroups.layout import Layout
from runtime.spec.model import Cpu
from tests.e2e.cgroups.hugetlb import landlord_moved_away
from tests.e2e.cgroups.yard import Yard
from tests.harness.processes import descriptors


@pytest.fixture
def v2_yard(yard: Yard) -> Yard:
    if yard.layout.unified is None:
        pytest.skip("no cgroup v2 here")
    return yard


def entries(yard: Yard, pid: int) -> dict[str, str]:
    """/proc/PID/cgroup: the path by the controllers, for the hierarchies of the layout."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    found = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}
    return {controllers: path for controllers, path in found.items() if controllers or yard.layout.unified}


def test_member_is_in_the_cgroup_of_every_hierarchy(yard: Yard) -> None:
    cgroup = yard.make()
    pid = yard.spawn(cgroup, "sleep", "100")
    assert set(entries(yard, pid).values()) == {f"/{cgroup.path}"}
    assert len(entries(yard, pid)) == len(yard.layout.hierarchies)
    assert cgroup.pids() == [pid]
    assert cgroup.holders() == [pid]


def test_cpuset_of_new_parents_can_be_joined(yard: Yard) -> None:
    cgroup = yard.make("deep/er/c")
    assert yard.run(cgroup, "true") == 0
    assert cgroup.cpuset_cpus() == Path("/sys/devices/system/cpu/online").read_text().strip()


def test_asked_cpus_are_what_members_may_run_on(yard: Yard) -> None:
    cgroup = yard.make("deep/c", cpu=Cpu(cpus="0", mems="0"))
    assert cgroup.cpuset_cpus() == "0"
    pid = yard.spawn(cgroup, "sleep", "100")
    assert os.sched_getaffinity(pid) == {0}


def test_join_of_a_cgroup_that_is_gone_fails_and_keeps_nothing_open(yard: Yard) -> None:
    cgroup = yard.make()
    assert cgroup.try_delete()
    before = descriptors()
    with pytest.raises(FileNotFoundError):
        cgroup.open_join()
    assert not descriptors() - before


def test_cgroup_with_controllers_for_its_children_can_not_be_joined_but_the_landlords_can(
    v2_yard: Yard,
) -> None:
    cgroup = v2_yard.make()
    landlord = v2_yard.spawn(cgroup, "sleep", "100")
    with landlord_moved_away(Path(cgroup.paths["unified"])) as child:
        with pytest.raises(OSError, match="clone3") as refused:
            v2_yard.spawn(cgroup, "sleep", "100")
        assert refused.value.errno == errno.EBUSY
        with landlord_directory(v2_yard.layout, landlord) as directory:
            tenant = v2_yard.spawn(cgroup, "sleep", "100", v2_dir=directory)
        assert entries(v2_yard, tenant)[""] == f"/{cgroup.path}/{child.name}"
        assert sorted(cgroup.pids()) == sorted([landlord, tenant])
        others = {path for controllers, path in entries(v2_yard, tenant).items() if controllers}
        assert others <= {f"/{cgroup.path}"}


def test_landlords_cgroup_stands_in_for_one_that_is_gone(v2_yard: Yard, layout: Layout) -> None:
    unified = layout.unified
    assert unified is not None
    cgroup, elsewhere = v2_yard.make(), v2_yard.make("elsewhere")
    landlord = v2_yard.spawn(cgroup, "sleep", "100")
    Path(elsewhere.paths["unified"], "cgroup.procs").write_text(str(landlord))
    os.rmdir(cgroup.paths["unified"])
    with pytest.raises(FileNotFoundError):
        cgroup.open_join()
    tenant = v2_yard.spawn(cgroup, "sleep", "100", landlord=landlord) if layout.v1 else 0
    if tenant:
        assert entries(v2_yard, tenant)[""] == f"/{elsewhere.path}"
        assert entries(v2_yard, tenant)["memory"] == f"/{cgroup.path}"
    with landlord_directory(layout, landlord) as directory:
        assert os.path.samestat(os.fstat(directory.fileno()), os.stat(elsewhere.paths["unified"]))


def test_landlord_that_is_gone_has_no_cgroup_to_offer(v2_yard: Yard) -> None:
    cgroup = v2_yard.make()
    pid = v2_yard.spawn(cgroup, "sleep", "100")
    os.kill(pid, signal.SIGKILL)
    v2_yard.wait(pid)
    with pytest.raises(FileNotFoundError):
        landlord_directory(v2_yard.layout, pid)


def test_landlords_cgroup_is_read_through_the_given_procfs(v2_yard: Yard) -> None:
    cgroup = v2_yard.make()
    pid = v2_yard.spawn(cgroup, "sleep", "100")
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    try:
        with landlord_directory(v2_yard.layout, pid, proc) as directory:
            assert os.path.samestat(os.fstat(directory.fileno()), os.stat(cgroup.paths["unified"]))
    finally:
        os.close(proc)


def test_child_cgroup_is_joined_by_its_relative_path(yard: Yard) -> None:
    cgroup = yard.make()
    child = yard.make(f"{cgroup.path.rpartition('/')[2]}/inner")
    assert cgroup.child("inner").paths == child.paths
    pid = yard.spawn(cgroup.child("inner"), "sleep", "100")
    assert set(entries(yard, pid).values()) == {f"/{cgroup.path}/inner"}
    assert cgroup.pids() == [pid]
