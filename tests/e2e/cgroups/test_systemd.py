"""The systemd driver against a real systemd: units, their limits as systemd and the kernel have them, their end.

Needs a machine booted with systemd: tests/vm/systemd.sh.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups.bus import system_sockets
from runtime.cgroups.cgroup import Cgroup, create_cgroup, reopen
from runtime.cgroups.driver import booted_with_systemd
from runtime.cgroups.layout import UNIFIED, Layout, detect_layout
from runtime.errors import CgroupError, ConfigError
from runtime.linux.process import clone3
from runtime.spec.model import BlockIo, Cpu, DeviceRule, Memory, Pids, Resources
from runtime.waiting import run
from tests.e2e.cgroups.yard import BUSYBOX, until
from tests.harness.processes import descriptors

if not booted_with_systemd():
    pytest.skip("this machine was not booted with systemd", allow_module_level=True)

from runtime.cgroups.systemd import Systemd, unit_object

MIB = 1 << 20
PR_SET_PDEATHSIG = 1
PARENT = "manor-test.slice"
ALL_DEVICES = (DeviceRule(allow=False, access="rwm"),)


def spawn_placeholder() -> tuple[int, int]:
    pid, pidfd = clone3(0, signal.SIGCHLD)
    if not pid:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        while True:
            time.sleep(1000)
    return pid, pidfd


@pytest.fixture(scope="session")
def layout() -> Layout:
    """As mounted: systemd sees who is in a scope in its own hierarchy, which must not be left out."""
    return detect_layout()


@pytest.fixture
def manager() -> Systemd:
    return Systemd(spawn_placeholder)


class Units:
    """Makes containers' units and puts processes into them."""

    def __init__(self, layout: Layout, manager: Systemd) -> None:
        self.layout, self.manager = layout, manager
        self.made: list[Cgroup] = []
        self.members: dict[int, int] = {}

    def make(
        self, path: str, annotations: dict[str, str] | None = None, confine: bool = True, **parts: Any
    ) -> Cgroup:
        parts.setdefault("devices", ALL_DEVICES)
        cgroup = create_cgroup(
            self.layout,
            path,
            Resources(**parts),
            "an-id",
            systemd=self.manager,
            annotations=annotations or {},
        )
        self.made.append(cgroup)
        if confine:
            cgroup.confine()
        return cgroup

    def spawn(self, cgroup: Cgroup, *arguments: str) -> int:
        with cgroup.open_join() as join:
            pid, pidfd = clone3(0, signal.SIGCHLD, join.v2_dir.fileno() if join.v2_dir else -1)
            if not pid:
                try:
                    join.enter_v1()
                    os.execv(BUSYBOX, ["busybox", *arguments])
                finally:
                    os._exit(127)
        self.members[pid] = pidfd
        return pid

    def wait(self, pid: int) -> int:
        status = os.waitpid(pid, 0)[1]
        os.close(self.members.pop(pid))
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        for pid in list(self.members):
            os.kill(pid, signal.SIGKILL)
            self.wait(pid)
        for cgroup in self.made:
            cgroup.signal_all(signal.SIGKILL)
            until(cgroup.try_delete)


@pytest.fixture(scope="module", autouse=True)
def no_unit_is_left() -> Iterator[None]:
    yield
    assert not loaded("manor-*.scope")


@pytest.fixture
def units(layout: Layout, manager: Systemd) -> Iterator[Units]:
    before = descriptors()
    made = Units(layout, manager)
    yield made
    made.close()
    assert not descriptors() - before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def shown(unit: str, *names: str) -> dict[str, str]:
    """Properties as systemctl tells them."""
    options = [f"--property={name}" for name in names]
    told = subprocess.run(["systemctl", "show", unit, *options], check=True, capture_output=True, text=True)
    return dict(line.split("=", 1) for line in told.stdout.splitlines())


def loaded(pattern: str) -> list[str]:
    command = ["systemctl", "list-units", "--all", "--no-legend", "--plain", pattern]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return [line.split()[0] for line in told.stdout.splitlines()]


def text(cgroup: Cgroup, controller: str, name: str) -> str:
    hierarchy = cgroup.layout.find(controller)
    assert hierarchy is not None
    return (Path(cgroup.paths[hierarchy.name]) / name).read_text().strip()


unified_only = pytest.mark.skipif(
    not Path("/sys/fs/cgroup/cgroup.controllers").exists(), reason="names the files of cgroup v2"
)


@unified_only
def test_scope_has_its_limits_from_systemd_and_in_the_kernel(units: Units) -> None:
    cgroup = units.make(
        f"{PARENT}:manor-test:limits",
        memory=Memory(limit=64 * MIB, swap=96 * MIB, reservation=32 * MIB),
        cpu=Cpu(shares=2048, quota=12_345, period=100_000, cpus="0", mems="0"),
        pids=Pids(limit=30),
        block_io=BlockIo(weight=500),
        unified={"memory.high": str(48 * MIB), "cgroup.max.depth": "7"},
    )
    assert cgroup.unit == "manor-test-limits.scope"
    assert cgroup.path == "manor.slice/manor-test.slice/manor-test-limits.scope"
    told = shown(
        cgroup.unit,
        *(
            "Slice",
            "Delegate",
            "MemoryMax",
            "MemoryHigh",
            "MemoryLow",
            "MemorySwapMax",
            "TasksMax",
            "CPUWeight",
        ),
        *("CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec", "AllowedCPUs", "AllowedMemoryNodes", "IOWeight"),
        *("DevicePolicy", "DefaultDependencies", "MemoryAccounting", "Transient", "ActiveState"),
    )
    assert told == {
        "Slice": PARENT,
        "Delegate": "yes",
        "MemoryMax": str(64 * MIB),
        "MemoryHigh": str(48 * MIB),
        "MemoryLow": str(32 * MIB),
        "MemorySwapMax": str(32 * MIB),
        "TasksMax": "30",
        "CPUWeight": "174",
        "CPUQuotaPerSecUSec": "130ms",
        "CPUQuotaPeriodUSec": "100ms",
        "AllowedCPUs": "0",
        "AllowedMemoryNodes": "0",
        "IOWeight": told["IOWeight"],
        "DevicePolicy": "strict",
        "DefaultDependencies": "no",
        "MemoryAccounting": "yes",
        "Transient": "yes",
        "ActiveState": "active",
    }
    assert told["IOWeight"] not in ("", "[not set]", str((1 << 64) - 1))
    assert text(cgroup, "memory", "memory.max") == str(64 * MIB)
    assert text(cgroup, "memory", "memory.high") == str(48 * MIB)
    assert text(cgroup, "cpu", "cpu.max") == "13000 100000"
    assert text(cgroup, "cpuset", "cpuset.cpus") == "0"
    assert text(cgroup, "memory", "cgroup.max.depth") == "7"


def test_v1_limits_are_the_same_for_both_and_stay(units: Units) -> None:
    if units.layout.mode == UNIFIED:
        pytest.skip("names the files of cgroup v1")
    cgroup = units.make(
        f"{PARENT}:manor-test:limits",
        memory=Memory(limit=64 * MIB),
        cpu=Cpu(shares=300, quota=12_345, cpus="0", mems="0"),
        pids=Pids(limit=30),
    )
    told = shown(cgroup.unit, "MemoryLimit", "CPUShares", "CPUQuotaPerSecUSec", "TasksMax")
    assert told == {
        "MemoryLimit": str(64 * MIB),
        "CPUShares": "300",
        "CPUQuotaPerSecUSec": "130ms",
        "TasksMax": "30",
    }
    cgroup.apply(Resources(memory=Memory(limit=32 * MIB), devices=ALL_DEVICES))
    assert not cgroup.frozen()
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert text(cgroup, "memory", "memory.limit_in_bytes") == str(32 * MIB)
    assert text(cgroup, "cpu", "cpu.cfs_quota_us") == "13000"
    assert text(cgroup, "cpuset", "cpuset.cpus") == "0"
    assert units.wait(units.spawn(cgroup, "sh", "-c", "head -c 1 /dev/zero && ! head -c 1 /dev/kmsg")) == 0


@unified_only
def test_limits_stay_when_systemd_reloads(units: Units) -> None:
    cgroup = units.make("manor-test.slice:manor-test:reload", cpu=Cpu(quota=12_345), pids=Pids(limit=30))
    assert text(cgroup, "cpu", "cpu.max") == "13000 100000"
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert text(cgroup, "cpu", "cpu.max") == "13000 100000"
    assert text(cgroup, "pids", "pids.max") == "30"


def test_init_joins_and_the_placeholder_goes(units: Units) -> None:
    cgroup = units.make(f"{PARENT}:manor-test:settle")
    assert cgroup.placeholder is not None
    placeholder = cgroup.placeholder.pid
    assert cgroup.holders() == [placeholder]
    init = units.spawn(cgroup, "sleep", "1000")
    until(lambda: init in cgroup.pids())
    cgroup.settle()
    assert cgroup.pids() == [init]
    assert not Path(f"/proc/{placeholder}").exists()
    assert shown(cgroup.unit, "ActiveState")["ActiveState"] == "active"


@unified_only
@pytest.mark.parametrize("limit", [0, 1])
def test_a_container_of_one_process_is_born_beside_the_placeholder(units: Units, limit: int) -> None:
    cgroup = units.make(f"{PARENT}:manor-test:one", confine=False, pids=Pids(limit=limit))
    init = units.spawn(cgroup, "sleep", "1000")
    cgroup.confine()
    cgroup.settle()
    assert cgroup.pids() == [init]
    assert text(cgroup, "pids", "pids.max") == shown(cgroup.unit, "TasksMax")["TasksMax"] == "1"


def test_a_deleted_scope_leaves_no_unit_and_no_directory(units: Units) -> None:
    cgroup = units.make(f"{PARENT}:manor-test:gone")
    init = units.spawn(cgroup, "sleep", "1000")
    until(lambda: init in cgroup.pids())
    cgroup.settle()
    again = reopen(units.layout, cgroup.describe(), Systemd())
    assert not again.try_delete(), "a process is in it"
    assert shown(cgroup.unit, "ActiveState")["ActiveState"] == "active", "and stays so: it was not stopped"
    again.signal_all(signal.SIGKILL)
    units.wait(init)
    until(again.try_delete)
    assert not loaded(cgroup.unit)
    assert not any(Path(each).exists() for each in cgroup.paths.values())
    assert again.try_delete()


def test_a_scope_that_was_never_joined_is_deleted(units: Units) -> None:
    cgroup = units.make(f"{PARENT}:manor-test:unused")
    until(cgroup.try_delete)
    assert not loaded(cgroup.unit)


@unified_only
def test_devices_are_those_of_the_config_alone(units: Units) -> None:
    cgroup = units.make(
        f"{PARENT}:manor-test:devices",
        devices=(*ALL_DEVICES, DeviceRule(allow=True, type="c", major=10, minor=229, access="rw")),
    )
    allowed = run(units.manager.properties(cgroup.unit, ["DeviceAllow"]))["DeviceAllow"]
    assert isinstance(allowed, list)
    assert {("char-136", "rwm"), ("/dev/char/10:229", "rw"), ("block-*", "m")} <= set(allowed)
    script = "head -c 1 /dev/zero >/dev/null && ! head -c 1 /dev/kmsg 2>/dev/null"
    assert units.wait(units.spawn(cgroup, "sh", "-c", script)) == 0
    cgroup.apply(
        Resources(devices=(*ALL_DEVICES, DeviceRule(allow=True, type="c", major=1, minor=11, access="r")))
    )
    assert units.wait(units.spawn(cgroup, "sh", "-c", "head -c 1 /dev/kmsg >/dev/null")) == 0


@unified_only
def test_update_tells_systemd_and_the_kernel(units: Units) -> None:
    cgroup = units.make(f"{PARENT}:manor-test:update", memory=Memory(limit=64 * MIB), pids=Pids(limit=30))
    again = reopen(units.layout, cgroup.describe(), Systemd())
    again.apply(
        Resources(
            memory=Memory(limit=128 * MIB),
            pids=Pids(limit=-1),
            cpu=Cpu(quota=50_000, period=200_000, burst=10_000),
            unified={"memory.oom.group": "1"},
        )
    )
    told = shown(cgroup.unit, "MemoryMax", "TasksMax", "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec")
    assert told == {
        "MemoryMax": str(128 * MIB),
        "TasksMax": "infinity",
        "CPUQuotaPerSecUSec": "250ms",
        "CPUQuotaPeriodUSec": "200ms",
    }
    assert text(cgroup, "cpu", "cpu.max") == "50000 200000"
    assert text(cgroup, "cpu", "cpu.max.burst") == "10000"
    assert text(cgroup, "memory", "memory.oom.group") == "1"


@unified_only
def test_an_update_that_fails_is_taken_back_in_both(units: Units) -> None:
    cpu = Cpu(quota=50_000, period=200_000)
    cgroup = units.make(f"{PARENT}:manor-test:refused", memory=Memory(limit=64 * MIB), cpu=cpu)
    names = ("MemoryMax", "TasksMax", "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec")
    before, processes = shown(cgroup.unit, *names), text(cgroup, "pids", "pids.max")  # by systemd's default
    asked = Resources(
        memory=Memory(limit=128 * MIB),
        pids=Pids(limit=20),
        cpu=Cpu(quota=90_000, period=100_000),
        unified={"memory.oom.group": "nonsense"},
    )
    with pytest.raises(CgroupError, match=r"memory\.oom\.group"):
        cgroup.apply(asked)
    assert shown(cgroup.unit, *names) == before
    assert text(cgroup, "memory", "memory.max") == str(64 * MIB)
    assert text(cgroup, "cpu", "cpu.max") == "50000 200000"
    assert text(cgroup, "pids", "pids.max") == processes != "20"


@unified_only
def test_what_is_idle_has_no_weight_until_it_is_given_one(units: Units) -> None:
    cgroup = units.make(f"{PARENT}:manor-test:idle", cpu=Cpu(shares=512))
    cgroup.apply(Resources(unified={"cpu.idle": "1", "cpu.weight": "8"}))
    assert text(cgroup, "cpu", "cpu.idle") == "1"
    assert shown(cgroup.unit, "CPUWeight")["CPUWeight"] in ("0", "idle")
    cgroup.apply(Resources(unified={"cpu.weight": "8"}))
    assert text(cgroup, "cpu", "cpu.idle") == "0"
    assert text(cgroup, "cpu", "cpu.weight") == shown(cgroup.unit, "CPUWeight")["CPUWeight"] == "8"


def test_annotations_set_properties_that_are_allowed(units: Units) -> None:
    annotations = {
        "org.systemd.property.TimeoutStopSec": "7",
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
        "org.systemd.property.Slice": "'system.slice'",
    }
    cgroup = units.make(f"{PARENT}:manor-test:annotated", annotations)
    told = shown(cgroup.unit, "TimeoutStopUSec", "CollectMode", "Slice")
    assert told == {"TimeoutStopUSec": "7s", "CollectMode": "inactive-or-failed", "Slice": PARENT}
    assert units.manager.refused_annotations(annotations) == ("org.systemd.property.Slice",)


def test_a_unit_in_use_is_not_taken_from_its_owner(units: Units) -> None:
    cgroup = units.make(f"{PARENT}:manor-test:taken")
    with pytest.raises(CgroupError, match="already"):
        units.make(f"{PARENT}:manor-test:taken")
    assert shown(cgroup.unit, "ActiveState")["ActiveState"] == "active"
    assert cgroup.placeholder is not None
    assert cgroup.holders() == [cgroup.placeholder.pid]


def test_a_value_that_systemd_refuses_leaves_nothing(units: Units) -> None:
    wrong = {"org.systemd.property.CollectMode": "'never-heard-of'"}
    with pytest.raises(ConfigError, match="manor-test-wrong"):
        units.make(f"{PARENT}:manor-test:wrong", wrong)
    assert not loaded("manor-test-wrong.scope")


@unified_only
def test_a_limit_that_the_kernel_refuses_leaves_nothing(units: Units) -> None:
    with pytest.raises(CgroupError, match=r"cpuset\.cpus"):
        units.make(f"{PARENT}:manor-test:refused", cpu=Cpu(cpus="4000"))
    assert not loaded("manor-test-refused.scope")
    assert not Path(f"/sys/fs/cgroup/manor.slice/{PARENT}/manor-test-refused.scope").exists()


def test_slice_as_a_containers_cgroup(units: Units) -> None:
    cgroup = units.make("manor.slice::manor-own.slice", pids=Pids(limit=12))
    assert (cgroup.unit, cgroup.path) == ("manor-own.slice", "manor.slice/manor-own.slice")
    assert cgroup.placeholder is None
    assert shown(cgroup.unit, "TasksMax", "Wants") == {"TasksMax": "12", "Wants": "manor.slice"}
    until(cgroup.try_delete)
    assert not loaded("manor-own.slice")


def test_systemd_can_be_asked_without_a_bus(units: Units) -> None:
    private = Systemd(spawn_placeholder, sockets=(system_sockets()[1],))
    units.manager = private
    cgroup = units.make(f"{PARENT}:manor-test:private", pids=Pids(limit=9))
    found = run(private.properties(cgroup.unit, ["TasksMax"]))
    assert found == {"TasksMax": 9}
    until(cgroup.try_delete)


def test_a_process_is_attached_below_a_scope(units: Units, manager: Systemd) -> None:
    if units.layout.mode != UNIFIED:
        pytest.skip("systemd makes the directory in its own hierarchy alone")
    cgroup = units.make(f"{PARENT}:manor-test:attach")
    pid, pidfd = spawn_placeholder()
    units.members[pid] = pidfd
    os.mkdir(f"{cgroup.paths['unified']}/below")
    run(manager.attach(cgroup.unit, "below", [pid]))
    assert Path(f"/proc/{pid}/cgroup").read_text().strip().endswith(f"{cgroup.path}/below")


def test_a_name_with_dashes_has_an_object_path() -> None:
    assert unit_object("a-b1.scope") == "/org/freedesktop/systemd1/unit/a_2db1_2escope"
    assert unit_object("1a.scope") == "/org/freedesktop/systemd1/unit/_31a_2escope"
