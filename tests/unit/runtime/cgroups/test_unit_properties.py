"""What systemd is told: limits from the writes of the file system driver, devices, the unit's own properties."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.cgroups.devices import DeviceKey, DevicePolicy, plan_devices
from runtime.cgroups.layout import Hierarchy, Layout, make_layout
from runtime.cgroups.resources import plan_writes
from runtime.cgroups.unit_name import Unit
from runtime.cgroups.unit_properties import (
    INFINITY,
    bit_mask,
    device_properties,
    limit_properties,
    oom_policy,
    rounded,
    unit_properties,
)
from runtime.cgroups.writes import Current, Write
from runtime.errors import ConfigError
from runtime.spec.model import BlockIo, Cpu, Memory, Pids, Resources

V2_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids", "hugetlb")
V2 = make_layout((Hierarchy(name="unified", controllers=V2_CONTROLLERS, mountpoint="/c", version=2),))
V1 = make_layout(
    tuple(
        Hierarchy(name=name, controllers=(name,), mountpoint=f"/c/{name}", version=1)
        for name in ("cpuset", "cpu", "blkio", "memory", "pids")
    )
)


def told(layout: Layout, systemd: int = 252, current: Current | None = None, **parts: Any) -> dict[str, Any]:
    now = current or Current()
    writes = rounded(plan_writes(Resources(**parts), layout, now), now)
    return {name: value for name, (_kind, value) in limit_properties(writes, systemd, now)}


def unified(**files: str) -> dict[str, Any]:
    return {"unified": {name.replace("__", "."): value for name, value in files.items()}}


def test_limits_of_v2() -> None:
    assert told(
        V2,
        memory=Memory(limit=100, swap=150, reservation=50),
        cpu=Cpu(shares=1024, quota=50_000, period=100_000, cpus="0-2,9", mems="0"),
        pids=Pids(limit=7),
        block_io=BlockIo(weight=10),
    ) == {
        "MemoryMax": 100,
        "MemorySwapMax": 50,
        "MemoryLow": 50,
        "CPUWeight": 100,
        "CPUQuotaPerSecUSec": 500_000,
        "CPUQuotaPeriodUSec": 100_000,
        "AllowedCPUs": b"\x07\x02",
        "AllowedMemoryNodes": b"\x01",
        "TasksMax": 7,
        "IOWeight": 1,
    }


def test_limits_of_v1_have_the_properties_of_its_time() -> None:
    assert told(
        V1,
        memory=Memory(limit=100),
        cpu=Cpu(shares=1024, quota=50_000),
        pids=Pids(limit=-1),
        block_io=BlockIo(weight=10),
    ) == {
        "MemoryLimit": 100,
        "CPUShares": 1024,
        "CPUQuotaPerSecUSec": 500_000,
        "TasksMax": INFINITY,
        "BlockIOWeight": 10,
    }


def test_no_limit_is_infinity() -> None:
    found = told(V2, memory=Memory(limit=-1), cpu=Cpu(quota=-1), pids=Pids(limit=-1))
    assert found == {
        "MemoryMax": INFINITY,
        "MemorySwapMax": INFINITY,
        "CPUQuotaPerSecUSec": INFINITY,
        "CPUQuotaPeriodUSec": 100_000,
        "TasksMax": INFINITY,
    }


def test_raw_keys_win_over_the_fields_beside_them() -> None:
    found = told(
        V2,
        memory=Memory(limit=100),
        **unified(
            memory__max="200", memory__high="max", pids__max="0", cpu__max="5000 10000", memory__swap__max="1"
        ),
    )
    assert found["MemoryMax"] == 200
    assert found["MemoryHigh"] == INFINITY
    assert found["MemorySwapMax"] == 1
    assert found["TasksMax"] == 1, "systemd takes no 0"
    assert found["CPUQuotaPerSecUSec"] == 500_000


def test_what_systemd_does_not_know_is_left_to_the_file_system() -> None:
    assert told(V2, **unified(memory__oom__group="1", cpu__max__burst="5", cgroup__max__depth="3")) == {}
    assert told(V2, 243, cpu=Cpu(cpus="0", mems="0")) == {}
    assert told(V2, 241, cpu=Cpu(quota=1000, period=1000)) == {"CPUQuotaPerSecUSec": 1_000_000}
    assert told(V2, 251, cpu=Cpu(idle=1)) == {}
    assert told(V2, 252, cpu=Cpu(idle=1)) == {"CPUWeight": 0}
    assert told(V2, 252, cpu=Cpu(idle=0)) == {}


def test_a_weight_of_one_device_is_not_the_units() -> None:
    assert told(V2, **unified(io__weight="8:0 200")) == {}
    assert told(V2, **unified(io__weight="200")) == {"IOWeight": 200}


def test_quotas_are_rounded_up_to_what_systemd_can_say() -> None:
    writes = rounded(plan_writes(Resources(cpu=Cpu(quota=12_345, period=100_000)), V2))
    assert [write.value for write in writes] == ["13000 100000"]
    assert rounded(writes) == writes
    assert told(V2, cpu=Cpu(quota=12_345))["CPUQuotaPerSecUSec"] == 130_000
    (write,) = rounded(plan_writes(Resources(cpu=Cpu(quota=12_345)), V1), Current(cpu_period=50_000))
    assert write.value == "12500"


def test_a_new_period_keeps_the_quota_in_force() -> None:
    current = Current(cpu_quota=50_000, cpu_period=100_000)
    assert told(V2, current=current, cpu=Cpu(period=200_000)) == {
        "CPUQuotaPerSecUSec": 250_000,
        "CPUQuotaPeriodUSec": 200_000,
    }
    assert told(V1, current=current, cpu=Cpu(period=200_000))["CPUQuotaPerSecUSec"] == 250_000
    assert told(V1, current=current, cpu=Cpu(quota=20_000))["CPUQuotaPerSecUSec"] == 200_000


@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": "lots"},
        {"pids.max": "-5"},
        {"cpu.max": "1 2 3"},
        {"cpu.max": "x"},
        {"memory.max": "9" * 30},
    ],
)
def test_raw_values_that_are_no_numbers_are_refused(files: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="unified"):
        told(V2, unified=files)


@pytest.mark.parametrize(
    ("text", "mask"), [("0", b"\1"), ("8", b"\0\1"), ("0-3, 7,,", b"\x8f"), ("15-16", b"\x00\x80\x01")]
)
def test_lists_become_masks(text: str, mask: bytes) -> None:
    assert bit_mask("f", text) == mask


@pytest.mark.parametrize("text", ["", ",", "a", "3-1", "1-", "-1", "1-2-3", "999999999", "0-999999"])
def test_lists_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        bit_mask("f", text)


def test_scope_is_delegated_and_has_its_first_process() -> None:
    found = dict(unit_properties(Unit("a-b.slice", "p-c.scope", "c"), True, (42,)))
    assert found["Slice"] == ("s", "a-b.slice")
    assert found["Delegate"] == ("b", True)
    assert found["PIDs"] == ("au", [42])
    assert found["DefaultDependencies"] == ("b", False)
    assert found["IOAccounting"] == ("b", True)
    assert "Wants" not in found


def test_slice_has_a_parent_and_no_process() -> None:
    found = dict(unit_properties(Unit("a.slice", "a-b.slice", "a-b.slice"), False, ()))
    assert found["Wants"] == ("as", ["a.slice"])
    assert found["BlockIOAccounting"] == ("b", True)
    assert not {"Slice", "Delegate", "PIDs"} & set(found)


def test_killing_as_a_group_is_said_when_the_unit_starts() -> None:
    group = (Write("unified", "memory.oom.group", "1", "f"),)
    assert oom_policy(group, 253) == [("OOMPolicy", ("s", "kill"))]
    assert oom_policy(group, 252) == []
    assert oom_policy((), 253) == []


def test_devices_are_listed_by_number() -> None:
    policy = DevicePolicy(
        False,
        ((DeviceKey("c", 1, 3), "rwm"), (DeviceKey("c", 136, None), "rw"), (DeviceKey("b", None, None), "m")),
    )
    assert device_properties(policy, 252) == [
        ("DevicePolicy", ("s", "strict")),
        ("DeviceAllow", ("a(ss)", [])),
        ("DeviceAllow", ("a(ss)", [("/dev/char/1:3", "rwm"), ("char-136", "rw"), ("block-*", "m")])),
    ]


def test_what_systemd_cannot_say_of_devices_is_allowed_by_it_and_left_to_us() -> None:
    odd = DevicePolicy(False, ((DeviceKey("c", None, 7), "r"),))
    assert device_properties(odd, 252)[2] == ("DeviceAllow", ("a(ss)", [("char-*", "r")]))
    old = DevicePolicy(False, ((DeviceKey("b", 8, 0), "r"),))
    assert device_properties(old, 239)[2] == ("DeviceAllow", ("a(ss)", [("block-*", "r")]))
    allowed = DevicePolicy(True, ((DeviceKey("c", 1, 3), "r"),))
    assert device_properties(allowed, 252) == [
        ("DeviceAllow", ("a(ss)", [])),
        ("DevicePolicy", ("s", "auto")),
    ]


def test_default_devices_are_among_them() -> None:
    (_policy, _reset, (_name, (_kind, allowed))) = device_properties(plan_devices(()), 252)
    assert isinstance(allowed, list)
    assert ("/dev/char/1:3", "rwm") in allowed
