"""Limits as the kernel has them after create and update, that they bind, and that runc sets the same."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups import limits
from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.stats_v1 import page_sizes
from runtime.errors import CgroupError, ManorError
from runtime.spec.load import load_resources
from runtime.spec.model import (
    BlockIo,
    Cpu,
    DeviceRule,
    HugepageLimit,
    Memory,
    Pids,
    Resources,
    ThrottleDevice,
)
from tests.e2e.cgroups.hugetlb import shared_root
from tests.e2e.cgroups.yard import Yard
from tests.harness import tools
from tests.harness.bundles import Bundle

MIB = 1 << 20
MEMORY_V1 = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
MEMORY_V2 = ("memory.max", "memory.swap.max")
CPU_V1 = ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.cfs_burst_us")
CPU_V2 = ("cpu.max", "cpu.max.burst")


def present(yard: Yard, cgroup: Cgroup, *files: str) -> dict[str, str]:
    """The contents of those `files` that this kernel has."""
    return {name: yard.read(cgroup, name) for name in files if yard.file(cgroup, name).exists()}


def memory(yard: Yard, cgroup: Cgroup) -> list[int]:
    """The limits of memory, and of memory and swap together, in MiB; -1 for none."""
    if yard.is_v1("memory"):
        values = [int(yard.read(cgroup, name)) for name in MEMORY_V1]
        return [value // MIB if value < 1 << 60 else -1 for value in values]
    limit, swap = (present(yard, cgroup, *MEMORY_V2).get(name, "0") for name in MEMORY_V2)
    limit_mib = -1 if limit == "max" else int(limit) // MIB
    return [limit_mib, -1 if swap == "max" else limit_mib + int(swap) // MIB]


def bandwidth(yard: Yard, cgroup: Cgroup) -> tuple[int, int]:
    """Quota and period."""
    if yard.is_v1("cpu"):
        quota, period = (yard.read(cgroup, name) for name in CPU_V1[:2])
    else:
        quota, period = yard.read(cgroup, "cpu.max").split()
    return -1 if quota == "max" else int(quota), int(period)


# ---- the same as runc --------------------------------------------------------------------------

RESOURCES: dict[str, Any] = {
    "devices": [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        {"allow": True, "type": "b", "major": 7, "access": "r"},
    ],
    "memory": {"limit": 64 * MIB, "swap": 96 * MIB, "reservation": 32 * MIB},
    "cpu": {
        "shares": 300,
        "quota": 40_000,
        "period": 80_000,
        "burst": 10_000,
        "idle": 0,
        "cpus": "0",
        "mems": "0",
    },
    "pids": {"limit": 123},
}
COMPARED = (
    *MEMORY_V1,
    *MEMORY_V2,
    *CPU_V1,
    *CPU_V2,
    "memory.soft_limit_in_bytes",
    "memory.low",
    "memory.oom_control",
    "memory.swappiness",
    "cpu.shares",
    "cpu.weight",
    "cpu.idle",
    "cpuset.cpus",
    "cpuset.mems",
    "pids.max",
    "devices.list",
)
NO_LIMITS: dict[str, Any] = {"memory": {"limit": -1, "swap": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}}
OTHERS: dict[str, Any] = {
    "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "access": "rwm"}],
    "memory": {"limit": 32 * MIB, "swap": 32 * MIB},
    "cpu": {"shares": 262_144, "period": 50_000, "idle": 1},
    "pids": {"limit": 0},
}


@pytest.mark.parametrize(
    "resources", [RESOURCES, NO_LIMITS, OTHERS], ids=["limits", "no limits", "other limits"]
)
def test_limits_are_those_that_runc_sets(yard: Yard, tmp_path: Path, resources: dict[str, Any]) -> None:
    if not yard.is_v1("cpu"):  # in v2 runc writes the weight to an idle group, which the kernel refuses
        resources = resources | {"cpu": {**resources["cpu"], "idle": 0}}
    bundle = Bundle(tmp_path, ["sleep", "100"], f"/{yard.parent}/runc")
    bundle.config["linux"]["resources"] = resources
    bundle.write()
    runc = [str(tools.program(tools.RUNC_1, "runc")), "--root", str(tmp_path / "state")]
    name = f"compared-{os.getpid()}"
    subprocess.run(
        [*runc, "create", "--bundle", str(tmp_path), name], check=True, stdin=-3, stdout=-3, stderr=-3
    )
    try:
        theirs = present(yard, Cgroup(yard.layout, f"{yard.parent}/runc"), *COMPARED)
    finally:
        subprocess.run([*runc, "delete", "--force", name], check=True)
    asked = load_resources(json.dumps(resources).encode())
    ours = present(
        yard, yard.make("ours", **{name: getattr(asked, name) for name in asked.FIELD_NAMES}), *COMPARED
    )
    for found in (theirs, ours):
        if "devices.list" in found:
            found["devices.list"] = "\n".join(sorted(found["devices.list"].splitlines()))
    assert ours == theirs
    assert len(ours) >= 9


def test_unified_machine_counts_with_every_controller_and_a_hybrid_one_changes_nothing(yard: Yard) -> None:
    hierarchy = yard.layout.unified
    if hierarchy is None:
        pytest.skip("no cgroup v2 here")
    parent = Path(hierarchy.mountpoint, yard.parent)
    cgroup = yard.make()
    if yard.layout.mode == "unified":
        assert yard.read(cgroup, "cgroup.controllers").split() == list(hierarchy.controllers)
    else:
        assert (parent / "cgroup.subtree_control").read_text().strip() == ""


# ---- updates -----------------------------------------------------------------------------------


def test_memory_is_raised_and_lowered_with_swap_at_its_heels(yard: Yard) -> None:
    cgroup = yard.make(memory=Memory(limit=64 * MIB, swap=64 * MIB))
    accounted = yard.file(cgroup, MEMORY_V1[1] if yard.is_v1("memory") else MEMORY_V2[1]).exists()
    for limit, swap in ((128, 192), (200, 200), (16, 24), (32, 32), (-1, -1), (64, 80)):
        asked = Memory(limit=limit * MIB if limit > 0 else -1, swap=swap * MIB if swap > 0 else -1)
        cgroup.apply(Resources(memory=asked))
        found = memory(yard, cgroup)
        assert found == [limit, swap] if accounted else found[:1] == [limit]


def test_bandwidth_changes_within_a_limited_parent(yard: Yard) -> None:
    parent = yard.make("parent", cpu=Cpu(quota=50_000, period=100_000))
    cgroup = yard.make("parent/c", cpu=Cpu(quota=50_000, period=100_000))
    for quota, period in (
        (10_000, 20_000),
        (50_000, 100_000),
        (5_000, 50_000),
        (100_000, 200_000),
        (-1, 50_000),
    ):
        cgroup.apply(Resources(cpu=Cpu(quota=quota, period=period)))
        assert bandwidth(yard, cgroup) == (quota, period)
    assert bandwidth(yard, parent) == (50_000, 100_000)


def test_burst_follows_the_quota_up_and_down(yard: Yard) -> None:
    cgroup = yard.make(cpu=Cpu(quota=50_000, period=100_000, burst=50_000))
    file = CPU_V1[2] if yard.is_v1("cpu") else CPU_V2[1]
    for quota in (10_000, 90_000, 20_000):
        cgroup.apply(Resources(cpu=Cpu(quota=quota, burst=quota)))
        assert yard.read(cgroup, file) == str(quota)


def test_what_is_made_idle_takes_no_weight_and_no_harm(yard: Yard) -> None:
    cgroup = yard.make(cpu=Cpu(shares=512, idle=1))
    assert yard.read(cgroup, "cpu.idle") == "1"
    cgroup.apply(Resources(cpu=Cpu(idle=0)))
    assert yard.read(cgroup, "cpu.idle") == "0"
    if not yard.is_v1("cpu"):
        cgroup.apply(Resources(unified={"cpu.weight": "8", "cpu.idle": "1"}))
        assert yard.read(cgroup, "cpu.idle") == "1"


def test_half_of_the_bandwidth_leaves_the_other_half(yard: Yard) -> None:
    cgroup = yard.make(cpu=Cpu(quota=50_000, period=100_000))
    cgroup.apply(Resources(cpu=Cpu(quota=20_000)))
    assert bandwidth(yard, cgroup) == (20_000, 100_000)
    cgroup.apply(Resources(cpu=Cpu(period=50_000)))
    assert bandwidth(yard, cgroup) == (20_000, 50_000)


def test_update_leaves_what_it_does_not_mention(yard: Yard) -> None:
    cgroup = yard.make(memory=Memory(limit=64 * MIB), pids=Pids(limit=50))
    cgroup.apply(Resources(pids=Pids(limit=60)))
    assert memory(yard, cgroup)[0] == 64
    assert yard.read(cgroup, "pids.max") == "60"


def test_container_follows_a_cpuset_that_is_widened(yard: Yard) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one CPU")
    cgroup = yard.make(cpu=Cpu(cpus="0"))
    pid = yard.spawn(cgroup, "sleep", "100")
    assert os.sched_getaffinity(pid) == {0}
    cgroup.apply(Resources(cpu=Cpu(cpus="0-1")))
    assert cgroup.cpuset_cpus() == "0-1"
    assert os.sched_getaffinity(pid) == {0, 1}


def test_checked_update_refuses_to_go_below_the_usage(yard: Yard) -> None:
    cgroup = yard.make(memory=Memory(limit=64 * MIB))
    yard.spawn(cgroup, "sleep", "100")
    with pytest.raises(CgroupError, match=r"memory\.limit: rejecting memory limit 4096 below the usage of"):
        cgroup.apply(Resources(memory=Memory(limit=4096, check_before_update=True)))
    assert memory(yard, cgroup)[0] == 64


# ---- limits bind -------------------------------------------------------------------------------


def test_memory_limit_kills_and_the_kill_is_counted(yard: Yard) -> None:
    cgroup = yard.make(memory=Memory(limit=8 * MIB, swap=8 * MIB))
    assert cgroup.oom_kill_count() == 0
    assert yard.run(cgroup, "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1") == -9
    assert cgroup.oom_kill_count() == 1


def test_pids_limit_stops_forks(yard: Yard) -> None:
    script = "sleep 1 & sleep 1 & sleep 1 & wait"
    assert yard.run(yard.make(pids=Pids(limit=2)), "sh", "-c", script) == 2
    assert yard.run(yard.make(pids=Pids(limit=10)), "sh", "-c", script) == 0


# ---- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"cpu": Cpu(cpus="4000")}, r"linux\.resources\.cpu\.cpus: write '4000' to .*/cpuset\.cpus: "),
        (
            {"cpu": Cpu(quota=1)},
            r"linux\.resources\.cpu\.quota: write '1.*' to .*/cpu\.[a-z_.]+: Invalid argument",
        ),
        ({"unified": {"nonsense.max": "1"}}, r"unified\.nonsense\.max: "),
    ],
)
def test_limit_that_is_refused_is_named_and_nothing_is_left(
    yard: Yard, parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ManorError, match=message):
        yard.make("new/c", pids=Pids(limit=10), **parts)
    for hierarchy in yard.layout.hierarchies:
        assert not Path(hierarchy.mountpoint, yard.parent).exists()


def test_huge_pages_are_limited_where_their_controller_is(yard: Yard) -> None:
    hierarchy = yard.layout.find("hugetlb")
    if hierarchy is None or not page_sizes():
        pytest.skip("this kernel limits no huge pages")
    size = page_sizes()[0]
    with ExitStack() as stack:
        if hierarchy.version == 2:
            stack.enter_context(shared_root(Path(hierarchy.mountpoint)))
        cgroup = yard.make(hugepage_limits=(HugepageLimit(size, 4 << 30),))
        file = f"hugetlb.{size}.limit_in_bytes" if hierarchy.version == 1 else f"hugetlb.{size}.max"
        assert yard.read(cgroup, file) == str(4 << 30)
        with pytest.raises(
            CgroupError, match=r"hugepageLimits\.3MB: write '1' to .*: this kernel has no such file"
        ):
            yard.make("other", hugepage_limits=(HugepageLimit("3MB", 1),))
        yard.close()  # what hands the controller on must go before the root can take it back


def test_cgroup_in_use_is_not_given_to_a_second_container(yard: Yard) -> None:
    cgroup = yard.make("taken")
    yard.spawn(cgroup, "sleep", "100")
    with pytest.raises(CgroupError, match="is in use by 1 process"):
        yard.make("taken")
    assert len(cgroup.pids()) == 1


def test_frozen_cgroup_is_not_given_to_a_container(yard: Yard) -> None:
    yard.make("cold").freeze()
    with pytest.raises(CgroupError, match="unexpectedly frozen"):
        yard.make("cold")


def test_empty_cgroup_that_was_prepared_keeps_its_limits(yard: Yard) -> None:
    yard.make("prepared", pids=Pids(limit=7), memory=Memory(limit=64 * MIB, swap=64 * MIB))
    cgroup = yard.make("prepared", memory=Memory(limit=128 * MIB, swap=128 * MIB))
    assert yard.read(cgroup, "pids.max") == "7"
    assert memory(yard, cgroup)[0] == 128


# ---- block devices -----------------------------------------------------------------------------


@pytest.fixture
def disk() -> tuple[int, int]:
    """A block device that limits can be set for."""
    for name in sorted(os.listdir("/sys/block")):
        if not name.startswith(("ram", "zram")) and int(Path(f"/sys/block/{name}/size").read_text()) > 8192:
            major, minor = Path(f"/sys/block/{name}/dev").read_text().split(":")
            return int(major), int(minor)
    pytest.skip("no disk")


def test_disk_is_throttled_and_released(yard: Yard, disk: tuple[int, int]) -> None:
    controller = "blkio" if yard.is_v1("blkio") else "io"
    if yard.layout.find(controller) is None:
        pytest.skip("no controller for disks")
    major, minor = disk
    limits = BlockIo(
        throttle_read_bps_device=(ThrottleDevice(major, minor, MIB),),
        throttle_write_iops_device=(ThrottleDevice(major, minor, 100),),
    )
    cgroup = yard.make(block_io=limits)
    if controller == "io":
        assert yard.read(cgroup, "io.max") == f"{major}:{minor} rbps={MIB} wbps=max riops=max wiops=100"
        cgroup.apply(Resources(unified={"io.max": f"{major}:{minor} rbps=max\n{major}:{minor} wiops=max"}))
        assert yard.read(cgroup, "io.max") == ""
    else:
        assert yard.read(cgroup, "blkio.throttle.read_bps_device") == f"{major}:{minor} {MIB}"
        assert yard.read(cgroup, "blkio.throttle.write_iops_device") == f"{major}:{minor} 100"
        cgroup.apply(Resources(block_io=BlockIo(throttle_read_bps_device=(ThrottleDevice(major, minor, 0),))))
        assert yard.read(cgroup, "blkio.throttle.read_bps_device") == ""


def test_throttle_binds(yard: Yard, disk: tuple[int, int]) -> None:
    if yard.layout.find("blkio") is None and yard.layout.find("io") is None:
        pytest.skip("no controller for disks")
    major, minor = disk
    node = Path("/dev") / os.path.basename(os.readlink(f"/sys/dev/block/{major}:{minor}"))
    reading = ("dd", f"if={node}", "of=/dev/null", "bs=256k", "count=8", "iflag=direct")
    if subprocess.run(["busybox", *reading], check=False, capture_output=True).returncode:
        pytest.skip("the disk can't be read")
    rule = DeviceRule(allow=True, type="b", major=major, minor=minor, access="r")
    slow = (ThrottleDevice(major, minor, 2 * MIB),)
    cgroup = yard.make(devices=(rule,), block_io=BlockIo(throttle_read_bps_device=slow))
    begin = time.monotonic()
    assert yard.run(cgroup, *reading) == 0
    assert time.monotonic() - begin > 0.7


def test_weight_of_disks_is_set_where_the_kernel_has_one(yard: Yard) -> None:
    cgroup = yard.make()
    names = ("blkio.weight", "blkio.bfq.weight", "io.bfq.weight", "io.weight")
    present = [
        name for name in names if yard.layout.find(name.split(".")[0]) and yard.file(cgroup, name).exists()
    ]
    if not present:
        with pytest.raises(CgroupError, match=r"blockIO\.weight"):
            cgroup.apply(Resources(block_io=BlockIo(weight=500)))
        return
    cgroup.apply(Resources(block_io=BlockIo(weight=500)))
    wanted = "4950" if present[0] == "io.weight" else "500"
    assert yard.read(cgroup, present[0]).split()[-1] == wanted


SETTABLE = (
    "limit",
    "max",
    "shares",
    "weight",
    "quota",
    "period",
    "burst",
    "idle",
    "oom_control",
    "swappiness",
)


def settings(cgroup: Cgroup) -> dict[str, str]:
    """What all files say that set something, but for counters."""
    files = [each for path in cgroup.paths.values() for each in Path(path).iterdir() if each.is_file()]
    wanted = [each for each in files if any(word in each.name for word in SETTABLE)]
    kept = [each for each in wanted if each.stat().st_mode & 0o200 and "usage" not in each.name]
    return {str(each): each.read_text() for each in kept}


def test_an_update_whose_last_step_fails_leaves_all_as_it_was(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, cpu = Memory(64 * MIB, reservation=32 * MIB), Cpu(shares=100, quota=20_000, period=100_000)
    cgroup = yard.make(memory=memory, cpu=cpu)
    before = settings(cgroup)
    assert len(before) > 8

    def refuse(*_about: object, **_how: object) -> None:
        assert settings(cgroup) != before, "nothing was changed: the test does not test what it seems to"
        raise CgroupError("no device programs")

    monkeypatch.setattr(limits, "set_devices", refuse)
    asked = Resources(
        memory=Memory(limit=128 * MIB, swap=256 * MIB, reservation=16 * MIB),
        cpu=Cpu(shares=500, quota=90_000, period=50_000),
        pids=Pids(limit=30),
        devices=(DeviceRule(False, access="rwm"),),
    )
    with pytest.raises(CgroupError, match="no device programs"):
        cgroup.apply(asked)
    assert settings(cgroup) == before
