"""Pods whose containers share a PID namespace: the one process that such a pod has of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from shim.api import sandbox, task
from shim.api.codec import decode
from shim.ttrpc.status import RpcError
from tests.e2e.sandbox.conftest import POD, PodDoor, namespace
from tests.harness.waiting import eventually

EVERYTHING = ("network", "ipc", "uts", "pid")


@pytest.fixture
def landlord(door: PodDoor, netns: str) -> int:
    """The landlord of a pod that has been started."""
    door.create_pod(door.config(pid=0), netns_path=netns)
    return door.start_pod()


def field(pid: int, name: str) -> list[str]:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return line.split()[1:]
    raise KeyError(name)


def test_containers_live_in_the_landlords_namespaces(door: PodDoor, landlord: int) -> None:
    assert landlord != door.shim_pid()
    assert door.pod_status().pid == landlord
    first = door.tenant("c1", ["sleep", "1000"], landlord, *EVERYTHING)
    second = door.tenant("c2", ["sleep", "1000"], landlord, *EVERYTHING)
    for kind in ("net", "ipc", "uts", "pid"):
        assert namespace(first, kind) == namespace(second, kind) == namespace(landlord, kind)
        assert namespace(first, kind) != namespace("self", kind)
    assert field(landlord, "NSpid")[-1] == "1"
    assert [point.rpartition("/")[2] for point in door.mounts()] == ["netns", "etc", "shm"]


def test_the_landlord_can_do_nothing_and_has_nothing(landlord: int) -> None:
    assert [field(landlord, name) for name in ("CapEff", "CapBnd", "NoNewPrivs")] == [
        ["0" * 16],
        ["0" * 16],
        ["1"],
    ]
    assert field(landlord, "Uid") == ["65535"] * 4
    assert {os.readlink(entry) for entry in Path(f"/proc/{landlord}/fd").iterdir()} == {"/dev/null"}
    mounted = Path(f"/proc/{landlord}/mountinfo").read_text().splitlines()
    assert len(mounted) == 1
    assert " / / ro," in mounted[0]
    assert Path(f"/proc/{landlord}/cmdline").read_bytes() == b"/manor-landlord\0"
    assert int(field(landlord, "VmRSS")[0]) <= 64  # kB


def test_the_landlord_reaps_orphans_and_ignores_what_a_tenant_sends(door: PodDoor, landlord: int) -> None:
    orphans = (
        "i=0; while [ $i -lt 50 ]; do (sh -c 'sleep 0 & :' &); i=$((i+1)); done; kill -TERM 1; kill -INT 1"
    )
    init = door.tenant("c1", ["sh", "-c", f"{orphans}; exec sleep 1000"], landlord, *EVERYTHING)
    eventually(lambda: Path(f"/proc/{init}/cmdline").read_bytes() == b"sleep\x001000\0")
    tree = namespace(landlord, "pid")

    def inside() -> list[tuple[int, str]]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and namespace(entry.name, "pid") == tree:
                    found.append((int(entry.name), field(int(entry.name), "State")[0]))
            except OSError:
                continue  # it has just ended
        return found

    eventually(lambda: len(inside()) == 2)
    assert set(dict(inside())) == {landlord, init}


def test_a_dead_landlord_is_the_end_of_its_pod(door: PodDoor, landlord: int) -> None:
    door.tenant("c1", ["sleep", "1000"], landlord, *EVERYTHING)
    client, stream = door.begin_wait()
    os.kill(landlord, signal.SIGKILL)
    with client:
        assert decode(sandbox.WaitSandboxResponse, client.finish(stream)).exit_status == 137
    assert door.wait("c1") == 137
    answered = door.pod_status()
    assert (answered.state, answered.pid) == ("SANDBOX_NOTREADY", 0)
    door.ask("Delete", task.DeleteRequest("c1"))
    door.stop_pod()
    assert (door.left(), door.zombies()) == ([], [])


def test_a_pod_with_a_landlord_leaves_nothing(door: PodDoor, landlord: int) -> None:
    door.tenant("c1", ["sleep", "1000"], landlord, *EVERYTHING)
    door.stop_pod()
    assert door.wait("c1") == 137
    assert not Path(f"/proc/{landlord}").exists()
    door.ask("Delete", task.DeleteRequest("c1"))
    assert (door.left(), door.zombies()) == ([], [])


def test_a_landlord_that_cannot_be_had_leaves_nothing(door: PodDoor, netns: str) -> None:
    door.create_pod(door.config(pid=0), netns_path=netns)
    (door.state / POD).mkdir()  # where its state would be
    with pytest.raises(RpcError, match="exists already"):
        door.start_pod()
    (door.state / POD).rmdir()
    assert (door.left(), door.zombies()) == ([], [])


def test_delete_ends_the_landlord_of_a_killed_shim(door: PodDoor, landlord: int) -> None:
    os.kill(door.shim_pid(), signal.SIGKILL)
    done = door.launch("delete", POD)
    assert (done.returncode, done.stderr) == (0, b"")
    eventually(lambda: not Path(f"/proc/{landlord}").exists())
    assert (door.left(), door.state.exists()) == ([], False)
