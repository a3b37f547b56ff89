"""The commands where every controller is in cgroup v2, as tests/vm/run.sh has it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups.layout import UNIFIED, detect_layout
from tests.e2e.oci.conftest import Oci, cgroup_directories

pytestmark = pytest.mark.skipif(detect_layout().mode != UNIFIED, reason="the files are cgroup v2's")

MIB = 1 << 20
# A cgroup of its own below the container's, as a container that runs containers makes it: no process may be where
# controllers are handed down.
BRANCH = """
set -e
cd /sys/fs/cgroup
mkdir own own/deep
echo $$ >own/cgroup.procs
echo +pids >cgroup.subtree_control
sleep 1001 &
echo $! >own/deep/cgroup.procs
echo done >/done
exec sleep 1000
"""


def own_cgroups(config: dict[str, Any]) -> None:
    """Have the container's own cgroup mounted in it, writable."""
    config["mounts"].append(
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw", "nosuid"]}
    )


def without_pid_namespace(config: dict[str, Any]) -> None:
    own_cgroups(config)
    config["linux"]["namespaces"] = [each for each in config["linux"]["namespaces"] if each["type"] != "pid"]


def until(reached: Any, what: str) -> None:
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def branched(oci: Oci, change: Any = own_cgroups) -> tuple[str, Path]:
    """A container with cgroups of its own making, and processes in them; with its cgroup."""
    name = oci.started("sh", "-c", BRANCH, change=change)
    until((oci.directory / name / "rootfs/done").exists, "the container has no cgroups")
    (place,) = cgroup_directories(name)
    assert (place / "cgroup.subtree_control").read_text() == "pids\n"
    return name, place


def test_update_writes_what_it_is_told_and_leaves_the_rest(oci: Oci) -> None:
    name = oci.started()
    files = ("memory.max", "memory.low", "memory.swap.max", "cpu.max", "cpuset.cpus", "pids.max")
    first = ["--memory", "64M", "--memory-reservation", "32M", "--memory-swap", "96M", "--cpu-quota", "50000"]
    first += ["--cpu-period", "200000", "--cpuset-cpus", "0", "--pids-limit", "20", "--cpu-share", "2048"]
    oci.ok("update", *first, name)
    expected = [str(64 * MIB), str(32 * MIB), str(32 * MIB), "50000 200000", "0", "20"]
    assert [oci.cgroup_file(name, file) for file in files] == expected
    assert oci.cgroup_file(name, "cpu.weight") == "174"
    oci.ok("update", "--memory=-1", "--memory-swap=-1", "--pids-limit=-1", name)
    expected[0] = expected[2] = expected[5] = "max"
    assert [oci.cgroup_file(name, file) for file in files] == expected


def test_disks_are_throttled_at_create_and_at_update(oci: Oci) -> None:
    disk = os.stat("/dev/vda").st_rdev
    number = {"major": os.major(disk), "minor": os.minor(disk)}

    def slow(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["blockIO"] = {"throttleReadBpsDevice": [number | {"rate": MIB}]}

    name = oci.started(change=slow)
    limits = f"{number['major']}:{number['minor']} rbps={MIB} wbps=max riops=max wiops="
    assert oci.cgroup_file(name, "io.max") == f"{limits}max"
    more = {"blockIO": {"throttleWriteIOPSDevice": [number | {"rate": 100}]}}
    oci.ok("update", "--resources", "-", name, stdin=json.dumps(more).encode())
    assert oci.cgroup_file(name, "io.max") == f"{limits}100"


def test_stats_tell_the_pressure(oci: Oci) -> None:
    def limited(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["cpu"] = {"quota": 10000, "period": 100000}

    name = oci.started("sh", "-c", "while :; do :; done", change=limited)
    until(lambda: "total=0\n" not in oci.cgroup_file(name, "cpu.pressure"), "there is no pressure")
    data = json.loads(oci.ok("events", "--stats", name))["data"]
    for part in ("cpu", "memory", "blkio"):
        assert set(data[part]["psi"]) == {"some", "full"}
        assert list(data[part]["psi"]["some"]) == ["avg10", "avg60", "avg300", "total"]
    assert data["cpu"]["psi"]["some"]["total"] > 0


def test_an_exec_joins_init_where_the_containers_own_cgroup_may_hold_nobody(oci: Oci) -> None:
    name, place = branched(oci)
    assert oci.ok("exec", name, "cat", "/proc/self/cgroup") == "0::/own\n"
    assert (place / "cgroup.procs").read_text() == ""
    oci.ok("delete", "--force", name)
    assert not place.exists()


@pytest.mark.manor_only("runc calls a container paused that was killed when it was")
def test_kill_reaches_everybody_in_the_cgroups_that_a_paused_container_made(oci: Oci) -> None:
    name, place = branched(oci, without_pid_namespace)
    assert "populated 1" in (place / "own/deep/cgroup.events").read_text()
    oci.ok("pause", name)
    assert "frozen 1" in (place / "cgroup.events").read_text()
    oci.ok("kill", "--all", name, "KILL")
    until(lambda: "populated 0" in (place / "cgroup.events").read_text(), "somebody is left")
    oci.await_status(name, "stopped")
    oci.ok("delete", name)
    assert not place.exists()
