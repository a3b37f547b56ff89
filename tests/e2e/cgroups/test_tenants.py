"""Ways into a cgroup that only tenants take: one below the container's, and a cpuset for the way."""

from __future__ import annotations

import errno
import os
import resource
import signal
from pathlib import Path

import pytest

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.joining import parse_sub_cgroups
from runtime.cgroups.layout import UNIFIED, detect_layout
from runtime.cgroups.transient_cpuset import TransientCpuset, make_transient_cpuset
from runtime.errors import CgroupError
from runtime.linux.process import clone3
from runtime.spec.model import Cpu
from tests.e2e.cgroups.yard import Yard, until
from tests.harness.processes import descriptors


def make_below(yard: Yard, cgroup: Cgroup, name: str) -> None:
    for each in yard.layout.hierarchies:
        os.mkdir(f"{cgroup.paths[each.name]}/{name}")
        if "cpuset" in each.controllers and each.version == 1:
            for file in ("cpuset.cpus", "cpuset.mems"):
                value = Path(f"{cgroup.paths[each.name]}/{file}").read_text()
                Path(f"{cgroup.paths[each.name]}/{name}/{file}").write_text(value)


def paths_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}


def spawn(yard: Yard, cgroup: Cgroup, sub: dict[str, str]) -> int:
    """A sleeper that joins as a tenant does."""
    with cgroup.open_join(1, sub) as join:
        pid, pidfd = clone3(0, signal.SIGCHLD, -1 if join.v2_dir is None else join.v2_dir.fileno())
        if not pid:
            try:
                join.enter_v1()
                os.execv("/bin/busybox", ["busybox", "sleep", "100"])
            finally:
                os._exit(127)
    yard.members[pid] = pidfd
    until(lambda: "busybox" in os.readlink(f"/proc/{pid}/exe"))
    return pid


# ---- a cgroup below ----------------------------------------------------------------------------


def test_tenant_joins_the_cgroup_below_that_it_asked_for(yard: Yard) -> None:
    cgroup = yard.make()
    make_below(yard, cgroup, "below")
    pid = spawn(yard, cgroup, parse_sub_cgroups(["/below"]))
    joined = paths_of(pid)
    for each in yard.layout.hierarchies:
        name = "" if each.version == 2 else each.name
        assert joined[name] == f"/{cgroup.path}/below"
    assert cgroup.pids() == [pid]


def test_tenant_joins_below_for_one_controller_alone(yard: Yard) -> None:
    if yard.layout.mode == UNIFIED:
        pytest.skip("one tree has one path")
    cgroup = yard.make()
    make_below(yard, cgroup, "below")
    joined = paths_of(spawn(yard, cgroup, parse_sub_cgroups(["memory,pids:below"])))
    for each in yard.layout.v1:
        below = "/below" if {"memory", "pids"} & set(each.controllers) else ""
        assert joined[each.name] == f"/{cgroup.path}{below}"


def test_tenant_never_lands_elsewhere_than_it_asked_for(yard: Yard) -> None:
    cgroup = yard.make()
    landlord = yard.spawn(cgroup, "sleep", "100")
    before = descriptors()
    with pytest.raises(CgroupError, match="gone"):
        cgroup.open_join(landlord, {"": "gone"})
    assert not descriptors() - before


# ---- CPUs for the way in -----------------------------------------------------------------------


@pytest.fixture
def cpus() -> tuple[int, int]:
    """Two CPUs that may be used."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        pytest.skip("needs two CPUs")
    if detect_layout().find("cpuset") is None:
        pytest.skip("no cpuset controller")
    return usable[0], usable[1]


def bind_on_the_way(cgroup: Cgroup, way: TransientCpuset, outside: Cgroup, cpu: int) -> list[int]:
    """In a child born in `outside`: bind to `cpu` before and on the way; errors, and the CPUs in the end."""
    with outside.open_join() as start, cgroup.open_join() as join:
        reader, writer = os.pipe()
        pid, pidfd = clone3(0, signal.SIGCHLD, -1 if start.v2_dir is None else start.v2_dir.fileno())
        if not pid:
            found: list[int] = []
            try:
                start.enter_v1()
                try:
                    os.sched_setaffinity(0, {cpu})
                    found.append(0)
                except OSError as error:
                    found.append(error.errno or -1)
                way.enter()
                os.sched_setaffinity(0, {cpu})
                join.enter_v1()
                if join.v2_dir is not None and way.version == 2:
                    procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=join.v2_dir.fileno())
                    os.write(procs, b"0")
                found += sorted(os.sched_getaffinity(0))
            except OSError as error:
                found.append(-(error.errno or 1))
            finally:
                os.write(writer, bytes(each % 256 for each in found))
                os._exit(0)
        os.close(writer)
        os.waitpid(pid, 0)
        os.close(pidfd)
        result = list(os.read(reader, 100))
        os.close(reader)
        return result


def test_tenant_is_bound_to_a_cpu_that_is_not_its_makers(yard: Yard, cpus: tuple[int, int]) -> None:
    own, exclusive = cpus
    outside = yard.make("outside", cpu=Cpu(cpus=str(own), mems="0"))
    cgroup = yard.make("inside", cpu=Cpu(cpus=f"{own},{exclusive}", mems="0"))
    yard.spawn(cgroup, "sleep", "100")
    way = make_transient_cpuset(cgroup, str(exclusive))
    refused, *kept = bind_on_the_way(cgroup, way, outside, exclusive)
    assert way.remove()
    assert refused == errno.EINVAL
    # Before Linux 6.2 joining a cpuset widens to all of it, whatever was asked for.
    keeps = tuple(int(each) for each in os.uname().release.split(".")[:2]) >= (6, 2)
    assert kept == ([exclusive] if keeps else [own, exclusive])
    assert not Path(way.path).exists()
    if not yard.is_v1("cpuset"):
        assert yard.read(cgroup, "cgroup.subtree_control") == ""
        assert yard.read(cgroup, "cgroup.type") == "domain"


def test_two_cpusets_for_the_way_do_not_disturb_each_other(yard: Yard, cpus: tuple[int, int]) -> None:
    cgroup = yard.make("inside", cpu=Cpu(cpus=f"{cpus[0]},{cpus[1]}", mems="0"))
    yard.spawn(cgroup, "sleep", "100")
    first, second = (make_transient_cpuset(cgroup, str(cpu)) for cpu in cpus)
    assert first.remove()
    assert (Path(second.path) / "cpuset.cpus").read_text().strip() == str(cpus[1])
    assert second.remove()
    if not yard.is_v1("cpuset"):
        assert yard.read(cgroup, "cgroup.subtree_control") in ("", "cpuset")


def test_cpus_that_the_container_has_not_are_refused_or_never_entered(
    yard: Yard, cpus: tuple[int, int]
) -> None:
    cgroup = yard.make("inside", cpu=Cpu(cpus=str(cpus[0]), mems="0"))
    before = sorted(os.listdir(cgroup.paths["unified" if not yard.is_v1("cpuset") else "cpuset"]))
    with pytest.raises(CgroupError, match="cpuset 4000 below"):
        make_transient_cpuset(cgroup, "4000")
    assert sorted(os.listdir(cgroup.paths["unified" if not yard.is_v1("cpuset") else "cpuset"])) == before


def test_a_container_with_cgroups_of_its_own_has_no_place_for_it(yard: Yard, cpus: tuple[int, int]) -> None:
    if yard.layout.mode != UNIFIED:
        pytest.skip("v1 cpusets take any child")
    cgroup = yard.make("inside", cpu=Cpu(cpus=str(cpus[0]), mems="0"))
    make_below(yard, cgroup, "init")
    spawn(yard, cgroup, {"": "init"})
    yard.file(cgroup, "cgroup.subtree_control").write_text("+memory")
    with pytest.raises(CgroupError, match="cpuset"):
        make_transient_cpuset(cgroup, str(cpus[0]))
    yard.file(cgroup, "cgroup.subtree_control").write_text("-memory")


# ---- crowds ------------------------------------------------------------------------------------


def test_more_processes_than_open_files_are_listed_and_killed(yard: Yard) -> None:
    cgroup = yard.make()
    crowd = 60
    pids = [yard.spawn(cgroup, "sleep", "100") for _each in range(crowd)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    try:
        assert cgroup.holders() == sorted(pids)
        assert len(cgroup.holders(10)) == 10
        cgroup.signal_all(signal.SIGTERM)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [yard.wait(pid) for pid in pids] == [-signal.SIGTERM] * crowd


# ---- partitions --------------------------------------------------------------------------------


def test_partition_that_the_kernel_does_not_make_is_an_error(yard: Yard) -> None:
    if yard.is_v1("cpuset") or yard.layout.find("cpuset") is None:
        pytest.skip("v2 cpusets have partitions")
    with pytest.raises(CgroupError, match="invalid"):
        yard.make(unified={"cpuset.cpus.partition": "root", "cpuset.cpus": "0"})
