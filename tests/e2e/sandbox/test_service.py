"""The Sandbox service as containerd calls it, at the shim's own door: what is made, refused, and given back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any as Json

import pytest

from manor import leaks
from shim.api import metrics_v1, metrics_v2, sandbox, task
from shim.api.codec import decode, encode
from shim.api.pod_config import NODE, DnsConfig, IdMapping, PodSandboxConfig, UserNamespace
from shim.api.pod_config import POD as POD_MODE
from shim.api.types import Any
from shim.ttrpc import status
from shim.ttrpc.client import Client
from shim.ttrpc.status import RpcError
from tests.e2e.leaks.conftest import alive
from tests.e2e.sandbox.conftest import POD, PodDoor, namespace
from tests.e2e.shim.door import TIMEOUT_S, opened
from tests.harness.waiting import eventually

SHARED = ("network", "ipc", "uts")


def sleeper(door: PodDoor, pid: int, name: str = "c1", *more: str) -> int:
    return door.tenant(name, ["sleep", "1000"], pid, *SHARED, *more)


def test_a_pod_without_a_process_of_its_own(door: PodDoor, netns: str) -> None:
    """Its namespaces are held by the shim, whose pid stands for them; nothing is mounted but its files and /dev/shm."""
    door.create_pod(netns_path=netns)
    assert door.pod_status().state == "SANDBOX_NOTREADY"
    pid = door.start_pod()
    assert pid == door.shim_pid()
    answered = door.pod_status()
    assert (answered.state, answered.pid, answered.created_at.seconds > 0) == ("SANDBOX_READY", pid, True)
    assert [point.rpartition("/")[2] for point in door.mounts()] == ["netns", "etc", "shm"]
    assert door.cgroups() == []
    first, second = sleeper(door, pid, "c1"), sleeper(door, pid, "c2")
    for kind in ("net", "ipc", "uts"):
        assert namespace(first, kind) == namespace(second, kind) != namespace("self", kind)
    assert namespace(first, "net") == f"net:[{os.stat(netns).st_ino}]"
    assert len({namespace(each, "pid") for each in (first, second, "self")}) == 3


def test_a_stopped_pod_has_nothing_left_and_leaves_the_network_to_who_made_it(
    door: PodDoor, netns: str
) -> None:
    door.create_pod(netns_path=netns)
    sleeper(door, door.start_pod())
    assert len(door.held_namespaces()) == 3
    door.end("c1")
    door.stop_pod()
    assert (door.left(), door.held_namespaces()) == ([], [])
    assert os.stat(netns).st_ino > 1
    answered = door.pod_status()
    assert (answered.state, answered.pid) == ("SANDBOX_NOTREADY", 0)
    assert answered.exited_at.seconds > 0
    door.stop_pod()


def test_a_wait_ends_with_the_pod_and_comes_at_once_afterwards(door: PodDoor, netns: str) -> None:
    door.create_pod(netns_path=netns)
    door.start_pod()
    clients = [door.begin_wait() for _ in range(2)]
    door.stop_pod()
    for client, stream in (*clients, door.begin_wait()):
        with client:
            answer = decode(sandbox.WaitSandboxResponse, client.finish(stream))
            assert answer.exited_at is not None
            assert answer.exited_at.seconds > 0


def test_stop_ends_the_containers_that_nobody_has_stopped(door: PodDoor, netns: str) -> None:
    door.create_pod(netns_path=netns)
    pid = door.start_pod()
    sleeper(door, pid, "running")
    door.bundle("created", ["sleep", "1000"])
    door.create("created")
    door.stop_pod()
    assert (door.wait("running"), door.wait("created")) == (137, 137)


def test_shutdown_takes_everything_along_whatever_state_it_is_in(door: PodDoor, netns: str) -> None:
    door.create_pod(netns_path=netns)
    init = sleeper(door, door.start_pod())
    shim = door.shim_pid()
    door.shut_down()
    eventually(lambda: not Path(f"/proc/{shim}").exists())
    assert not Path(f"/proc/{init}").exists()
    assert (door.left(), door.state.exists()) == ([], False)
    assert not Path(door.address.removeprefix("unix://")).exists()


def test_a_shutdown_waits_for_whoever_reads_no_longer_than_its_caller_does(door: PodDoor, netns: str) -> None:
    """Two containers whose output nobody takes: they are given up together, and not one after the other."""
    door.create_pod(netns_path=netns)
    pid = door.start_pod()
    ends = []
    for name in ("c1", "c2"):
        fifo = door.directory / name
        os.mkfifo(fifo)
        ends.append(os.open(fifo, os.O_RDWR))  # it has a reader, who does not read
        init = door.tenant(name, ["sh", "-c", "while :; do echo y; done"], pid, "network", stdout=str(fifo))
        eventually(lambda init=init: "pipe_write" in Path(f"/proc/{init}/wchan").read_text())  # type: ignore[misc]
    shim = door.shim_pid()
    door.pod("ShutdownSandbox", sandbox.ShutdownSandboxRequest(POD), timeout_s=8)
    eventually(lambda: not Path(f"/proc/{shim}").exists())
    assert door.left() == []
    for end in ends:
        os.close(end)


def test_the_last_container_does_not_take_the_shim_along(door: PodDoor, netns: str) -> None:
    door.create_pod(netns_path=netns)
    pid = door.start_pod()
    sleeper(door, pid)
    door.end("c1")
    door.ask("Shutdown", task.ShutdownRequest("c1"))
    sleeper(door, pid, "c2")
    assert Path(door.address.removeprefix("unix://")).exists()  # the first to go


def test_the_calls_that_only_ask(door: PodDoor, netns: str) -> None:
    door.create_pod(netns_path=netns)
    pid = door.start_pod()
    door.pod("PingSandbox", sandbox.PingRequest(POD))
    platform = door.pod("Platform", sandbox.PlatformRequest(POD)).platform
    assert (platform.os, platform.architecture) == (
        "linux",
        {"x86_64": "amd64"}.get(os.uname().machine, "arm64"),
    )
    sleeper(door, pid)
    metric = door.pod("SandboxMetrics", sandbox.SandboxMetricsRequest(POD)).metrics
    version = metrics_v2 if metric.data.type_url == metrics_v2.Metrics.NAME else metrics_v1
    counted = decode(version.Metrics, metric.data.value)
    assert metric.id == POD
    assert counted.pids is not None
    assert counted.pids.current == 1


@pytest.mark.parametrize("method", sorted(set(sandbox.METHODS) - {"CreateSandbox", "ShutdownSandbox"}))
def test_another_pods_id_is_not_found(door: PodDoor, method: str) -> None:
    door.create_pod()
    with pytest.raises(RpcError) as failure:
        door.pod(method, sandbox.METHODS[method][0]("p2"))
    assert failure.value.code == status.NOT_FOUND


def test_a_shim_holds_one_pod_and_starts_it_once(door: PodDoor, netns: str) -> None:
    door.create_pod(netns_path=netns)
    with pytest.raises(RpcError, match="already exists"):
        door.create_pod(netns_path=netns)
    door.start_pod()
    with pytest.raises(RpcError, match="cannot start pod p1: it is ready"):
        door.start_pod()


def test_a_container_needs_a_pod_that_is_ready(door: PodDoor) -> None:
    door.create_pod()
    door.bundle("c1", ["sleep", "1000"])
    with pytest.raises(RpcError, match="pod p1 is created: it takes no containers"):
        door.create("c1")
    door.stop_pod()
    with pytest.raises(RpcError, match="pod p1 is stopped"):
        door.create("c1")
    assert door.left() == []


def test_a_pod_that_is_stopped_while_a_container_is_created_takes_it_no_more(
    door: PodDoor, netns: str
) -> None:
    """What it was to be given is the pod's no more, and the numbers of those descriptors may be others' by now."""
    door.create_pod(netns_path=netns)
    door.start_pod()
    door.bundle("c1", ["sleep", "1000"])
    fifo = door.directory / "fifo"
    os.mkfifo(fifo)
    bundle = str(door.directory / "bundles/c1")
    asked = task.CreateTaskRequest(id="c1", bundle=bundle, stdout=str(fifo))  # waits for a reader
    with contextlib.closing(Client(door.address)) as client:
        call = client.begin(task.SERVICE_V2, "Create", encode(asked))
        eventually(lambda: "c1" in [each.container for each in door.shown()])
        door.stop_pod()
        why = "pod p1 is stopped: it takes no containers"
        with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)), pytest.raises(RpcError, match=why):
            client.finish(call, TIMEOUT_S)
    assert door.left() == []


# --- what a pod is asked to be -------------------------------------------------------------------------


def test_a_pod_of_nobodys_network_gets_one_with_a_loopback(door: PodDoor) -> None:
    door.create_pod(options=None)
    pid = door.start_pod()
    init = sleeper(door, pid)
    assert namespace(init, "net") != namespace("self", "net")
    assert "127.0.0.1" in Path(f"/proc/{init}/net/fib_trie").read_text()  # since `lo` is up


@pytest.mark.parametrize(
    ("mode", "kinds"), [("network", ("net", "uts")), ("ipc", ("ipc",)), ("pid", ("pid",))]
)
def test_what_a_pod_shares_with_the_node_its_containers_do(
    door: PodDoor, netns: str, mode: str, kinds: tuple[str, ...]
) -> None:
    modes: dict[str, Json] = {mode: NODE}
    door.create_pod(door.config(**modes), netns_path="" if mode == "network" else netns)
    init = sleeper(door, door.start_pod(), "c1", "pid") if mode == "pid" else sleeper(door, door.start_pod())
    for kind in ("net", "uts", "ipc", "pid"):
        assert (namespace(init, kind) == namespace("self", kind)) == (kind in kinds)


def test_the_pods_files_are_in_its_containers(door: PodDoor, netns: str) -> None:
    config = door.config(hostname="my-pod")
    dns = DnsConfig(["10.0.0.10"], ["a.test", "b.test"], ["ndots:5"])
    asked = PodSandboxConfig(hostname=config.hostname, dns_config=dns, linux=config.linux)
    door.create_pod(asked, netns_path=netns)
    init = sleeper(door, door.start_pod())
    root = Path(f"/proc/{init}/root")
    assert (root / "etc/hostname").read_text() == "my-pod\n"
    assert (root / "etc/hosts").read_text() == Path("/etc/hosts").read_text()
    expected = "search a.test b.test\nnameserver 10.0.0.10\noptions ndots:5\n"
    assert (root / "etc/resolv.conf").read_text() == expected
    assert (root / "proc/sys/kernel/hostname").exists()


def test_a_container_cannot_fill_the_nodes_run_by_the_pods_files(door: PodDoor, netns: str) -> None:
    """They are its to write to, and lie where shims and everybody else on the node keep their state."""
    door.create_pod(netns_path=netns)
    init = sleeper(door, door.start_pod())
    for name in ("hostname", "hosts", "resolv.conf"):
        door.add_exec("c1", "e", ["sh", "-c", f"exec dd if=/dev/zero of=/etc/{name} bs=1M count=16"])
        door.ask("Start", task.StartRequest("c1", "e"))
        assert door.wait("c1", "e") != 0
        door.delete("c1", "e")
    filled = sum((Path(f"/proc/{init}/root/etc") / name).stat().st_size for name in ("hostname", "hosts"))
    assert filled <= 4 << 20
    assert os.statvfs(f"/proc/{init}/root/etc/hosts").f_fsid != os.statvfs(door.state).f_fsid


def test_containers_of_a_pod_share_memory_and_not_with_the_node(door: PodDoor, netns: str) -> None:
    door.create_pod(netns_path=netns)
    pid = door.start_pod()
    first, second = sleeper(door, pid, "c1"), sleeper(door, pid, "c2")
    Path(f"/proc/{first}/root/dev/shm/shared").write_text("by the first")
    assert Path(f"/proc/{second}/root/dev/shm/shared").read_text() == "by the first"
    mounted = next(
        line for line in Path(f"/proc/{first}/mountinfo").read_text().splitlines() if " /dev/shm " in line
    )
    assert "size=65536k" in mounted
    alone = door.tenant("c3", ["sleep", "1000"], pid, "network")
    assert not Path(f"/proc/{alone}/root/dev/shm/shared").exists()


def test_sysctls_of_the_pod(door: PodDoor, netns: str) -> None:
    """Those that containerd would set by itself, unless the pod says otherwise, and those that it asks for."""
    asked = {"net.ipv4.ping_group_range": "0 7", "kernel.shm_rmid_forced": "1"}
    door.create_pod(door.config(asked), netns_path=netns)
    init = sleeper(door, door.start_pod())
    settings = Path(f"/proc/{init}/root/proc/sys")
    names = ("net/ipv4/ping_group_range", "kernel/shm_rmid_forced", "net/ipv4/ip_unprivileged_port_start")
    # The files show the namespaces of who reads them.
    door.add_exec("c1", "e", ["sh", "-c", f"cat {' '.join(f'/proc/sys/{name}' for name in names)} > /found"])
    door.ask("Start", task.StartRequest("c1", "e"))
    assert door.wait("c1", "e") == 0
    assert settings.exists()
    assert Path(f"/proc/{init}/root/found").read_text().split() == ["0", "7", "1", "0"]


def owner_of(path: str) -> str:
    """The user namespace that another belongs to (NS_GET_USERNS)."""
    with open(path, "rb") as namespace_file:
        owner = fcntl.ioctl(namespace_file, 0xB701)
    try:
        return os.readlink(f"/proc/self/fd/{owner}")
    finally:
        os.close(owner)


def test_a_pod_can_have_a_user_namespace_of_its_own(door: PodDoor) -> None:
    """All others belong to it, so that its root has rights over them; the pod's files are its root's."""
    ids = [IdMapping(200_000, 0, 65_536)]
    door.create_pod(
        door.config({"kernel.shmmni": "77"}, userns_options=UserNamespace(POD_MODE, ids, ids), pid=0)
    )
    landlord = door.start_pod()
    for kind in ("net", "ipc", "uts", "pid"):
        assert (
            owner_of(f"/proc/{landlord}/ns/{kind}")
            == namespace(landlord, "user")
            != namespace("self", "user")
        )
    assert Path(f"/proc/{landlord}/uid_map").read_text().split() == ["0", "200000", "65536"]
    files = Path(door.pod_status().info["manor"].split('"files":"')[1].split('"')[0])
    for name in ("etc/hostname", "etc/hosts", "etc/resolv.conf", "shm"):
        assert (files / name).stat().st_uid == 200_000
    assert os.stat(f"/proc/{landlord}").st_uid == 200_000 + 65_535


def test_a_network_of_the_nodes_user_namespace_is_not_a_user_namespaces(door: PodDoor, netns: str) -> None:
    ids = [IdMapping(200_000, 0, 65_536)]
    door.create_pod(door.config(userns_options=UserNamespace(POD_MODE, ids, ids)), netns_path=netns)
    with pytest.raises(RpcError, match="join the user namespace of .*: it belongs to the node's"):
        door.start_pod()
    assert door.left() == []


# --- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Any("runtime.v1.PodSandboxConfig", b"\xff"), "options of pod p1"),
        (Any("something.else", b""), "expected runtime.v1.PodSandboxConfig"),
    ],
)
def test_options_that_are_none_are_refused(door: PodDoor, options: Any, message: str) -> None:
    with pytest.raises(RpcError, match=message) as failure:
        door.create_pod(options=options)
    assert failure.value.code == status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vm.swappiness", "does not belong to a namespace"),
        ("kernel.hostname", "the field hostname is for that"),
    ],
)
def test_a_sysctl_that_is_the_nodes_is_refused(door: PodDoor, netns: str, name: str, message: str) -> None:
    with pytest.raises(RpcError, match=message):
        door.create_pod(door.config({name: "1"}), netns_path=netns)


def test_a_network_that_is_not_there_is_refused(door: PodDoor) -> None:
    with pytest.raises(RpcError, match="network namespace /nowhere: No such file"):
        door.create_pod(netns_path="/nowhere")


@pytest.mark.parametrize(
    ("config", "network", "message"),
    [
        ({}, "/etc/passwd", "0:POD: join network namespace /etc/passwd: setns: Invalid argument"),
        ({"sysctls": {"net.ipv4.ip_forward": "many"}}, "", "net.ipv4.ip_forward = 'many': Invalid argument"),
        ({"hostname": "h" * 65}, "", "set hostname"),
        ({"pid": 0, "sysctls": {"fs.mqueue.msg_max": "x"}}, "", "fs.mqueue.msg_max"),
    ],
)
def test_a_start_that_fails_leaves_nothing(
    door: PodDoor, config: dict[str, Json], network: str, message: str
) -> None:
    door.create_pod(door.config(**config), netns_path=network)
    fds = door.shim_fds()
    with pytest.raises(RpcError, match=re.escape(message)):
        door.start_pod()
    assert (door.left(), door.shim_fds(), door.zombies()) == ([], fds, [])
    client, stream = door.begin_wait()
    with client:
        client.finish(stream)
    shim = door.shim_pid()
    door.shut_down()
    eventually(lambda: not Path(f"/proc/{shim}").exists())


def test_a_container_that_asks_for_pids_where_none_are_shared_is_refused(door: PodDoor, netns: str) -> None:
    """It would have got those of the process that the pod is named by: the node's."""
    door.create_pod(netns_path=netns)
    with pytest.raises(RpcError, match="do not share a pid namespace"):
        sleeper(door, door.start_pod(), "c1", "pid")
    assert door.cgroups() == []


def test_delete_clears_away_what_a_killed_shim_has_left(door: PodDoor, netns: str) -> None:
    door.create_pod(netns_path=netns)
    init = sleeper(door, door.start_pod())
    os.kill(door.shim_pid(), signal.SIGKILL)
    done = door.launch("delete", POD)
    assert (done.returncode, done.stderr) == (0, b"")
    eventually(lambda: not Path(f"/proc/{init}").exists())
    assert (door.left(), door.state.exists()) == ([], False)


def test_what_a_killed_shim_has_left_of_a_pod_is_found_and_removed() -> None:
    """By `manor leaks`, where no containerd comes for it. On a node of its own: it removes whatever there is."""
    with opened() as world:
        door = PodDoor(world, world.directory / "p")
        try:
            door.create_pod(door.config(pid=POD_MODE))
            landlord = door.start_pod()
            init = sleeper(door, landlord, "c1", "pid")
            os.kill(door.shim_pid(), signal.SIGKILL)
            eventually(lambda: leaks.look(str(door.run_dir), 0).waiting == [POD])
            shutil.rmtree(door.directory / "bundles")
            found = leaks.look(str(door.run_dir), 0)
            kinds = sorted(each.kind for each in found.leaks)
            assert kinds == ["cgroup"] * 2 + ["mount"] * 2 + ["process"] * 2 + ["socket"] + ["state"] * 3
            assert leaks.collect(str(door.run_dir), found).failures == []
            assert [alive(pid) for pid in (landlord, init)] == [False, False]
            assert (door.left(), door.state.exists()) == ([], False)
        finally:
            door.close()
