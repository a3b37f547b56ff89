"""Counters as the kernel writes them, read into records that have the wire messages' fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.cgroups import stats_v1, stats_v2
from runtime.record import Record
from shim.api import metrics_v1, metrics_v2

# What a container's cgroups do not count, or what no kernel of today still has.
NOT_COUNTED = {
    "Metrics": {"network", "cgroup_stats"},
    "BlkIOStat": {
        "io_queued_recursive",
        "io_service_time_recursive",
        "io_wait_time_recursive",
        "io_merged_recursive",
        "io_time_recursive",
        "sectors_recursive",
    },
}


def put(directory: Path, **files: str) -> str:
    """Files by name, `__` for a dot."""
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)
    return str(directory)


@pytest.mark.parametrize(("ours", "wire"), [(stats_v1, metrics_v1), (stats_v2, metrics_v2)])
def test_records_have_the_fields_of_the_messages(ours: object, wire: object) -> None:
    records = {name: value for name, value in vars(ours).items() if isinstance(value, type)}
    compared = 0
    for name, record in records.items():
        message = getattr(wire, name, None)
        if message is None or not issubclass(record, Record) or record is Record:
            continue
        fields = {field.name for field in message.FIELDS}
        assert set(record.FIELD_NAMES) == fields - NOT_COUNTED.get(name, set()), name
        compared += 1
    assert compared >= 9


def test_v1_counters(tmp_path: Path) -> None:
    places = {
        "cpuacct": (
            put(
                tmp_path / "cpuacct",
                cpuacct__usage="3000000000\n",
                cpuacct__usage_percpu="1000000000 2000000000 \n",
                cpuacct__stat="user 200\nsystem 50\n",
            ),
            1,
        ),
        "cpu": (put(tmp_path / "cpu", cpu__stat="nr_periods 9\nnr_throttled 3\nthrottled_time 77\n"), 1),
        "pids": (put(tmp_path / "pids", pids__current="4\n", pids__max="max\n"), 1),
        "memory": (
            put(
                tmp_path / "memory",
                memory__stat="cache 1\nrss 2\npgpgin 3\npgmajfault 4\nhierarchical_memsw_limit 5\ntotal_pgfault 6\n",
                memory__usage_in_bytes="10\n",
                memory__max_usage_in_bytes="20\n",
                memory__limit_in_bytes="30\n",
                memory__failcnt="1\n",
                memory__oom_control="oom_kill_disable 0\nunder_oom 1\noom_kill 2\n",
            ),
            1,
        ),
        "blkio": (
            put(
                tmp_path / "blkio",
                blkio__throttle__io_service_bytes_recursive="8:0 Read 4096\n8:0 Total 4096\nTotal 4096\n",
                blkio__throttle__io_serviced="8:0 Write 3\nTotal 3\n",
            ),
            1,
        ),
        "rdma": (put(tmp_path / "rdma", rdma__current="mlx4_0 hca_handle=2 hca_object=max\n"), 1),
    }
    found = stats_v1.read(places)
    tick = stats_v1._TICK_NS
    assert found.cpu == stats_v1.CPUStat(
        stats_v1.CPUUsage(3_000_000_000, 50 * tick, 200 * tick, (1_000_000_000, 2_000_000_000)),
        stats_v1.Throttle(9, 3, 77),
    )
    assert found.pids == stats_v1.PidsStat(4, 0)
    memory = found.memory
    assert memory is not None
    assert (memory.cache, memory.rss, memory.pg_pg_in, memory.pg_maj_fault) == (1, 2, 3, 4)
    assert (memory.hierarchical_swap_limit, memory.total_pg_fault) == (5, 6)
    assert memory.usage == stats_v1.MemoryEntry(limit=30, usage=10, max=20, failcnt=1)
    assert memory.swap == stats_v1.MemoryEntry()
    assert found.memory_oom_control == stats_v1.MemoryOomControl(0, 1, 2)
    blkio = found.blkio
    assert blkio is not None
    assert [(each.op, each.major, each.minor, each.value) for each in blkio.io_service_bytes_recursive] == [
        ("Read", 8, 0, 4096),
        ("Total", 8, 0, 4096),
    ]
    assert [(each.op, each.value) for each in blkio.io_serviced_recursive] == [("Write", 3)]
    assert found.rdma == stats_v1.RdmaStat((stats_v1.RdmaEntry("mlx4_0", 2, (1 << 32) - 1),), ())


def test_v1_machine_without_a_controller_has_no_counter_of_it(tmp_path: Path) -> None:
    found = stats_v1.read({"pids": (put(tmp_path / "pids", pids__current="4\n", pids__max="9\n"), 1)})
    assert found == stats_v1.Metrics(pids=stats_v1.PidsStat(4, 9))


def test_v2_counters(tmp_path: Path) -> None:
    directory = put(
        tmp_path,
        pids__current="4\n",
        pids__max="max\n",
        cpu__stat="usage_usec 10\nuser_usec 6\nsystem_usec 4\nnr_bursts 2\ncore_sched.force_idle_usec 1\n",
        cpu__pressure="some avg10=1.50 avg60=0.20 avg300=0.00 total=1234\n",
        memory__stat="anon 1\nfile 2\nworkingset_refault_anon 3\nworkingset_refault_file 4\npgfault 5\n",
        memory__current="4096\n",
        memory__max="max\n",
        memory__swap__max="8192\n",
        memory__events="low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n",
        io__stat="8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 \n7:0\n",
    )
    found = stats_v2.read(directory)
    assert found.pids == stats_v2.PidsStat(4, (1 << 64) - 1)
    assert found.cpu == stats_v2.CPUStat(
        usage_usec=10,
        user_usec=6,
        system_usec=4,
        nr_bursts=2,
        psi=stats_v2.PSIStats(stats_v2.PSIData(1.5, 0.2, 0.0, 1234), None),
    )
    memory = found.memory
    assert memory is not None
    assert (memory.anon, memory.file, memory.workingset_refault, memory.pgfault) == (1, 2, 7, 5)
    assert (memory.usage, memory.usage_limit, memory.swap_limit, memory.psi) == (
        4096,
        (1 << 64) - 1,
        8192,
        None,
    )
    assert found.memory_events == stats_v2.MemoryEvents(0, 1, 2, 3, 4, 5)
    assert found.io == stats_v2.IOStat((stats_v2.IOEntry(8, 0, 1, 2, 3, 4),), None)


@pytest.mark.parametrize(
    ("kilobytes", "name"),
    [(64, "64KB"), (2048, "2MB"), (32_768, "32MB"), (1_048_576, "1GB"), (16_777_216, "16GB")],
)
def test_page_sizes_are_spelt_as_cgroup_files_do(kilobytes: int, name: str) -> None:
    assert stats_v1._size_name(kilobytes) == name
