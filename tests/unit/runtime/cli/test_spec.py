"""The config to begin with is one that we take, and differs from runc's only where that is meant."""

from __future__ import annotations

from runtime.cli.output import compact
from runtime.cli.spec import example, rootless
from runtime.spec.load import load_spec


def test_both_are_valid() -> None:
    spec = load_spec(compact(example()).encode())
    assert spec.linux.resources.devices[0].allow is False
    assert spec.process.no_new_privileges
    less = load_spec(compact(rootless(example(), 1000, 1001)).encode())
    assert [(each.host_id, each.size) for each in less.linux.uid_mappings] == [(1000, 1)]
    assert [(each.host_id, each.size) for each in less.linux.gid_mappings] == [(1001, 1)]


def test_it_masks_more_than_runc() -> None:
    runc = (
        "/proc/acpi /proc/asound /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list /proc/timer_stats "
        "/proc/sched_debug /sys/firmware /proc/scsi"
    ).split()
    more = {"/proc/interrupts", "/sys/devices/virtual/powercap"}
    masked = set(example()["linux"]["maskedPaths"])
    assert set(runc) | more <= masked
    assert all(path.endswith("/thermal_throttle") for path in masked - set(runc) - more)


def test_the_one_for_root_is_not_changed_by_making_the_other() -> None:
    config = example()
    before = compact(config)
    rootless(config, 1, 1)
    assert compact(config) == before


def test_a_users_has_no_ids_in_its_mounts_and_no_limits() -> None:
    config = rootless(example(), 1000, 1000)
    assert "resources" not in config["linux"]
    assert not [
        word
        for each in config["mounts"]
        for word in each.get("options", ())
        if word.startswith(("gid=", "uid="))
    ]
    assert {"type": "user"} in config["linux"]["namespaces"]
    assert {"type": "network"} not in config["linux"]["namespaces"]
    assert list(config["linux"]) == [
        "uidMappings",
        "gidMappings",
        "namespaces",
        "maskedPaths",
        "readonlyPaths",
    ]
