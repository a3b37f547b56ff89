"""Pods that containerd 2 leaves to their shim (`sandboxer = "shim"`), by crictl, and what outlives whom."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Node
from tests.e2e.sandbox.conftest import namespace
from tests.harness.crictl import Crictl, CrictlError
from tests.harness.waiting import eventually

pytestmark = pytest.mark.versions("2.3")

SHARED_PIDS: dict[str, Any] = {"security_context": {"namespace_options": {"pid": 0}}}


def state_of(crictl: Crictl, pod: str) -> str:
    """As the list has it, which containerd keeps from what it was told."""
    (listed,) = crictl.json("pods", "--id", pod)["items"]
    state: str = listed["state"]
    return state


def test_a_pod_lives_with_no_process_but_its_containers(
    node: Node, crictl: Crictl, pod: str, container: str
) -> None:
    init = crictl.pid(container)
    (shim,) = node.containerd.shim_pids(pod)
    assert crictl.json("inspectp", pod)["info"]["pid"] == shim
    members = {
        int(pid)
        for directory in node.containerd.instance.cgroups()
        if (directory / "cgroup.procs").exists()
        for pid in (directory / "cgroup.procs").read_text().split()
    }
    assert members == {init}
    assert crictl.execute(container, "hostname").stdout.startswith("pod-")
    assert namespace(init, "net") != namespace("self", "net")
    crictl.stop_pod(pod)
    assert state_of(crictl, pod) == "SANDBOX_NOTREADY"
    assert crictl.json("inspectp", pod)["status"]["state"] == "SANDBOX_NOTREADY"
    crictl.remove_pod(pod)
    eventually(lambda: not Path(f"/proc/{shim}").exists())


def test_a_refused_pod_leaves_nothing(crictl: Crictl, handler: str) -> None:
    for sysctls in ({"vm.swappiness": "1"}, {"net.ipv4.ip_forward": "many"}):  # by create, and by start
        with pytest.raises(CrictlError, match="sysctl"):
            crictl.run_pod(handler, sysctls=sysctls)
    assert crictl.json("pods")["items"] == []


@pytest.mark.pods_since("2.3", "an earlier one ends by a nil pointer")
def test_a_host_name_in_the_nodes_network_is_refused(crictl: Crictl, handler: str) -> None:
    """It would be the node's, for all that see it; runc refuses it as well."""
    path = crictl.pod_file(security_context={"namespace_options": {"network": 2}})
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "hostname": "mine"}), encoding="utf-8")
    with pytest.raises(CrictlError, match="host name is to be 'mine'"):
        crictl.run("runp", "--runtime", handler, str(path))
    assert crictl.json("pods")["items"] == []


def test_inspectp_shows_how_the_pod_was_asked_for_and_where_its_network_is(
    crictl: Crictl, handler: str
) -> None:
    pod = crictl.run_pod(handler, {"who": "me"}, **SHARED_PIDS)
    info = crictl.json("inspectp", pod)["info"]
    landlord = info["pid"]
    (network,) = (each["path"] for each in info["runtimeSpec"]["linux"]["namespaces"] if "path" in each)
    assert os.stat(network).st_ino == os.stat(f"/proc/{landlord}/ns/net").st_ino
    assert (info["processStatus"], info["netNamespaceClosed"]) == ("running", False)
    assert info["config"]["annotations"] == {"who": "me"}
    assert info["config"]["hostname"] == info["config"]["metadata"]["name"] == info["runtimeSpec"]["hostname"]
    assert info["runtimeSpec"]["annotations"]["io.kubernetes.cri.sandbox-id"] == pod
    cgroup = Path(info["runtimeSpec"]["linux"]["cgroupsPath"])
    assert f"{cgroup}\n" in Path(f"/proc/{landlord}/cgroup").read_text(encoding="ascii")
    crictl.stop_pod(pod)
    assert crictl.json("inspectp", pod)["info"]["netNamespaceClosed"]


@pytest.mark.pods_since("2.1", "an earlier one does not find them when it starts")
def test_a_pod_outlives_its_containerd_and_is_waited_for_again(
    node: Node, crictl: Crictl, handler: str, pod: str, container: str
) -> None:
    shared = crictl.run_pod(handler, **SHARED_PIDS)
    init = crictl.pid(container)
    node.containerd.restart()
    assert {state_of(crictl, each) for each in (pod, shared)} == {"SANDBOX_READY"}
    assert crictl.execute(container, "echo", "still here").stdout.strip() == "still here"
    second = crictl.pid(crictl.run_container(pod, ["sleep", "1000"], "second"))
    assert namespace(second, "net") == namespace(init, "net")
    os.kill(int(crictl.json("inspectp", shared)["info"]["pid"]), signal.SIGKILL)
    eventually(lambda: state_of(crictl, shared) == "SANDBOX_NOTREADY")
    assert state_of(crictl, pod) == "SANDBOX_READY"


def test_a_killed_shim_is_the_end_of_its_pod_and_of_no_other(
    node: Node, crictl: Crictl, handler: str, pod: str, container: str
) -> None:
    other = crictl.run_pod(handler)
    others = crictl.run_container(other, ["sleep", "1000"])
    init = crictl.pid(container)
    (shim,) = node.containerd.shim_pids(pod)
    os.kill(shim, signal.SIGKILL)
    assert crictl.wait_for(container, "CONTAINER_EXITED", 30)["exitCode"] != 0
    eventually(lambda: state_of(crictl, pod) == "SANDBOX_NOTREADY")
    eventually(lambda: not Path(f"/proc/{init}").exists())
    assert state_of(crictl, other) == "SANDBOX_READY"
    assert crictl.execute(others, "echo", "fine").stdout.strip() == "fine"


def test_a_container_can_join_the_pids_of_another(crictl: Crictl, pod: str, container: str) -> None:
    """As `kubectl debug --target` has it: a path that names that container's process, and not the pod's."""
    target = {"linux": {"security_context": {"namespace_options": {"pid": 3, "target_id": container}}}}
    debugger = crictl.run_container(pod, ["sleep", "1001"], "debugger", **target)
    assert namespace(crictl.pid(debugger), "pid") == namespace(crictl.pid(container), "pid")
    assert "sleep 1000" in crictl.execute(debugger, "ps").stdout


def test_a_pod_with_a_user_namespace_of_its_own(crictl: Crictl, handler: str) -> None:
    ids = [{"host_id": 200_000, "container_id": 0, "length": 65_536}]
    modes = {"network": 0, "pid": 0, "ipc": 0, "userns_options": {"mode": 0, "uids": ids, "gids": ids}}
    linux: dict[str, Any] = {"security_context": {"namespace_options": modes}}
    pod = crictl.run_pod(handler, **linux)
    container = crictl.run_container(pod, ["sleep", "1000"], linux=linux)
    landlord = crictl.json("inspectp", pod)["info"]["pid"]
    assert (
        namespace(crictl.pid(container), "user") == namespace(landlord, "user") != namespace("self", "user")
    )
    assert (
        crictl.execute(container, "stat", "-c", "%u:%g", "/", "/etc/hostname").stdout.split() == ["0:0"] * 2
    )
    crictl.execute(container, "touch", "/dev/shm/mine")


@pytest.mark.pods_since("2.3", "an earlier one ends by a nil pointer")
def test_a_privileged_pod_of_the_nodes_namespaces(crictl: Crictl, handler: str) -> None:
    modes = {"namespace_options": {"network": 2, "pid": 2, "ipc": 2}}
    pod = crictl.run_pod(handler, security_context=modes)
    init = crictl.pid(crictl.run_container(pod, ["sleep", "1000"], linux={"security_context": modes}))
    for kind in ("net", "uts", "ipc", "pid"):
        assert namespace(init, kind) == namespace("self", kind)
