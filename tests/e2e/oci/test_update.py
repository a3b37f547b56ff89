"""update: limits of a container in use, by options and by file; what is not named stays."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.cgroups.layout import detect_layout
from tests.e2e.oci.conftest import Oci

MIB = 1 << 20
UNLIMITED = 9223372036854771712  # v1's way to say it
v1_only = pytest.mark.skipif(
    getattr(detect_layout().find("memory"), "version", 0) != 1, reason="the files are cgroup v1's"
)
pytestmark = v1_only


def limits(oci: Oci, name: str, *files: str) -> list[str]:
    return [oci.cgroup_file(name, file) for file in files]


def test_memory_in_bytes_and_with_units(oci: Oci) -> None:
    name = oci.started()
    files = ("memory.limit_in_bytes", "memory.soft_limit_in_bytes")
    oci.ok("update", "--memory", str(64 * MIB), name)
    assert limits(oci, name, *files) == [str(64 * MIB), str(UNLIMITED)]
    for text, bytes_ in (("32M", 32 * MIB), ("0.5g", 512 * MIB), ("48 MiB", 48 * MIB), ("65536kb", 64 * MIB)):
        oci.ok("update", "--memory", text, "--memory-reservation", text, name)
        assert limits(oci, name, *files) == [str(bytes_)] * 2
    oci.ok("update", "--memory=-1", name)
    assert limits(oci, name, *files) == [str(UNLIMITED), str(64 * MIB)]


def test_memory_and_swap_up_and_down_together(oci: Oci) -> None:
    name = oci.started()
    files = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    for memory, swap in ((32, 64), (96, 128), (16, 16)):
        oci.ok("update", f"--memory={memory}M", f"--memory-swap={swap}M", name)
        assert limits(oci, name, *files) == [str(memory * MIB), str(swap * MIB)]
    oci.ok("update", "--memory-swap=-1", name)
    assert limits(oci, name, *files) == [str(16 * MIB), str(UNLIMITED)]
    oci.ok("update", "--memory=-1", name)
    assert limits(oci, name, *files) == [str(UNLIMITED), str(UNLIMITED)]


def test_cpu_options(oci: Oci) -> None:
    name = oci.started()
    files = ("cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.cfs_burst_us", "cpu.idle")
    oci.ok("update", "--cpu-share", "200", "--cpu-quota", "50000", "--cpu-period", "200000", name)
    assert limits(oci, name, *files) == ["200", "50000", "200000", "0", "0"]
    oci.ok("update", "--cpu-quota", "60000", name)
    assert limits(oci, name, *files) == ["200", "60000", "200000", "0", "0"]
    oci.ok("update", "--cpu-period", "100000", "--cpu-burst", "1000", name)
    assert limits(oci, name, *files) == ["200", "60000", "100000", "1000", "0"]
    oci.ok("update", "--cpu-quota=-1", "--cpu-burst=0", name)
    assert limits(oci, name, *files) == ["200", "-1", "100000", "0", "0"]
    oci.ok("update", "--cpu-idle", "1", name)
    assert limits(oci, name, "cpu.idle") == ["1"]
    oci.ok("update", "--cpu-idle", "0", name)
    assert limits(oci, name, "cpu.idle", "cpu.shares") == ["0", "1024"]


def test_shares_of_what_is_made_idle_are_warned_of(oci: Oci) -> None:
    name = oci.started()
    done = oci("update", "--cpu-share", "200", "--cpu-idle", "1", name)
    assert done.code == 0
    assert limits(oci, name, "cpu.idle") == ["1"]
    if oci.is_manor:  # runc sets them first, to no effect
        assert "linux.resources.cpu.shares is ignored" in done.stderr


def test_cpuset_and_pids(oci: Oci) -> None:
    name = oci.started()
    files = ("cpuset.cpus", "cpuset.mems", "pids.max")
    oci.ok("update", "--cpuset-cpus", "0", "--cpuset-mems", "0", "--pids-limit", "20", name)
    assert limits(oci, name, *files) == ["0", "0", "20"]
    oci.ok("update", "--pids-limit", "10", name)
    assert limits(oci, name, *files) == ["0", "0", "10"]
    oci.ok("update", "--pids-limit=-1", name)
    assert limits(oci, name, *files) == ["0", "0", "max"]


RESOURCES: dict[str, Any] = {
    "memory": {"limit": 40 * MIB, "reservation": 30 * MIB, "checkBeforeUpdate": True},
    "cpu": {"shares": 300, "quota": 40000, "period": 80000, "cpus": "0", "mems": "0"},
    "pids": {"limit": 33},
}


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_resources_come_from_a_file_or_from_standard_input(oci: Oci, way: str) -> None:
    name = oci.started()
    data = json.dumps(RESOURCES).encode()
    if way == "file":
        (oci.directory / "resources.json").write_bytes(data)
        oci.ok(
            "update", "--resources", "resources.json", "--memory", "1G", name
        )  # the option is not looked at
    else:
        oci.ok("update", "-r", "-", "--memory", "1G", name, stdin=data)
    files = ("memory.limit_in_bytes", "memory.soft_limit_in_bytes", "cpu.shares", "cpu.cfs_quota_us")
    assert limits(oci, name, *files) == [str(40 * MIB), str(30 * MIB), "300", "40000"]
    assert limits(oci, name, "cpu.cfs_period_us", "cpuset.cpus", "pids.max") == ["80000", "0", "33"]


@pytest.mark.parametrize("key", ["devices", "Devices"])
def test_devices_are_not_changed_by_an_update(oci: Oci, key: str) -> None:
    name = oci.started()
    before = oci.cgroup_file(name, "devices.list")
    data = json.dumps({key: [{"allow": True, "access": "rwm"}], "pids": {"limit": 7}}).encode()
    oci.ok("update", "-r", "-", name, stdin=data)
    assert oci.cgroup_file(name, "devices.list") == before
    assert oci.cgroup_file(name, "pids.max") == "7"


def test_a_paused_container_and_a_created_one_are_updated_too(oci: Oci) -> None:
    for name in (oci.created(), oci.started()):
        if oci.state(name)["status"] == "running":
            oci.ok("pause", name)
        status = oci.state(name)["status"]
        oci.ok("update", "--pids-limit", "9", name)
        assert oci.cgroup_file(name, "pids.max") == "9"
        assert oci.state(name)["status"] == status


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--memory", "12x"], "invalid value for memory: invalid suffix: 'x'"),
        (["--memory", "many"], "invalid value for memory: invalid size: 'many'"),
        (["--memory-swap", "1QiB"], "invalid value for memory-swap: invalid suffix: 'qib'"),
        (["--memory-reservation", "-2"], "invalid value for memory-reservation: invalid size: '-2'"),
        (
            ["--cpu-period", "1x"],
            'invalid value for cpu-period: strconv.ParseUint: parsing "1x": invalid syntax',
        ),
        (
            ["--cpu-share", "-1"],
            'invalid value for cpu-share: strconv.ParseUint: parsing "-1": invalid syntax',
        ),
        (
            ["--cpu-quota", "1_0"],
            'invalid value for cpu-quota: strconv.ParseInt: parsing "1_0": invalid syntax',
        ),
        (["--cpu-idle", ""], ""),
        (["--l3-cache-schema", "L3:0=f"], "Intel RDT/CAT: l3 cache schema is not enabled"),
        (["--mem-bw-schema", "MB:0=20"], "Intel RDT/MBA: memory bandwidth schema is not enabled"),
    ],
)
def test_a_value_that_is_none_changes_nothing(oci: Oci, words: list[str], error: str) -> None:
    name = oci.started()
    done = oci("update", *words, "--pids-limit", "5", name)
    if not error:
        assert done.code == 0
        return
    assert (done.code, done.error) == (1, error)
    assert oci.cgroup_file(name, "pids.max") == "max"


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"memory": 7}', b'{"pids": {"limit": "many"}}', b'{"cpu": {"shares": -1}}']
)
def test_resources_that_are_none_change_nothing(oci: Oci, data: bytes) -> None:
    name = oci.started()
    done = oci("update", "-r", "-", name, stdin=data)
    assert done.code == 1
    assert "Traceback" not in done.stderr
    assert oci.cgroup_file(name, "pids.max") == "max"


def test_what_the_kernel_refuses_names_the_file(oci: Oci) -> None:
    name = oci.started()
    done = oci("update", "--cpuset-cpus", "4000", name)
    assert done.code == 1
    assert "cpuset.cpus" in done.error


def test_an_update_that_is_refused_changes_nothing(oci: Oci) -> None:
    name = oci.started()
    files = ("memory.limit_in_bytes", "cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "pids.max")
    first = ("--memory=64M", "--cpu-share=200", "--cpu-quota=50000", "--cpu-period=200000", "--pids-limit=70")
    oci.ok("update", *first, name)
    before = limits(oci, name, *files)
    assert before == [str(64 * MIB), "200", "50000", "200000", "70"]
    other = ("--memory=96M", "--cpu-share=300", "--cpu-quota=90000", "--cpu-period=100000", "--pids-limit=80")
    assert oci("update", *other, "--cpuset-cpus=4000", name).code == 1
    assert limits(oci, name, *files) == before


def test_a_stopped_container_is_not_updated(oci: Oci) -> None:
    name = oci.stopped()
    assert oci("update", "--pids-limit", "9", name).error == "container not running"


def test_kernel_memory_is_ignored_with_a_warning(oci: Oci) -> None:
    name = oci.started()
    done = oci("update", "--kernel-memory", "50M", name)
    assert done.code == 0
    assert "Kernel memory settings are ignored and will be removed" in done.stderr
