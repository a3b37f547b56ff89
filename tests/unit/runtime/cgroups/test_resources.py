"""Resource plans: which writes, in which order, and what is refused before anything is written."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.cgroups.layout import Hierarchy, Layout, make_layout
from runtime.cgroups.resources import FRESH, Current, Write, ignored_fields, plan_writes
from runtime.cgroups.writes import former_value
from runtime.errors import CgroupError, ConfigError, ManorError
from runtime.spec import model as m

V1_NAMES = (
    "cpu,cpuacct",
    "cpuset",
    "memory",
    "pids",
    "blkio",
    "hugetlb",
    "net_cls,net_prio",
    "rdma",
    "devices",
)
V1 = tuple(Hierarchy(name, tuple(name.split(",")), f"/sys/fs/cgroup/{name}", 1) for name in V1_NAMES)
LEGACY = make_layout(V1)
UNIFIED = make_layout(
    (Hierarchy("unified", ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma"), "/sys/fs/cgroup", 2),)
)
HYBRID = make_layout((V1[0], V1[2], Hierarchy("unified", ("hugetlb",), "/sys/fs/cgroup/unified", 2)))
BARE = make_layout((V1[-1],))

MIB = 1 << 20


def plan(layout: Layout, current: Current = FRESH, **parts: Any) -> list[tuple[str, str]]:
    """The plan as (file, value) pairs."""
    return [(write.file, write.value) for write in plan_writes(m.Resources(**parts), layout, current)]


def test_nothing_asked_is_nothing_written() -> None:
    assert plan(LEGACY) == []
    assert plan(UNIFIED, memory=m.Memory(), cpu=m.Cpu(), pids=m.Pids(), block_io=m.BlockIo()) == []
    assert plan(BARE, memory=m.Memory(), cpu=m.Cpu(), pids=m.Pids(), network=m.Network()) == []


def test_each_write_goes_to_the_hierarchy_that_has_the_controller() -> None:
    resources = m.Resources(
        memory=m.Memory(limit=MIB), cpu=m.Cpu(shares=2), hugepage_limits=(m.HugepageLimit("2MB", 0),)
    )
    writes = plan_writes(resources, HYBRID)
    assert [(write.hierarchy, write.file, write.field) for write in writes] == [
        ("memory", "memory.limit_in_bytes", "linux.resources.memory.limit"),
        ("cpu,cpuacct", "cpu.shares", "linux.resources.cpu.shares"),
        ("unified", "hugetlb.2MB.max", "linux.resources.hugepageLimits.2MB"),
        ("unified", "hugetlb.2MB.rsvd.max", "linux.resources.hugepageLimits.2MB"),
    ]


# ---- memory ------------------------------------------------------------------------------------


def test_v1_memory_of_a_new_cgroup_sets_memory_before_memory_and_swap() -> None:
    asked = m.Memory(
        limit=64 * MIB, swap=96 * MIB, reservation=32 * MIB, swappiness=0, disable_oom_killer=True
    )
    assert plan(LEGACY, memory=asked) == [
        ("memory.limit_in_bytes", str(64 * MIB)),
        ("memory.memsw.limit_in_bytes", str(96 * MIB)),
        ("memory.soft_limit_in_bytes", str(32 * MIB)),
        ("memory.oom_control", "1"),
        ("memory.swappiness", "0"),
    ]


@pytest.mark.parametrize(
    ("limit", "swap", "swap_now", "swap_first"),
    [
        (128, 128, 64, True),  # raised above what memory and swap have now
        (32, 48, 64, False),  # lowered
        (64, 96, 64, False),  # exactly as much as they have
        (-1, -1, 64, True),
        (-1, 0, 64, True),  # no limit on memory: none on memory and swap either
        (32, 64, None, False),
    ],
)
def test_v1_memory_is_never_asked_to_exceed_memory_and_swap(
    limit: int, swap: int, swap_now: int | None, swap_first: bool
) -> None:
    scaled = [value * MIB if value > 0 else value for value in (limit, swap)]
    current = Current(swap_limit=None if swap_now is None else swap_now * MIB)
    files = [file for file, _value in plan(LEGACY, current, memory=m.Memory(limit=scaled[0], swap=scaled[1]))]
    expected = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    assert files == (expected[::-1] if swap_first else expected)


def test_v1_unlimited_memory_tolerates_a_kernel_without_swap_accounting() -> None:
    (_memory, swap) = plan_writes(m.Resources(memory=m.Memory(limit=-1)), LEGACY)
    assert (swap.value, swap.optional) == ("-1", True)
    (_memory, swap) = plan_writes(m.Resources(memory=m.Memory(limit=MIB, swap=MIB)), LEGACY)
    assert not swap.optional


def test_v1_oom_killer_is_given_back_only_where_it_was_taken() -> None:
    asked = m.Memory(disable_oom_killer=False)
    assert plan(LEGACY, memory=asked) == []
    assert plan(LEGACY, Current(oom_killer_disabled=True), memory=asked) == [("memory.oom_control", "0")]


def test_v2_counts_swap_alone() -> None:
    assert plan(UNIFIED, memory=m.Memory(limit=64 * MIB, swap=96 * MIB, reservation=MIB)) == [
        ("memory.swap.max", str(32 * MIB)),
        ("memory.max", str(64 * MIB)),
        ("memory.low", str(MIB)),
    ]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (m.Memory(limit=MIB, swap=MIB), [("memory.swap.max", "0"), ("memory.max", str(MIB))]),
        (m.Memory(limit=MIB, swap=-1), [("memory.swap.max", "max"), ("memory.max", str(MIB))]),
        (m.Memory(limit=-1), [("memory.swap.max", "max"), ("memory.max", "max")]),
        (m.Memory(limit=MIB), [("memory.max", str(MIB))]),
        (m.Memory(reservation=-1), [("memory.low", "max")]),
    ],
)
def test_v2_memory_and_its_special_values(asked: m.Memory, expected: list[tuple[str, str]]) -> None:
    assert plan(UNIFIED, memory=asked) == expected


def test_v2_no_swap_and_all_swap_tolerate_a_kernel_without_swap() -> None:
    for swap, optional in ((MIB, True), (-1, True), (2 * MIB, False)):
        first, _limit = plan_writes(m.Resources(memory=m.Memory(limit=MIB, swap=swap)), UNIFIED)
        assert (first.file, first.optional) == ("memory.swap.max", optional)


def test_v2_update_of_swap_alone_reckons_with_the_limit_in_force() -> None:
    current = Current(memory_limit=64 * MIB)
    assert plan(UNIFIED, current, memory=m.Memory(swap=80 * MIB)) == [("memory.swap.max", str(16 * MIB))]
    with pytest.raises(CgroupError, match="less than the memory limit"):
        plan(UNIFIED, current, memory=m.Memory(swap=MIB))
    with pytest.raises(CgroupError, match="which has no limit"):
        plan(UNIFIED, memory=m.Memory(swap=MIB))


@pytest.mark.parametrize("layout", [LEGACY, UNIFIED])
def test_checked_update_below_the_usage_is_refused(layout: Layout) -> None:
    current = Current(memory_usage=10 * MIB)
    with pytest.raises(CgroupError, match=r"memory\.limit: .* usage of 10485760"):
        plan(layout, current, memory=m.Memory(limit=10 * MIB, check_before_update=True))
    with pytest.raises(CgroupError, match=r"memory\.swap: rejecting memory\+swap limit"):
        plan(layout, current, memory=m.Memory(limit=4096, swap=8192, check_before_update=True))
    assert plan(layout, current, memory=m.Memory(limit=11 * MIB, check_before_update=True))
    assert plan(layout, current, memory=m.Memory(limit=MIB))


# ---- cpu ---------------------------------------------------------------------------------------


def test_v1_bandwidth_of_a_new_cgroup_sets_the_period_first() -> None:
    asked = m.Cpu(shares=512, quota=50_000, period=200_000, burst=10_000, cpus="0-1", mems="0")
    assert plan(LEGACY, cpu=asked) == [
        ("cpu.shares", "512"),
        ("cpu.cfs_burst_us", "10000"),
        ("cpu.cfs_period_us", "200000"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
    ]


@pytest.mark.parametrize(
    ("now", "quota", "period", "quota_first"),
    [
        ((50_000, 100_000), 10_000, 20_000, True),  # the old quota in the new period were 250 %
        ((10_000, 20_000), 50_000, 100_000, False),  # the new quota in the old period were 250 %
        ((-1, 100_000), 10_000, 20_000, False),
        ((50_000, 100_000), -1, 20_000, True),
    ],
)
def test_v1_bandwidth_never_exceeds_what_it_was_and_will_be(
    now: tuple[int, int], quota: int, period: int, quota_first: bool
) -> None:
    current = Current(cpu_quota=now[0], cpu_period=now[1])
    files = [file for file, _value in plan(LEGACY, current, cpu=m.Cpu(quota=quota, period=period))]
    expected = ["cpu.cfs_period_us", "cpu.cfs_quota_us"]
    assert files == (expected[::-1] if quota_first else expected)


@pytest.mark.parametrize(("layout", "quota_file"), [(LEGACY, "cpu.cfs_quota_us"), (UNIFIED, "cpu.max")])
@pytest.mark.parametrize(("quota_now", "burst", "burst_first"), [(-1, 9, True), (5, 9, False), (20, 9, True)])
def test_burst_never_exceeds_the_quota(
    layout: Layout, quota_file: str, quota_now: int, burst: int, burst_first: bool
) -> None:
    asked = m.Cpu(quota=10_000, burst=burst * 1000)
    current = Current(cpu_quota=quota_now * 1000 if quota_now > 0 else -1)
    files = [file for file, _value in plan(layout, current, cpu=asked)]
    assert (files[0] != quota_file) == burst_first
    assert len(files) == 2


def test_idle_group_has_no_shares() -> None:
    assert plan(LEGACY, cpu=m.Cpu(shares=512, idle=1)) == [("cpu.idle", "1")]
    assert plan(UNIFIED, cpu=m.Cpu(shares=512, idle=1)) == [("cpu.idle", "1")]
    assert plan(LEGACY, cpu=m.Cpu(shares=512, idle=0)) == [("cpu.idle", "0"), ("cpu.shares", "512")]


def test_whether_it_is_idle_is_said_once_and_last() -> None:
    idle = {"cpu.weight": "8", "cpu.idle": "1"}
    assert plan(UNIFIED, cpu=m.Cpu(shares=512), unified=idle) == [("cpu.idle", "1")]
    assert plan(UNIFIED, cpu=m.Cpu(idle=0), unified=idle) == [("cpu.idle", "1")]
    assert plan(UNIFIED, cpu=m.Cpu(idle=1), unified={"cpu.idle": "0", "cpu.weight": "8"}) == [
        ("cpu.idle", "0"),
        ("cpu.weight", "8"),
    ]


def test_a_weight_that_idleness_overrules_is_told() -> None:
    def told(**resources: Any) -> list[str]:
        return [text.split(" ")[0] for text in ignored_fields(m.Resources(**resources))]

    idle = {"cpu.weight": "8", "cpu.idle": "1"}
    assert told(cpu=m.Cpu(shares=512, idle=1)) == ["linux.resources.cpu.shares"]
    assert told(unified=idle) == ["linux.resources.unified.cpu.weight"]
    assert told(cpu=m.Cpu(shares=512, idle=0)) == []
    assert told(cpu=m.Cpu(shares=512, idle=1), unified={"cpu.idle": "0"}) == []


def test_v1_realtime_runtime_never_exceeds_the_period() -> None:
    asked = m.Cpu(realtime_period=500_000, realtime_runtime=100_000)
    assert plan(LEGACY, cpu=asked) == [("cpu.rt_period_us", "500000"), ("cpu.rt_runtime_us", "100000")]
    lowered = plan(LEGACY, Current(realtime_runtime=600_000), cpu=asked)
    assert [file for file, _value in lowered] == ["cpu.rt_runtime_us", "cpu.rt_period_us"]


@pytest.mark.parametrize("shares", [1, 262_145])
def test_v1_shares_that_the_kernel_would_change_are_refused(shares: int) -> None:
    with pytest.raises(ConfigError, match=r"linux\.resources\.cpu\.shares"):
        plan(LEGACY, cpu=m.Cpu(shares=shares))


@pytest.mark.parametrize(
    ("asked", "current", "expected"),
    [
        (m.Cpu(quota=50_000, period=200_000), FRESH, "50000 200000"),
        (m.Cpu(quota=-1), FRESH, "max 100000"),
        (m.Cpu(quota=50_000), Current(cpu_period=200_000), "50000 200000"),
        (m.Cpu(period=50_000), Current(cpu_quota=10_000), "10000 50000"),
        (m.Cpu(period=50_000), FRESH, "max 50000"),
    ],
)
def test_v2_bandwidth_keeps_the_half_that_is_not_asked(asked: m.Cpu, current: Current, expected: str) -> None:
    assert plan(UNIFIED, current, cpu=asked) == [("cpu.max", expected)]


# ---- the rest ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "value"), [(100, "100"), (-1, "max"), (0, "1"), (-7, "max")])
@pytest.mark.parametrize("layout", [LEGACY, UNIFIED])
def test_pids_limit(layout: Layout, limit: int, value: str) -> None:
    assert plan(layout, pids=m.Pids(limit=limit)) == [("pids.max", value)]


def test_v1_block_io_falls_back_to_the_names_of_bfq() -> None:
    asked = m.BlockIo(weight=100, weight_device=(m.WeightDevice(8, 0, weight=200),))
    weight, device = plan_writes(m.Resources(block_io=asked), LEGACY)
    assert (weight.file, weight.value) == ("blkio.weight", "100")
    assert weight.otherwise == Write("blkio", "blkio.bfq.weight", "100", "linux.resources.blockIO.weight")
    assert (device.file, device.value) == ("blkio.weight_device", "8:0 200")
    assert device.otherwise is not None
    assert device.otherwise.file == "blkio.bfq.weight_device"


def test_v2_block_io_converts_where_there_is_no_bfq() -> None:
    asked = m.BlockIo(weight=10, weight_device=(m.WeightDevice(8, 0, weight=1000),))
    writes = plan_writes(m.Resources(block_io=asked), UNIFIED)
    assert [(write.file, write.value) for write in writes] == [
        ("io.bfq.weight", "10"),
        ("io.bfq.weight", "8:0 1000"),
    ]
    others = [write.otherwise for write in writes]
    assert [(each.file, each.value) for each in others if each] == [
        ("io.weight", "1"),
        ("io.weight", "8:0 10000"),
    ]


def test_throttles_of_both_versions() -> None:
    asked = m.BlockIo(
        throttle_read_bps_device=(m.ThrottleDevice(8, 0, 1024),),
        throttle_write_iops_device=(m.ThrottleDevice(8, 16, 0),),
    )
    assert plan(LEGACY, block_io=asked) == [
        ("blkio.throttle.read_bps_device", "8:0 1024"),
        ("blkio.throttle.write_iops_device", "8:16 0"),
    ]
    assert plan(UNIFIED, block_io=asked) == [("io.max", "8:0 rbps=1024"), ("io.max", "8:16 wiops=max")]


def test_network_and_rdma() -> None:
    network = m.Network(class_id=0x100001, priorities=(m.InterfacePriority("eth0", 5),))
    assert plan(LEGACY, network=network) == [("net_cls.classid", "1048577"), ("net_prio.ifpriomap", "eth0 5")]
    rdma = {"mlx5_1": m.Rdma(hca_handles=3, hca_objects=100)}
    for layout in (LEGACY, UNIFIED):
        assert plan(layout, rdma=rdma) == [("rdma.max", "mlx5_1 hca_handle=3 hca_object=100")]


def test_unified_keys_come_last_and_line_by_line() -> None:
    unified = {"memory.high": "1048576", "io.max": "8:0 rbps=1\n8:16 rbps=2\n"}
    assert plan(UNIFIED, memory=m.Memory(limit=MIB), unified=unified) == [
        ("memory.max", str(MIB)),
        ("memory.high", "1048576"),
        ("io.max", "8:0 rbps=1"),
        ("io.max", "8:16 rbps=2"),
    ]


@pytest.mark.parametrize(
    "key",
    [
        "../../x",
        "a/b",
        "/etc/passwd",
        "memory.max\0",
        "memory..max",
        ".memory",
        "memory",
        "",
        "memory max",
        "m\n.max",
    ],
)
def test_unified_key_that_is_no_file_of_a_controller_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"linux\.resources\.unified"):
        plan(UNIFIED, unified={key: "1"})


@pytest.mark.parametrize(
    "key", ["cgroup.procs", "cgroup.subtree_control", "cgroup.kill", "net_cls.classid", "misc.max"]
)
def test_unified_key_of_no_controller_of_ours_is_refused(key: str) -> None:
    with pytest.raises(CgroupError, match=f"unified.{key}"):
        plan(UNIFIED, unified={key: "1"})


def test_unified_may_bound_the_tree_of_the_container() -> None:
    assert plan(UNIFIED, unified={"cgroup.max.descendants": "10"}) == [("cgroup.max.descendants", "10")]


@pytest.mark.parametrize("value", ["a\0b", "x" * 5000])
def test_unified_value_that_fits_no_file_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="unified"):
        plan(UNIFIED, unified={"memory.high": value})


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"memory": m.Memory(limit=MIB)}, "memory.limit"),
        ({"memory": m.Memory(swappiness=1)}, "memory.swappiness"),
        ({"cpu": m.Cpu(shares=100)}, "cpu.shares"),
        ({"cpu": m.Cpu(cpus="0")}, "cpu.cpus"),
        ({"pids": m.Pids(limit=1)}, "pids.limit"),
        ({"block_io": m.BlockIo(weight=100)}, "blockIO.weight"),
        ({"hugepage_limits": (m.HugepageLimit("2MB", 0),)}, "hugepageLimits.2MB"),
        ({"network": m.Network(class_id=1)}, "network.classID"),
        ({"network": m.Network(priorities=(m.InterfacePriority("lo", 1),))}, "network.priorities"),
        ({"rdma": {"mlx5_1": m.Rdma(hca_handles=3)}}, "rdma.mlx5_1"),
        ({"unified": {"memory.high": "1"}}, "unified.memory.high"),
    ],
)
def test_limit_without_its_controller_is_an_error_that_names_the_field(
    parts: dict[str, Any], field: str
) -> None:
    with pytest.raises(CgroupError, match=f"linux.resources.{field}: .* on this machine|no cgroup v2"):
        plan(BARE, **parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"memory": m.Memory(disable_oom_killer=True)},
        {"memory": m.Memory(swappiness=10)},
        {"cpu": m.Cpu(realtime_runtime=1)},
        {"block_io": m.BlockIo(leaf_weight=10)},
        {"network": m.Network(class_id=1)},
    ],
)
def test_what_v2_can_not_do_is_an_error_and_not_forgotten(parts: dict[str, Any]) -> None:
    with pytest.raises(CgroupError, match=r"linux\.resources\."):
        plan(UNIFIED, **parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"memory": m.Memory(limit=-2)},
        {"memory": m.Memory(limit=2 * MIB, swap=MIB)},
        {"memory": m.Memory(limit=-1, swap=MIB)},
        {"memory": m.Memory(swappiness=101)},
        {"cpu": m.Cpu(cpus="0\n1")},
        {"cpu": m.Cpu(mems="../1")},
        {"hugepage_limits": (m.HugepageLimit("../2MB", 0),)},
        {"rdma": {"a b": m.Rdma(hca_handles=1)}},
        {"network": m.Network(priorities=(m.InterfacePriority("eth0 1\n", 1),))},
    ],
)
def test_values_that_no_machine_takes_are_config_errors(parts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"linux\.resources\."):
        plan(LEGACY, **parts)


def test_refusals_are_errors_of_ours() -> None:
    assert issubclass(CgroupError, ManorError)
    assert issubclass(ConfigError, ManorError)


def test_a_partition_is_asked_for_behind_its_cpus() -> None:
    unified = {"cpuset.cpus.partition": "root", "cpuset.cpus": "1", "memory.min": "5"}
    assert [file for file, _value in plan(UNIFIED, unified=unified)] == [
        "cpuset.cpus",
        "memory.min",
        "cpuset.cpus.partition",
    ]


def test_obsolete_fields_are_told_and_not_written() -> None:
    obsolete = m.Resources(memory=m.Memory(kernel=1, kernel_tcp=1, use_hierarchy=False))
    assert plan_writes(obsolete, LEGACY) == ()
    assert [told.split(" ")[0] for told in ignored_fields(obsolete)] == [
        f"linux.resources.memory.{name}" for name in ("kernel", "kernelTCP", "useHierarchy")
    ]
    assert ignored_fields(m.Resources(memory=m.Memory(limit=1, use_hierarchy=True))) == ()


@pytest.mark.parametrize(
    ("file", "value", "content", "former"),
    [
        ("pids.max", "9", "max\n", "max"),
        ("cpu.max", "1000 100000", "max 100000\n", "max 100000"),
        ("memory.oom_control", "1", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "0"),
        ("cpuset.cpus", "1", "\n", "\n"),
        ("memory.limit_in_bytes", "9", "9223372036854771712\n", "-1"),
        ("cpuset.cpus.partition", "member", "root invalid (Cpu list in cpuset.cpus not exclusive)\n", "root"),
        ("blkio.throttle.read_bps_device", "8:0 9", "8:16 4\n8:0 7\n", "8:0 7"),
        ("blkio.throttle.read_bps_device", "8:0 9", "", "8:0 0"),
        ("io.max", "8:0 rbps=9", "8:0 rbps=7 wbps=max riops=max wiops=max\n", None),
        ("io.max", "8:0 rbps=9", "8:00 x\n", "8:0 rbps=max wbps=max riops=max wiops=max"),
        ("rdma.max", "mlx hca_handle=9", "", "mlx hca_handle=max hca_object=max"),
        ("net_prio.ifpriomap", "eth0 9", "lo 0\neth0 4\n", "eth0 4"),
    ],
)
def test_what_a_file_had_can_be_written_back(file: str, value: str, content: str, former: str | None) -> None:
    expected = content.strip() if former is None else former
    assert former_value(Write("h", file, value, "linux.resources"), content) == expected
