"""The Task service with real containers: root file systems, exits in crowds and in a hurry, limits, pausing."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from shim.api import metrics_v1, metrics_v2, task, types
from shim.api.codec import decode, encode
from shim.api.types import Any, Mount
from shim.ttrpc import status
from shim.ttrpc.client import Client
from shim.ttrpc.status import RpcError
from tests.e2e.shim.door import Calls, Door, overlay
from tests.harness.bundles import make_rootfs
from tests.harness.processes import children
from tests.harness.waiting import catches, eventually, is_being_killed


def clear(root: Path) -> None:
    """Make a bundle's root file system the empty directory that containerd leaves for the shim to mount on."""
    os.rename(root, root.parent / "unused")
    root.mkdir()


def test_the_root_file_system_is_mounted_for_create_and_unmounted_by_delete(
    door: Door, tmp_path: Path
) -> None:
    bundle = door.bundle("c1", ["sh", "-c", "echo written > /file"])
    clear(bundle.rootfs)
    (tmp_path / "image").mkdir()
    door.start("c1")
    door.create("c1", overlay(tmp_path / "image"))
    assert door.mounts() == [str(bundle.rootfs)]
    door.ask("Start", task.StartRequest("c1"))
    assert door.wait("c1") == 0
    door.delete("c1")
    assert door.mounts() == []
    assert (tmp_path / "image/upper/file").read_text() == "written\n"


def test_an_image_of_a_hundred_layers_is_mounted(door: Door, tmp_path: Path) -> None:
    bundle = door.bundle("c1", ["ls", "/"])
    clear(bundle.rootfs)
    (tmp_path / "image").mkdir()
    mounts = overlay(tmp_path / "image", 60)
    assert len(",".join(mounts[0].options)) > 4096
    door.start("c1")
    door.create("c1", mounts)
    assert {f"layer-{number}" for number in range(60)} <= set(os.listdir(bundle.rootfs))
    door.end("c1")


def test_a_read_only_bind_is_read_only(door: Door, tmp_path: Path) -> None:
    bundle = door.bundle("c1", ["touch", "/file"])
    clear(bundle.rootfs)
    make_rootfs(tmp_path / "image")
    door.start("c1")
    door.create("c1", [Mount("bind", str(tmp_path / "image"), "", ["rbind", "ro"])])
    door.ask("Start", task.StartRequest("c1"))
    assert door.wait("c1") == 1
    door.delete("c1")
    assert not (tmp_path / "image/file").exists()


def test_a_mount_that_fails_is_named_and_those_before_it_are_taken_back(door: Door, tmp_path: Path) -> None:
    bundle = door.bundle("c1", ["true"])
    clear(bundle.rootfs)
    (tmp_path / "image").mkdir()
    bad = Mount("overlay", "overlay", "/sub", ["lowerdir=/nowhere:/neither"])
    door.start("c1")
    before = door.shim_fds()
    with pytest.raises(RpcError, match="mount overlay on .*rootfs/sub: No such file or directory"):
        door.create("c1", [*overlay(tmp_path / "image"), bad])
    assert (door.mounts(), door.cgroups(), door.zombies()) == ([], [], [])
    assert door.shim_fds() == before


def test_a_create_that_fails_after_the_mount_takes_it_back(door: Door, tmp_path: Path) -> None:
    bundle = door.bundle("c1", ["no-such-program"])
    clear(bundle.rootfs)
    (tmp_path / "image").mkdir()
    door.start("c1")
    before = door.shim_fds()
    with pytest.raises(RpcError, match="no-such-program"):
        door.create("c1", overlay(tmp_path / "image"))
    assert (door.mounts(), door.cgroups(), door.zombies()) == ([], [], [])
    assert door.shim_fds() == before
    assert door.events.topics() == []


def test_a_container_that_ends_at_once_has_its_events_in_order(door: Door) -> None:
    door.run("c1", ["true"])
    assert door.wait("c1") == 0
    door.delete("c1")
    eventually(lambda: len(door.events.seen) == 4)
    assert door.events.topics() == ["create", "start", "exit c1", "delete"]


def test_a_hundred_execs_at_once_end_with_their_own_codes_and_leave_nothing(running: Door) -> None:
    running.exec("c1", "warm", ["true"])
    running.wait("c1", "warm")
    running.delete("c1", "warm")
    # Until its exit is on disk: what that takes, the shim keeps.
    eventually(lambda: len(running.events.seen) == 2 + 3)
    before = running.shim_fds()
    codes: dict[str, int] = {}

    def many(first: int) -> None:
        mine = Calls(running.address)
        with mine.client:
            for number in range(first, first + 25):
                exec_id = f"e{number}"
                mine.exec("c1", exec_id, ["sh", "-c", f"exit {number}"])
                codes[exec_id] = mine.wait("c1", exec_id)
                mine.delete("c1", exec_id)

    threads = [threading.Thread(target=many, args=(first,)) for first in range(0, 100, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {f"e{number}": number for number in range(100)}
    eventually(lambda: running.shim_fds() == before)
    assert running.zombies() == []
    eventually(lambda: len(running.events.seen) == 2 + 3 * 101)
    topics = running.events.topics()
    counted = Counter(topics)
    for number in range(100):
        assert counted[f"exit e{number}"] == 1
    assert (counted["exec-added"], counted["exec-started"]) == (101, 101)


def test_orphans_of_a_container_without_a_pid_namespace_are_reaped_and_killed_with_it(door: Door) -> None:
    bundle = door.bundle("c1", ["sh", "-c", "(sleep 0.1 & sleep 1000 &) ; sleep 0.5"])
    namespaces = bundle.config["linux"]["namespaces"]
    bundle.config["linux"]["namespaces"] = [each for each in namespaces if each["type"] != "pid"]
    bundle.write()
    door.start("c1")
    init = door.create("c1")
    door.ask("Start", task.StartRequest("c1"))

    def pids() -> list[int]:
        return [each.pid for each in door.ask("Pids", task.PidsRequest("c1")).processes]

    eventually(lambda: len(pids()) >= 2)
    assert door.wait("c1") == 0
    eventually(lambda: pids() == [init])
    assert door.zombies() == []
    door.delete("c1")


def test_execs_end_with_their_container_and_are_reported_before_it(door: Door) -> None:
    door.run("c1", ["sleep", "1000"])
    for number in range(5):
        door.exec("c1", f"e{number}", ["sleep", "1000"])
    door.kill("c1")
    assert door.wait("c1") == 137
    assert {door.wait("c1", f"e{number}") for number in range(5)} == {137}
    eventually(lambda: len(door.events.seen) == 2 + 5 * 2 + 6)
    exits = [topic for topic in door.events.topics() if topic.startswith("exit")]
    assert exits[-1] == "exit c1"
    assert sorted(exits[:-1]) == [f"exit e{number}" for number in range(5)]
    door.delete("c1")


def test_a_paused_container_refuses_execs_and_its_shim_goes_on_answering(running: Door) -> None:
    running.ask("Pause", task.PauseRequest("c1"))
    assert running.status("c1") == types.STATUS_PAUSED
    with pytest.raises(RpcError) as failure:
        running.exec("c1", "e1", ["true"])
    assert failure.value.code == status.FAILED_PRECONDITION
    running.ask("Resume", task.ResumeRequest("c1"))
    running.exec("c1", "e2", ["true"])
    assert running.wait("c1", "e2") == 0


def test_a_paused_container_can_be_killed(door: Door) -> None:
    door.run("c1", ["sleep", "1000"])
    door.ask("Pause", task.PauseRequest("c1"))
    door.kill("c1")
    assert door.wait("c1") == 137
    door.delete("c1")
    assert door.cgroups() == []


def freeze(door: Door, on: bool = True) -> None:
    """Freeze the door's only container by its cgroup, or thaw it."""
    places = [path for path in door.cgroups() if (path / "freezer.state").exists()]
    if places:
        (places[0] / "freezer.state").write_text("FROZEN" if on else "THAWED")
    else:
        (path,) = (path for path in door.cgroups() if (path / "cgroup.freeze").exists())
        (path / "cgroup.freeze").write_text("1" if on else "0")


def wait_killed(door: Door, exec_id: str = "") -> None:
    request = task.WaitRequest("c1", exec_id)
    assert door.ask("Wait", request).exit_status == 137


def test_a_container_frozen_behind_the_shims_back_can_be_killed(door: Door) -> None:
    door.run("c1", ["sleep", "1000"])
    freeze(door)
    door.kill("c1")
    wait_killed(door)
    door.delete("c1")
    assert door.cgroups() == []


@pytest.mark.skipif(not Path("/sys/fs/cgroup/freezer").is_dir(), reason="v2 kills the frozen")
def test_a_container_that_freezes_a_part_of_itself_can_be_killed(door: Door) -> None:
    door.run("c1", ["sleep", "1000"])
    part = Path("/sys/fs/cgroup/freezer") / door.cgroup_parent / "c1/made/by-it"
    part.mkdir(parents=True)
    (part / "cgroup.procs").write_text(str(door.exec("c1", "e1", ["sleep", "1001"])))
    (part / "freezer.state").write_text("FROZEN")
    door.kill("c1")
    try:
        wait_killed(door)
    finally:
        if part.exists():
            (part / "freezer.state").write_text("THAWED")
    door.delete("c1")
    assert door.cgroups() == []


def test_a_start_that_hangs_does_not_keep_its_container_from_being_killed(door: Door) -> None:
    door.bundle("c1", ["sleep", "1000"])
    door.start("c1")
    door.create("c1")
    freeze(door)
    with Client(door.address) as other:
        stuck = other.begin(task.SERVICE_V2, "Start", encode(task.StartRequest("c1")))
        time.sleep(0.2)
        door.ask("Kill", task.KillRequest("c1", "", signal.SIGKILL))
        wait_killed(door)
        with contextlib.suppress(RpcError):  # it may have been killed as late as in its execve
            other.finish(stuck)
    door.delete("c1")
    assert (door.cgroups(), door.zombies()) == ([], [])


def test_a_kill_of_an_exec_that_hangs_in_its_start_is_answered_at_once(running: Door) -> None:
    running.add_exec("c1", "e1", ["true"])
    freeze(running)
    try:
        with Client(running.address) as other:
            stuck = other.begin(task.SERVICE_V2, "Start", encode(task.StartRequest("c1", "e1")))
            time.sleep(0.2)
            with pytest.raises(RpcError) as failure:
                running.ask("Kill", task.KillRequest("c1", "e1", signal.SIGKILL))
            assert failure.value.code == status.FAILED_PRECONDITION
            freeze(running, on=False)
            other.finish(stuck)
    finally:
        freeze(running, on=False)
    assert running.wait("c1", "e1") == 0


def test_a_cgroup_frozen_behind_the_shims_back_stops_an_exec_but_not_the_shim(running: Door) -> None:
    freezers = [path for path in running.cgroups() if (path / "freezer.state").exists()]
    freezers = freezers or [path for path in running.cgroups() if (path / "cgroup.freeze").exists()]
    (freezer,) = freezers
    switch, on, off = (
        ("freezer.state", "FROZEN", "THAWED")
        if (freezer / "freezer.state").exists()
        else ("cgroup.freeze", "1", "0")
    )
    (freezer / switch).write_text(on)
    try:
        running.add_exec("c1", "e1", ["true"])
        with Client(running.address) as other:
            stuck = other.begin(task.SERVICE_V2, "Start", encode(task.StartRequest("c1", "e1")))
            time.sleep(0.2)
            assert running.status("c1", "e1") == types.STATUS_CREATED
            running.bundle("c2", ["true"])
            running.create("c2")
            running.ask("Start", task.StartRequest("c2"))
            assert running.wait("c2") == 0
            running.delete("c2")
            (freezer / switch).write_text(off)
            other.finish(stuck)
    finally:
        (freezer / switch).write_text(off)
    assert running.wait("c1", "e1") == 0
    running.delete("c1", "e1")


def test_stats_count_what_the_container_uses(running: Door) -> None:
    packed = running.ask("Stats", task.StatsRequest("c1")).stats
    if packed.type_url == metrics_v1.Metrics.NAME:
        first = decode(metrics_v1.Metrics, packed.value)
        assert first.pids is not None
        assert first.memory is not None
        assert first.memory.usage is not None
        assert (first.pids.current, first.memory.usage.usage > 0) == (1, True)
    else:
        second = decode(metrics_v2.Metrics, packed.value)
        assert second.pids is not None
        assert second.memory is not None
        assert (second.pids.current, second.memory.usage > 0) == (1, True)


def test_an_update_is_in_force_at_once(running: Door) -> None:
    running.ask("Update", task.UpdateTaskRequest("c1", Any("resources", b'{"pids":{"limit":9}}')))
    assert "9" in {
        (path / "pids.max").read_text().strip() for path in running.cgroups() if (path / "pids.max").exists()
    }


def test_a_kill_for_want_of_memory_is_an_event(door: Door) -> None:
    bundle = door.bundle("c1", ["sh", "-c", "tail /dev/zero"])
    bundle.config["linux"]["resources"]["memory"] = {"limit": 16 << 20}
    bundle.write()
    door.start("c1")
    door.create("c1")
    door.ask("Start", task.StartRequest("c1"))
    assert door.wait("c1") in (137, 143)
    eventually(lambda: "oom" in door.events.topics())
    door.delete("c1")
    settled = door.events.topics().count("oom")
    time.sleep(0.2)
    assert door.events.topics().count("oom") == settled  # the cgroup's removal is no kill


def test_a_deadline_ends_a_call_and_undoes_what_it_began(running: Door) -> None:
    freezer = next(path for path in running.cgroups() if (path / "freezer.state").exists())
    running.add_exec("c1", "e1", ["true"])
    (freezer / "freezer.state").write_text("FROZEN")
    try:
        start = encode(task.StartRequest("c1", "e1"))
        call = running.client.begin(task.SERVICE_V2, "Start", start, timeout_s=0.3)
        # Its stage is killed, but a frozen process dies when it is thawed.
        eventually(lambda: any(is_being_killed(pid) for pid in children(running.shim_pid())))
    finally:
        (freezer / "freezer.state").write_text("THAWED")
    with pytest.raises(RpcError) as failure:
        running.client.finish(call)
    assert failure.value.code == status.DEADLINE_EXCEEDED
    assert running.wait("c1", "e1") == 255
    running.delete("c1", "e1")
    eventually(lambda: len(running.ask("Pids", task.PidsRequest("c1")).processes) == 1)


def test_signals_reach_the_process(door: Door) -> None:
    init = door.run("c1", ["sh", "-c", "trap 'exit 5' USR1; while true; do sleep 0.05; done"])
    eventually(lambda: catches(init, signal.SIGUSR1))
    door.kill("c1", signal.SIGUSR1)
    assert door.wait("c1") == 5
    with pytest.raises(RpcError, match="process already finished") as failure:
        door.kill("c1")
    assert failure.value.code == status.NOT_FOUND
    door.delete("c1")
