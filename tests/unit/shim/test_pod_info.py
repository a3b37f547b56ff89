"""What is told of a pod without a pause container. The CRI's own messages are the oracle for its configuration."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import json_format

from cri.api import api_pb2
from runtime.spec.load import load_spec
from runtime.spec.model import IdMapping
from shim.api import message as kinds
from shim.api.codec import decode, encode
from shim.api.message import Message
from shim.api.options import Options
from shim.api.pod_config import (
    LinuxContainerResources,
    LinuxPodSandboxConfig,
    PodSandboxConfig,
    PodSandboxMetadata,
)
from shim.pod_info import info_of, plain, spec_of
from shim.pod_plan import PodPlan
from shim.sandbox import ENDED, READY

CONFIG = PodSandboxConfig(
    metadata=PodSandboxMetadata("web", "u-1", "shop", 2),
    log_directory="/var/log/pods/web",
    labels={"app": "web"},
    linux=LinuxPodSandboxConfig("/pods", resources=LinuxContainerResources(cpu_shares=512)),
)


def filled(of: type[Message]) -> Message:
    """A message with something in each field."""
    values: dict[str, Any] = {}
    for number, field in enumerate(of.FIELDS, 1):
        values[field.name] = {
            kinds.STRING: f"text {number}",
            kinds.STRING_MAP: {"key": f"value {number}"},
            kinds.STRINGS: ("a", "b"),
            kinds.INT64S: (number, -(1 << 40)),
            kinds.BOOL: True,
            kinds.ENUM: 1,
        }.get(field.kind, number)
        if field.kind == kinds.MESSAGE:
            values[field.name] = filled(field.of)
        elif field.kind == kinds.MESSAGES:
            values[field.name] = (filled(field.of), filled(field.of))
    return of(**values)


def with_numbers_as_text(value: Any) -> Any:
    """As protobuf's JSON has those of 64 bits, which Go's encoding/json has not."""
    if isinstance(value, dict):
        return {key: with_numbers_as_text(each) for key, each in value.items()}
    if isinstance(value, list):
        return [with_numbers_as_text(each) for each in value]
    return str(value) if type(value) is int else value


def test_a_configuration_is_shown_whole_and_by_the_protocols_names() -> None:
    config = filled(PodSandboxConfig)
    theirs = json_format.MessageToDict(
        api_pb2.PodSandboxConfig.FromString(encode(config)),
        preserving_proto_field_name=True,
        use_integers_for_enums=True,
    )
    assert with_numbers_as_text(plain(config)) == with_numbers_as_text(theirs)
    assert decode(PodSandboxConfig, encode(config)) == config


def test_what_is_not_said_is_not_shown() -> None:
    assert plain(PodSandboxConfig(hostname="web", linux=LinuxPodSandboxConfig())) == {
        "hostname": "web",
        "linux": {},
    }


def test_the_spec_of_a_pod_is_one_and_names_its_network() -> None:
    plan = PodPlan(
        "p1", ("network", "uts", "ipc"), "/run/netns/p1", "web", cgroup_parent="/pods", config=CONFIG
    )
    spec = spec_of(plan)
    assert spec["linux"] == {
        "namespaces": [{"type": "network", "path": "/run/netns/p1"}, {"type": "uts"}, {"type": "ipc"}]
    }
    assert spec["hostname"] == "web"
    assert spec["annotations"] == {
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-id": "p1",
        "io.kubernetes.cri.sandbox-name": "web",
        "io.kubernetes.cri.sandbox-namespace": "shop",
        "io.kubernetes.cri.sandbox-uid": "u-1",
        "io.kubernetes.cri.sandbox-log-directory": "/var/log/pods/web",
        "io.kubernetes.cri.sandbox-cpu-period": "0",
        "io.kubernetes.cri.sandbox-cpu-quota": "0",
        "io.kubernetes.cri.sandbox-cpu-shares": "512",
        "io.kubernetes.cri.sandbox-memory": "0",
    }
    complete = {**spec, "process": {"args": ["x"], "cwd": "/"}, "root": {"path": "root"}}
    assert load_spec(json.dumps(complete).encode()).linux.namespaces[0].path == "/run/netns/p1"


def test_a_landlord_has_a_cgroup_and_a_user_namespace_its_ids() -> None:
    ids = (IdMapping(0, 200_000, 65_536),)
    plan = PodPlan("p1", ("ipc", "pid", "user"), cgroup_parent="/pods", uid_mappings=ids, gid_mappings=ids)
    linux = spec_of(plan)["linux"]
    assert linux["cgroupsPath"] == "/pods/p1"
    assert linux["uidMappings"] == [{"containerID": 0, "hostID": 200_000, "size": 65_536}]
    assert linux["gidMappings"] == linux["uidMappings"]


def told(status: str, netns_path: str = "") -> Any:
    plan = PodPlan("p1", ("network",), netns_path, config=CONFIG)
    sandbox: Any = SimpleNamespace(
        plan=plan,
        pid=7 if status == READY else 0,
        status=status,
        landlord=None,
        namespaces=dict,
        files=SimpleNamespace(directory="/run/p1"),
    )
    return {key: json.loads(text) for key, text in info_of(sandbox, Options(systemd_cgroup=True)).items()}


def test_crictl_is_told_what_there_is() -> None:
    info = told(READY)["info"]
    assert (info["pid"], info["processStatus"], info["netNamespaceClosed"]) == (7, "running", False)
    assert info["config"]["metadata"] == {"name": "web", "uid": "u-1", "namespace": "shop", "attempt": 2}
    assert info["config"]["linux"]["resources"] == {"cpu_shares": 512}
    assert info["runtimeSpec"]["annotations"]["io.kubernetes.cri.sandbox-name"] == "web"
    assert info["runtimeOptions"] == {"systemd_cgroup": True}
    assert info["runtimeType"] == "io.containerd.manor.v2"
    assert told(ENDED)["info"]["processStatus"] == "ended"


@pytest.mark.parametrize("there", ["namespace", "file", "nothing"])
def test_a_network_namespace_that_is_gone_is_said_to_be(tmp_path: Path, there: str) -> None:
    path = tmp_path / "netns"
    if there == "namespace":
        path.symlink_to(f"/proc/{os.getpid()}/ns/net")
    elif there == "file":
        path.touch()
    assert told(READY, str(path))["info"]["netNamespaceClosed"] == (there != "namespace")
