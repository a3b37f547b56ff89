"""`manor leaks`: what a dead shim has left is found, with what made it; `--gc` takes that and nothing else away."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from manor import leaks, ledger, sweep
from runtime import state
from shim import deed
from shim.api import task
from shim.api.codec import decode
from tests.e2e.leaks.conftest import LedgerDoor, alive, kinds
from tests.e2e.shim.door import Door, overlay
from tests.harness.instances import hierarchies
from tests.harness.waiting import eventually, remove_cgroup

SLEEP = ["sleep", "1000"]
ALL = ["cgroup", "mount", "process", "socket", "state", "state"]


@pytest.fixture
def dead(door: LedgerDoor) -> Iterator[LedgerDoor]:
    """A container with a mounted root whose shim was killed; its bundle is still there."""
    bundle = door.bundle("c1", SLEEP)
    shutil.rmtree(bundle.rootfs)
    bundle.rootfs.mkdir()
    (door.directory / "image").mkdir()
    door.start("c1")
    door.create("c1", overlay(door.directory / "image"))
    door.ask("Start", task.StartRequest("c1"))
    door.kill_shim()
    yield door
    init = init_of(door)
    if init:
        os.kill(init, signal.SIGKILL)
        eventually(lambda: not alive(init))


def init_of(door: LedgerDoor) -> int:
    found = list((door.run_dir / "pods").iterdir())
    known = state.load(str(found[0]), "c1") if found and (found[0] / "c1").exists() else None
    return known.pid if known is not None and alive(known.pid) else 0


def sleeper(*procs: Path) -> subprocess.Popen[bytes]:
    """A process of somebody else's, in cgroups."""
    started = subprocess.Popen(["sleep", "1000"])
    for each in procs:
        each.write_text(str(started.pid))
    return started


def test_a_shim_that_lives_owns_all_that_it_has(door: LedgerDoor) -> None:
    door.run("c1", SLEEP)
    door.add_exec("c1", "e1", SLEEP)
    assert door.look().leaks == []
    assert leaks.main(["--run-dir", str(door.run_dir), "--gc", "--grace", "0"]) == 0
    assert door.status("c1") == 2
    door.end("c1")


def test_so_does_one_of_an_earlier_version_which_has_no_lock(door: LedgerDoor) -> None:
    door.run("c1", SLEEP)
    old = door.run_dir / "pods" / "old"
    old.mkdir(mode=0o700)
    (old / "@socket").write_text(door.address.removeprefix("unix://"))
    found = door.look()
    assert (found.leaks, found.waiting) == ([], [])
    door.end("c1")


@pytest.mark.usefixtures("containerd")
def test_what_a_dead_shim_has_left_is_found_and_removed(
    dead: LedgerDoor, capsys: pytest.CaptureFixture[str]
) -> None:
    init = init_of(dead)
    assert leaks.main(["--run-dir", str(dead.run_dir), "--grace", "0", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert sorted(each["kind"] for each in told["leaks"]) == ALL
    assert {each["made_by"] for each in told["leaks"]} == {"Create", "the shim's start"}
    assert alive(init)
    assert leaks.main(["--run-dir", str(dead.run_dir), "--grace", "0", "--gc"]) == 0
    assert "removed 6 of 6" in capsys.readouterr().out
    assert not alive(init)
    assert (dead.cgroups(), dead.mounts(), dead.state_directories()) == ([], [], [])
    assert not Path(dead.address.removeprefix("unix://")).exists()
    assert leaks.main(["--run-dir", str(dead.run_dir), "--grace", "0"]) == 0


@pytest.mark.usefixtures("containerd")
def test_a_containerd_that_comes_after_all_hears_how_the_container_ended(door: LedgerDoor) -> None:
    door.run("c1", ["sh", "-c", "exit 3"])
    door.wait("c1")
    door.kill_shim()
    assert door.collect().leaks == []
    answer = door.launch("delete", "c1")
    assert (answer.returncode, answer.stderr) == (0, b"")
    assert decode(task.DeleteResponse, answer.stdout).exit_status == 3


def test_what_containerd_will_come_for_is_no_leak(
    dead: LedgerDoor, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is down, and its bundle is there: when it starts it runs `delete`, which knows the exits."""
    init = init_of(dead)
    assert leaks.main(["--run-dir", str(dead.run_dir), "--grace", "0", "--gc"]) == 0
    assert "containerd will come for it" in capsys.readouterr().err
    assert alive(init)
    assert dead.launch("delete", "c1").returncode == 0
    assert dead.look().waiting == []


def test_without_a_bundle_nobody_will_come(dead: LedgerDoor) -> None:
    os.rename(dead.directory / "bundles" / "c1", dead.directory / "bundles" / "gone")
    try:
        assert kinds(dead.look()) == ["cgroup", "process", "socket", "state", "state"]
        assert dead.collect().leaks == []
        assert (dead.cgroups(), dead.state_directories()) == ([], [])
    finally:
        os.rename(dead.directory / "bundles" / "gone", dead.directory / "bundles" / "c1")


@pytest.mark.usefixtures("containerd")
def test_a_frozen_container_is_removed_as_well(door: LedgerDoor) -> None:
    init = door.run("c1", SLEEP)
    door.ask("Pause", task.PauseRequest("c1"))
    door.kill_shim()
    assert door.collect().leaks == []
    assert not alive(init)
    assert door.cgroups() == []


@pytest.mark.usefixtures("containerd")
@pytest.mark.skipif(not Path("/sys/fs/cgroup/freezer").is_dir(), reason="v2 kills the frozen")
def test_so_is_one_that_has_frozen_a_part_of_itself(door: LedgerDoor) -> None:
    init = door.run("c1", SLEEP)
    part = Path("/sys/fs/cgroup/freezer") / door.cgroup_parent / "c1/made/by-it"
    part.mkdir(parents=True)
    (part / "cgroup.procs").write_text(str(init))
    (part / "freezer.state").write_text("FROZEN")
    door.kill_shim()
    try:
        assert door.collect().leaks == []
        assert not alive(init)
        assert door.cgroups() == []
    finally:
        if part.exists():
            (part / "freezer.state").write_text("THAWED")


@pytest.mark.usefixtures("containerd")
def test_of_one_that_has_made_thousands_of_cgroups_they_go_as_time_allows(
    door: LedgerDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = door.run("c1", SLEEP)
    for number in range(2500):
        (hierarchies()[0] / door.cgroup_parent / f"c1/{number}").mkdir()
    door.kill_shim()
    os.kill(init, signal.SIGKILL)
    eventually(lambda: not any((path / "cgroup.procs").read_text() for path in door.cgroups()))
    monkeypatch.setattr(sweep, "END_S", 0.1)
    left = door.collect()
    assert all("c1 has more cgroups in it than could be removed" in failure for failure in left.failures)
    monkeypatch.undo()
    assert door.collect().leaks == []
    assert door.cgroups() == []


@pytest.mark.usefixtures("containerd")
def test_a_create_that_was_cut_short_is_said_to_be_one(door: LedgerDoor) -> None:
    door.cut_short(door.bundle("c1", SLEEP))
    eventually(lambda: kinds(door.look()) == ["cgroup", "socket", "state", "state"])
    assert {each.made_by for each in door.look().leaks if each.container} == {"a Create that was cut short"}
    assert door.collect().leaks == []
    assert (door.cgroups(), door.state_directories()) == ([], [])


@pytest.mark.usefixtures("containerd")
def test_the_writer_of_a_log_that_outlives_its_shim_is_found(door: LedgerDoor) -> None:
    door.bundle("c1", SLEEP)
    door.start("c1")
    log = f"file://{door.directory}/log"
    door.create("c1", stdout=log, stderr=log)
    door.ask("Start", task.StartRequest("c1"))
    (writer,) = [each.pid for each in ledger.stages() if each.session == door.shim_pid()]
    door.kill_shim()
    os.kill(writer, signal.SIGSTOP)  # or it would see the end of its pipes
    assert f"{writer} manor:[LOG]" in [each.what for each in door.look().leaks]
    assert door.collect().leaks == []
    assert not alive(writer)


# --- what is not ours, whatever stands on record ------------------------------------------------------


@pytest.mark.usefixtures("containerd")
def test_who_else_is_in_a_cgroup_is_named_and_left_alone(
    dead: LedgerDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another runtime may have taken the cgroup over: containerd has forgotten the container, and its id is free."""
    monkeypatch.setattr(sweep, "END_S", 0.5)
    cgroups = dead.cgroups()
    stranger = sleeper(*(each / "cgroup.procs" for each in cgroups))
    try:
        left = dead.collect()
        assert stranger.poll() is None
        assert [each.held_by for each in left.leaks if each.kind == "cgroup"] == [(stranger.pid,)]
        assert any(f"in use by {stranger.pid}" in failure for failure in left.failures)
        assert all(each.exists() for each in cgroups)
    finally:
        stranger.kill()
        stranger.wait()
    assert dead.collect().leaks == []


@pytest.mark.usefixtures("containerd")
def test_a_cgroup_that_was_made_anew_is_somebody_elses(dead: LedgerDoor) -> None:
    init = init_of(dead)
    os.kill(init, signal.SIGKILL)
    eventually(lambda: not alive(init))
    cgroups = dead.cgroups()
    for each in cgroups:
        remove_cgroup(each)
    for each in cgroups:
        each.mkdir()
    assert kinds(dead.look()) == ["mount", "socket", "state", "state"]
    assert dead.collect().leaks == []
    assert dead.state_directories() == []
    assert all(each.exists() for each in cgroups)


@pytest.mark.usefixtures("containerd")
def test_a_mount_behind_a_symlink_stays(dead: LedgerDoor) -> None:
    victim = dead.directory / "victim"
    victim.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "victim", victim], check=True)
    bundle = dead.directory / "bundles" / "c1"
    subprocess.run(["umount", "-l", bundle / "rootfs"], check=True)
    (bundle / "rootfs").rmdir()
    (bundle / "rootfs").symlink_to(victim)
    assert dead.collect().leaks == []
    assert str(victim) in dead.mounts()
    mounted = next(each for each in ledger.mounts() if each.point == str(victim))
    with pytest.raises(OSError, match="symbolic links"):
        sweep.unmount(ledger.Mount(mounted.id, str(bundle / "rootfs"), "tmpfs", "victim"))
    with pytest.raises(OSError, match="not what it was"):
        sweep.unmount(ledger.Mount(mounted.id + 1, str(victim), "tmpfs", "victim"))
    assert str(victim) in dead.mounts()


@pytest.mark.usefixtures("containerd")
def test_a_pid_that_is_somebody_elses_by_now_is_not_killed(dead: LedgerDoor) -> None:
    file = dead.pod_directory() / "c1" / "state.json"
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        known, init = json.loads(file.read_text()), init_of(dead)
        os.kill(init, signal.SIGKILL)
        eventually(lambda: not alive(init))
        file.write_text(json.dumps({**known, "pid": stranger.pid}))
        assert "process" not in kinds(dead.look())
        assert dead.collect().leaks == []
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.usefixtures("containerd")
def test_a_record_that_names_the_roots_of_the_hierarchies_removes_nothing(dead: LedgerDoor) -> None:
    file = dead.pod_directory() / "c1" / "state.json"
    known = json.loads(file.read_text())
    os.kill(known["pid"], signal.SIGKILL)
    eventually(lambda: not alive(known["pid"]))
    others = [top / f"{dead.cgroup_parent}-other" for top in hierarchies()]
    for each in others:
        each.mkdir()
    try:
        for path in ("..", f"../{others[0].parent.name}/{others[0].name}", f"/{dead.cgroup_parent}-other"):
            file.write_text(json.dumps({**known, "cgroups_path": path}))
            assert "cgroup" not in kinds(dead.look())
        assert dead.collect().leaks == []
        assert all(each.exists() for each in others)
    finally:
        for each in others:
            each.rmdir()


@pytest.mark.usefixtures("containerd")
def test_what_a_container_calls_its_processes_is_its_own_affair(door: LedgerDoor) -> None:
    """One in a PID namespace of its own, whose session's leader has ended: as if it had lost its shim."""
    pid = os.fork()
    if pid == 0:
        _pretend_in_a_container()
    os.waitpid(pid, 0)
    eventually(lambda: any(each.name == "LOG" and each.parent != pid for each in _pretenders()))
    (pretender,) = _pretenders()
    try:
        assert door.look().leaks == []
        assert door.collect().leaks == []
        assert alive(pretender.pid)
    finally:
        os.kill(pretender.pid, signal.SIGKILL)


# A process that is named as a stage of ours, of a session whose leader has ended.
_ORPHAN = """
import ctypes, os, signal
os.setsid()
if os.fork() == 0:
    ctypes.CDLL(None).prctl(15, b"manor:[LOG]", 0, 0, 0)
    print(os.getpid(), flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_stage_whose_shim_is_not_on_record_is_told_to_who_asks_for_the_directory_that_it_is_of(
    door: LedgerDoor, elsewhere: bool
) -> None:
    run_dir = f"{door.run_dir}-of-others" if elsewhere else str(door.run_dir)
    command = [sys.executable, "-c", _ORPHAN]
    with subprocess.Popen(
        command, env={**os.environ, "MANOR_RUN_DIR": run_dir}, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.wait()
        try:
            found = [each.made_by for each in door.look().leaks if each.what == f"{pid} manor:[LOG]"]
            assert found == ([] if elsewhere else ["a shim that is not on record"])
            door.collect()
            assert alive(pid)
        finally:
            os.kill(pid, signal.SIGKILL)


_MARK = "manor:[LOG]"


def _pretenders() -> list[ledger.Stage]:
    return [
        each
        for each in ledger.stages()
        if Path(f"/proc/{each.pid}/environ").exists()
        and len(_ns_pids(each.pid)) == 2
        and each.name == "LOG"
        and Path(f"/proc/{each.pid}/comm").read_text().strip() == _MARK
    ]


def _ns_pids(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1:] for line in lines if line.startswith("NSpid:"))


def _pretend_in_a_container() -> None:
    libc = ctypes.CDLL(None)
    os.setsid()
    libc.unshare(0x20000000)  # CLONE_NEWPID
    if os.fork() == 0:
        libc.prctl(15, _MARK.encode(), 0, 0, 0)
        signal.pause()
    os._exit(0)


def test_a_ledger_that_others_may_write_to_is_not_believed(
    dead: LedgerDoor, capsys: pytest.CaptureFixture[str]
) -> None:
    dead.pod_directory().chmod(0o777)
    assert leaks.main(["--run-dir", str(dead.run_dir), "--grace", "0", "--gc"]) == 2
    assert "others may write to it" in capsys.readouterr().err


@pytest.mark.usefixtures("containerd")
def test_a_pod_that_is_being_started_or_removed_is_left_to_who_does(dead: LedgerDoor) -> None:
    found = dead.look()
    with deed.hold(str(dead.pod_directory())):
        assert dead.look().leaks == []
        left = leaks.collect(str(dead.run_dir), found)
        assert left.failures == ["pod c1: somebody has it now"]
    assert alive(init_of(dead))


def test_a_dead_wardens_socket_is_found_and_removed(world: Door, door: LedgerDoor) -> None:
    door.run("c1", SLEEP)
    (lock,) = door.run_dir.glob("warden-*.lock")
    assert door.look().leaks == []
    for pid in world._processes():
        if Path(f"/proc/{pid}/comm").read_text().strip() == "manor-warden":
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: not alive(pid))  # type: ignore[misc]
    assert [(each.kind, each.made_by) for each in door.look().leaks] == [("socket", "warden")]
    assert door.collect().leaks == []
    assert not lock.exists()
    door.end("c1")


@pytest.mark.usefixtures("containerd")
def test_a_pod_of_a_newer_manor_whose_exits_cannot_be_read_is_left_alone(dead: LedgerDoor) -> None:
    init = init_of(dead)
    (dead.pod_directory() / "@exits").write_text('{"journal":99}\n')
    left = dead.collect()
    assert kinds(left) == ALL
    assert any("newer Manor" in failure for failure in left.failures)
    assert alive(init)
