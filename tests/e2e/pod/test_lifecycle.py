"""A pod from run to remove, as a kubelet asks for it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Node
from tests.harness.crictl import Crictl, CrictlError
from tests.harness.instances import hierarchies
from tests.harness.waiting import eventually


def environ(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")


def status_field(pid: int, name: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise KeyError(name)


def namespace(pid: int, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def test_two_containers_of_a_pod_run_and_are_listed(crictl: Crictl, pod: str) -> None:
    first = crictl.run_container(pod, ["sleep", "1000"], "first")
    second = crictl.run_container(pod, ["sleep", "1000"], "second")
    listed = crictl.json("ps")["containers"]
    assert {entry["id"] for entry in listed} == {first, second}
    assert {entry["state"] for entry in listed} == {"CONTAINER_RUNNING"}


def test_containers_of_a_pod_share_its_namespaces_and_no_others(crictl: Crictl, pod: str) -> None:
    first = crictl.pid(crictl.run_container(pod, ["sleep", "1000"], "first"))
    second = crictl.pid(crictl.run_container(pod, ["sleep", "1000"], "second"))
    for kind in ("net", "ipc", "uts"):
        assert namespace(first, kind) == namespace(second, kind) != namespace(os.getpid(), kind)
    for kind in ("mnt", "pid"):
        assert len({namespace(first, kind), namespace(second, kind), namespace(os.getpid(), kind)}) == 3


def test_a_pod_can_share_its_pid_namespace(crictl: Crictl, handler: str) -> None:
    shared: dict[str, Any] = {"security_context": {"namespace_options": {"pid": 0}}}
    pod = crictl.run_pod(handler, **shared)
    first = crictl.run_container(pod, ["sleep", "1234"], "first", linux=shared)
    second = crictl.run_container(pod, ["sleep", "1000"], "second", linux=shared)
    assert namespace(crictl.pid(first), "pid") == namespace(crictl.pid(second), "pid")
    assert "sleep 1234" in crictl.execute(second, "ps").stdout


def test_a_pod_has_its_own_network_and_hostname(crictl: Crictl, pod: str, container: str) -> None:
    address = crictl.json("inspectp", pod)["status"]["network"]["ip"]
    assert address in crictl.execute(container, "ip", "address").stdout
    assert crictl.execute(container, "hostname").stdout.strip().startswith("pod-")


@pytest.mark.pods_since("2.3", "an earlier one ends by a nil pointer")
def test_a_pod_in_the_host_network_has_the_hosts_links(crictl: Crictl, handler: str) -> None:
    on_host: dict[str, Any] = {"security_context": {"namespace_options": {"network": 2}}}
    pod = crictl.run_pod(handler, **on_host)
    container = crictl.run_container(pod, ["sleep", "1000"], linux=on_host)
    assert namespace(crictl.pid(container), "net") == namespace(os.getpid(), "net")


def test_logs_keep_both_streams_apart_and_in_order(crictl: Crictl, pod: str) -> None:
    script = "echo one; echo two >&2; echo -n three"
    container = crictl.run_container(pod, ["sh", "-c", script])
    crictl.wait_for(container, "CONTAINER_EXITED")
    lines = Path(crictl.status(container)["logPath"]).read_text(encoding="utf-8").splitlines()
    tagged = [line.split(" ", 1)[1] for line in lines]
    assert sorted(tagged) == ["stderr F two", "stdout F one", "stdout P three"]
    logs = crictl.run("logs", container)
    assert logs.stdout == "one\nthree"
    assert logs.stderr == "two\n"


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_the_exit_code_of_a_container_is_reported(crictl: Crictl, pod: str, code: int) -> None:
    container = crictl.run_container(pod, ["sh", "-c", f"exit {code}"])
    status = crictl.wait_for(container, "CONTAINER_EXITED")
    assert status["exitCode"] == code
    assert status["reason"] == ("Completed" if code == 0 else "Error")


def test_a_container_killed_by_a_signal_reports_128_and_the_signal(crictl: Crictl, pod: str) -> None:
    container = crictl.run_container(pod, ["sleep", "1000"])
    os.kill(crictl.pid(container), signal.SIGKILL)
    assert crictl.wait_for(container, "CONTAINER_EXITED")["exitCode"] == 128 + signal.SIGKILL


def _trapping(crictl: Crictl, pod: str, action: str) -> str:
    """A container that has set a trap for SIGTERM."""
    script = f"trap '{action}' TERM; echo set; while :; do sleep 0.1; done"
    container = crictl.run_container(pod, ["sh", "-c", script])
    eventually(lambda: crictl.run("logs", container).stdout == "set\n", "the trap")
    return container


def test_stop_lets_a_container_end_by_itself(crictl: Crictl, pod: str) -> None:
    container = _trapping(crictl, pod, "exit 3")
    crictl.run("stop", "--timeout", "10", container)
    assert crictl.status(container)["exitCode"] == 3


def test_stop_kills_a_container_that_does_not_listen(crictl: Crictl, pod: str) -> None:
    container = _trapping(crictl, pod, "")
    crictl.run("stop", "--timeout", "1", container)
    assert crictl.status(container)["exitCode"] == 137


def test_stop_and_remove_succeed_twice(crictl: Crictl, pod: str, container: str) -> None:
    crictl.run("stop", "--timeout", "0", container)
    crictl.run("stop", "--timeout", "0", container)
    crictl.run("rm", container)
    crictl.stop_pod(pod)
    crictl.stop_pod(pod)
    crictl.remove_pod(pod)
    assert crictl.run("pods", "-q").stdout == ""


def test_a_container_that_ended_can_be_followed_by_another_of_its_name(crictl: Crictl, pod: str) -> None:
    first = crictl.run_container(pod, ["true"])
    crictl.wait_for(first, "CONTAINER_EXITED")
    second = crictl.run_container(pod, ["sleep", "1000"])
    assert crictl.status(second)["state"] == "CONTAINER_RUNNING"


def test_environment_arguments_and_directory_are_the_configurations(crictl: Crictl, pod: str) -> None:
    container = crictl.run_container(
        pod, ["sleep"], args=["1000"], envs=[{"key": "COLOUR", "value": "green = blue"}], working_dir="/tmp"
    )
    pid = crictl.pid(container)
    assert "COLOUR=green = blue" in environ(pid)
    assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\0001000\0"
    assert os.readlink(f"/proc/{pid}/cwd") == "/tmp"


def test_a_user_has_its_id_its_groups_and_no_capabilities(crictl: Crictl, pod: str) -> None:
    context = {
        "run_as_user": {"value": 1000},
        "run_as_group": {"value": 1000},
        "supplemental_groups": [29, 4000],
    }
    container = crictl.run_container(pod, ["sleep", "1000"], linux={"security_context": context})
    pid = crictl.pid(container)
    assert status_field(pid, "Uid").split() == ["1000"] * 4
    assert set(status_field(pid, "Groups").split()) == {"1000", "29", "4000"}
    assert int(status_field(pid, "CapEff"), 16) == 0
    assert int(status_field(pid, "CapInh"), 16) == 0


def test_a_user_can_be_named(crictl: Crictl, pod: str) -> None:
    container = crictl.run_container(
        pod, ["sleep", "1000"], linux={"security_context": {"run_as_username": "alice"}}
    )
    assert status_field(crictl.pid(container), "Uid").split() == ["1000"] * 4


def test_privileges_of_a_default_container_are_confined(crictl: Crictl, pod: str) -> None:
    context = {"no_new_privs": True, "seccomp": {"profile_type": 0}}
    container = crictl.run_container(pod, ["sleep", "1000"], linux={"security_context": context})
    pid = crictl.pid(container)
    assert status_field(pid, "NoNewPrivs") == "1"
    assert status_field(pid, "Seccomp") == "2"
    # CAP_SYS_ADMIN is bit 21.
    assert int(status_field(pid, "CapBnd"), 16) & (1 << 21) == 0
    assert crictl.execute(container, "cat", "/proc/keys", check=False).stdout.strip() == ""
    assert (
        crictl.execute(container, "sh", "-c", "echo 1 > /proc/sys/kernel/panic", check=False).exit_code != 0
    )


def test_a_read_only_root_cannot_be_written(crictl: Crictl, pod: str) -> None:
    container = crictl.run_container(
        pod, ["sleep", "1000"], linux={"security_context": {"readonly_rootfs": True}}
    )
    refused = crictl.execute(container, "touch", "/file", check=False)
    assert "Read-only file system" in refused.stdout + refused.stderr


def test_mounts_appear_where_asked_and_read_only_ones_are(crictl: Crictl, pod: str, tmp_path: Path) -> None:
    (tmp_path / "greeting").write_text("hello\n", encoding="ascii")
    mounts = [
        {"container_path": "/given", "host_path": str(tmp_path), "readonly": True},
        {"container_path": "/given-too", "host_path": str(tmp_path)},
    ]
    container = crictl.run_container(pod, ["sleep", "1000"], mounts=mounts)
    assert crictl.execute(container, "cat", "/given/greeting").stdout.startswith("hello\n")
    assert crictl.execute(container, "touch", "/given/other", check=False).exit_code != 0
    crictl.execute(container, "touch", "/given-too/other")
    assert (tmp_path / "other").exists()


def test_limits_reach_the_cgroup_and_can_be_changed(node: Node, crictl: Crictl, pod: str) -> None:
    resources = {
        "memory_limit_in_bytes": 64 << 20,
        "cpu_period": 100000,
        "cpu_quota": 50000,
        "cpu_shares": 512,
    }
    container = crictl.run_container(pod, ["sleep", "1000"], linux={"resources": resources})

    def limit(*names: str) -> str:
        for hierarchy in hierarchies():
            for name in names:
                file = hierarchy / node.containerd.instance.cgroup_parent.lstrip("/") / container / name
                if file.exists():
                    return file.read_text(encoding="ascii").strip()
        raise FileNotFoundError(names)

    assert limit("memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert limit("cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    crictl.run("update", "--memory", str(96 << 20), container)
    assert limit("memory.limit_in_bytes", "memory.max") == str(96 << 20)


def test_a_container_over_its_memory_limit_is_reported_as_oom_killed(crictl: Crictl, pod: str) -> None:
    container = crictl.run_container(
        pod,
        ["sh", "-c", "sleep 0.3; tail -c 1000m /dev/zero > /dev/null"],
        linux={"resources": {"memory_limit_in_bytes": 16 << 20}},
    )
    status = crictl.wait_for(container, "CONTAINER_EXITED", 20)
    assert status["reason"] == "OOMKilled"
    assert status["exitCode"] == 137


def test_stats_count_memory_and_cpu(crictl: Crictl, container: str) -> None:
    crictl.execute(container, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
    (stats,) = crictl.json("stats", container)["stats"]
    assert int(stats["memory"]["workingSetBytes"]["value"]) > 0
    assert int(stats["cpu"]["usageCoreNanoSeconds"]["value"]) > 1_000_000


def test_a_container_with_a_terminal_has_one(crictl: Crictl, pod: str) -> None:
    container = crictl.run_container(
        pod, ["sh", "-c", "tty; echo to-stderr >&2; sleep 1000"], tty=True, stdin=True
    )
    deadline = time.monotonic() + 60
    while "to-stderr" not in (logs := crictl.run("logs", container).stdout) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "/dev/pts/0" in logs or "/dev/console" in logs


def test_sysctls_of_a_pod_are_set_in_its_namespaces(crictl: Crictl, handler: str) -> None:
    pod = crictl.run_pod(
        handler, sysctls={"net.ipv4.ip_local_port_range": "2000 3000", "kernel.shm_rmid_forced": "1"}
    )
    container = crictl.run_container(pod, ["sleep", "1000"])
    shown = crictl.execute(
        container, "cat", "/proc/sys/net/ipv4/ip_local_port_range", "/proc/sys/kernel/shm_rmid_forced"
    )
    assert shown.stdout.split() == ["2000", "3000", "1"]


def test_the_shim_says_which_pod_it_holds(node: Node, pod: str) -> None:
    (shim,) = node.containerd.shim_pids(pod)
    arguments = Path(f"/proc/{shim}/cmdline").read_bytes().decode().split("\0")
    assert arguments[arguments.index("-namespace") + 1] == "k8s.io"
    assert arguments[arguments.index("-id") + 1] == pod


def test_one_shim_holds_all_containers_of_a_pod(node: Node, crictl: Crictl, pod: str) -> None:
    crictl.run_container(pod, ["sleep", "1000"], "first")
    crictl.run_container(pod, ["sleep", "1000"], "second")
    shims = [
        found
        for found in node.containerd.instance.processes()
        if b"-id\0" in Path(f"/proc/{found.pid}/cmdline").read_bytes()
    ]
    assert len(shims) == 1


def test_an_unknown_handler_is_refused(crictl: Crictl) -> None:
    with pytest.raises(CrictlError, match="nobody"):
        crictl.run_pod("nobody")
    assert json.loads(crictl.run("pods", "-o", "json").stdout)["items"] == []
