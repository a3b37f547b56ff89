"""`explain`: the plan of a config, step by step, as text and as data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime import faults
from runtime.cgroups.layout import Hierarchy, Layout
from runtime.cli.explain import Act, acts_of, as_json, as_text, make_plans, sentence
from runtime.container import Host
from runtime.errors import ConfigError
from runtime.linux.fds import OwnedFd
from runtime.spec.load import load_spec
from runtime.stages.plan import STAGED
from tests.harness.bundles import default_config

V1 = tuple(Hierarchy(name, (name,), f"/cg/{name}", 1) for name in ("memory", "pids", "devices", "freezer"))
LEGACY = Layout("legacy", V1)
CONTROLLERS = ("cpu", "memory", "pids")
UNIFIED = Layout("unified", (Hierarchy("unified", CONTROLLERS, "/cg", 2),))


def plan(change: Any = None, layout: Layout = LEGACY, as_root: bool = True) -> list[Act]:
    config = default_config(["true"], "/pods/c1")
    if change is not None:
        change(config)
    host = Host("/run/manor-oci", layout, "", OwnedFd(-1))
    return acts_of(make_plans(host, "c1", "/bundle", load_spec(json.dumps(config).encode())))


def sentences(acts: list[Act], step: str) -> list[str]:
    return [sentence(detail) for act in acts if act.step == step for detail in act.details]


def test_every_step_is_one_that_can_be_made_to_fail() -> None:
    assert all(act.step in faults.STEPS[act.stage] for act in plan())


def test_cgroup_writes_have_file_value_and_reason() -> None:
    acts = plan(lambda config: config["linux"]["resources"].update(memory={"limit": 4096}, pids={"limit": 7}))
    said = sentences(acts, "make cgroup")
    assert said[:4] == [f"make /cg/{name}/pods/c1" for name in ("memory", "pids", "devices", "freezer")]
    assert (
        said[4] == "write 4096 to /cg/memory/pods/c1/memory.limit_in_bytes for linux.resources.memory.limit"
    )
    (limited,) = sentences(acts, "limit processes")
    assert limited == "write 7 to /cg/pids/pods/c1/pids.max for linux.resources.pids.limit"
    assert "write a to /cg/devices/pods/c1/devices.deny for linux.resources.devices" in said


def test_on_a_unified_machine_devices_are_a_program() -> None:
    (said,) = [each for each in sentences(plan(layout=UNIFIED), "make cgroup") if "device program" in each]
    assert said.startswith(
        "attach to /cg/pods/c1 a device program that allows only c *:* m b *:* m c 1:3 rwm"
    )


def test_a_path_for_systemd_names_its_unit() -> None:
    acts = plan(lambda config: config["linux"].update(cgroupsPath="pods.slice:manor:c1"), UNIFIED)
    assert sentences(acts, "make cgroup")[0] == "have systemd make manor-c1.scope in pods.slice"


def test_mounts_come_in_order_with_options_and_flags() -> None:
    def change(config: dict[str, Any]) -> None:
        config["mounts"].append({"destination": "/d", "source": "/s", "options": ["rbind", "ro", "rslave"]})
        config["mounts"].append(
            {"destination": "/t", "type": "tmpfs", "source": "x", "options": ["ro", "size=1m"]}
        )

    said = sentences(plan(change), "mount root file system")
    assert said[:3] == [
        "make / rslave",
        "take the root /bundle/rootfs",
        "mount proc on /proc source proc flags nosuid nodev noexec for mounts[0]",
    ]
    assert "bind /s on /d recursively flags ro propagation rslave for mounts[5]" in said
    assert "mount tmpfs on /t source x options size=1m read-only in the end for mounts[6]" in said
    assert "make device /dev/null of type c number 1:3 mode 0666 uid 0 gid 0" in said
    assert "make read-only /t" in sentences(plan(change), "mask and protect paths")


def test_credentials_are_all_said() -> None:
    def change(config: dict[str, Any]) -> None:
        config["process"]["user"] = {"uid": 5, "gid": 6, "additionalGids": [7], "umask": 0o77}
        config["process"]["capabilities"] = {"bounding": ["CAP_CHOWN", "CAP_KILL"]}

    said = sentences(plan(change), "set credentials")
    assert said[:3] == ["uid 5 gid 6 umask 0077", "groups 7", "bounding capabilities CAP_CHOWN CAP_KILL"]
    assert "ambient capabilities none" in said


def test_namespaces_limits_and_maps_stand_with_the_clone() -> None:
    def change(config: dict[str, Any]) -> None:
        ids = [{"containerID": 0, "hostID": 1000, "size": 10}]
        config["linux"]["namespaces"].append({"type": "user"})
        config["linux"].update(uidMappings=ids, gidMappings=ids)
        config["process"]["oomScoreAdj"] = 100

    said = sentences(plan(change), "clone")
    assert "new namespaces user mount pid network ipc uts cgroup" in said
    assert any(each.startswith("uid map 0 1000 10 gid map 0 1000 10") for each in said)
    assert "set RLIMIT_NOFILE soft 1024 hard 1024" in said
    assert "set oom_score_adj to 100" in said


def test_init_of_a_shared_pid_namespace_is_born_when_its_world_stands() -> None:
    def change(config: dict[str, Any]) -> None:
        kinds = [each for each in config["linux"]["namespaces"] if each["type"] != "pid"]
        config["linux"]["namespaces"] = [*kinds, {"type": "pid", "path": "/proc/1/ns/pid"}]

    acts = plan(change)
    steps = [act.step for act in acts]
    assert sentences(acts, "clone")[0] == f"in the shape {STAGED}"
    assert steps.index("pivot into") < steps.index("join pid namespace") < steps.index("clone init")


def test_text_has_a_line_for_each_step_and_quotes_what_is_not_printable() -> None:
    acts = [Act("init", "look up", ({"": "a\nb"},)), Act("main", "ask to start")]
    assert as_text(acts) == "init  look up\n          'a\\nb'\nmain  ask to start\n"


def test_json_has_the_same_in_the_same_order() -> None:
    host = Host("/run/manor-oci", LEGACY, "", OwnedFd(-1))
    spec = load_spec(json.dumps(default_config(["true"], "/pods/c1")).encode())
    plans = make_plans(host, "c1", "/bundle", spec)
    acts = acts_of(plans)
    said = as_json(plans, acts)
    assert [(each["stage"], each["step"]) for each in said["steps"]] == [
        (act.stage, act.step) for act in acts
    ]
    assert (said["id"], said["bundle"]) == ("c1", "/bundle")
    json.dumps(said)


def test_what_create_would_refuse_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mounts\[0\]\.destination"):
        plan(lambda config: config["mounts"][0].update(destination="/proc/x"))
