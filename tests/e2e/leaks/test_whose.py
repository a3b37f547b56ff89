"""`manor leaks --gc` with a ledger that is stale, damaged or hostile: what it names is another's, and stays."""

from __future__ import annotations

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
from manor.ledger import Untrusted
from runtime import state
from runtime.linux import procstat
from shim import deed
from tests.e2e.leaks.conftest import LedgerDoor, alive, kinds
from tests.e2e.leaks.test_leaks import SLEEP, dead, init_of
from tests.harness.waiting import eventually, remove_cgroup

__all__ = ["dead"]

pytestmark = pytest.mark.usefixtures("containerd")


@pytest.fixture
def bystander(door: LedgerDoor) -> Iterator[Path]:
    """A directory of somebody else's, with a file system of its own in it."""
    victim = door.directory / "victim"
    (victim / "below").mkdir(parents=True)
    (victim / "file").touch()
    subprocess.run(["mount", "-t", "tmpfs", "victim", victim / "below"], check=True)
    (victim / "below" / "file").touch()
    yield victim
    subprocess.run(["umount", "-l", victim / "below"], check=True)


def is_whole(victim: Path) -> bool:
    return (victim / "file").exists() and (victim / "below" / "file").exists()


def end_init(door: LedgerDoor) -> None:
    if init := init_of(door):
        os.kill(init, signal.SIGKILL)
        eventually(lambda: not alive(init))


def rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# ---- links, and what is mounted in the way -------------------------------------------------------


def test_a_directory_of_a_pod_that_leads_elsewhere_is_not_believed(
    dead: LedgerDoor, bystander: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(dead.pod_directory(), dead.directory / "real")
    bystander.chmod(0o700)
    (dead.run_dir / "pods" / "linked").symlink_to(bystander)
    try:
        assert leaks.main(["--run-dir", str(dead.run_dir), "--grace", "0", "--gc"]) == 2
        assert "which is no pod's" in capsys.readouterr().err
        (dead.directory / "real").chmod(0o700)
        (dead.run_dir / "pods" / "linked").unlink()
        (dead.run_dir / "pods" / "linked").symlink_to(dead.directory / "real")  # a pod's, but of another name
        with pytest.raises(Untrusted):
            dead.look()
    finally:
        (dead.run_dir / "pods" / "linked").unlink()
        shutil.rmtree(dead.directory / "real")
    assert is_whole(bystander)
    assert dead.collect().leaks == []


@pytest.mark.parametrize("name", ["linked", "c1", "@pod"])
def test_what_a_link_in_a_pods_directory_leads_to_stays(dead: LedgerDoor, bystander: Path, name: str) -> None:
    end_init(dead)
    place = dead.pod_directory() / name
    if place.exists():
        place.rename(dead.directory / "c1-before")
    place.symlink_to(bystander)
    dead.collect()
    assert is_whole(bystander)
    assert str(bystander / "below") in dead.mounts()
    assert not place.is_symlink()


def test_a_mount_at_the_end_of_a_linked_pods_files_stays(dead: LedgerDoor, bystander: Path) -> None:
    shm = bystander / "shm"
    shm.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "shm", shm], check=True)
    (dead.pod_directory() / "@pod").symlink_to(bystander)
    try:
        assert dead.collect().leaks == []
        assert str(shm) in dead.mounts()
    finally:
        subprocess.run(["umount", "-l", shm], check=True)


@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
@pytest.mark.parametrize("place", ["c1/data", "@pod/data"])
def test_what_is_mounted_in_a_pods_directory_is_not_emptied(
    dead: LedgerDoor, bystander: Path, kind: str, place: str
) -> None:
    """A bind mount of the same file system looks like a plain directory to whoever looks at device numbers."""
    point = dead.pod_directory() / place
    point.mkdir(parents=True)
    source = bystander if kind == "bind" else bystander / "below"
    subprocess.run(["mount", "--bind", source, point], check=True)
    try:
        left = dead.collect()
        assert any("busy" in failure for failure in left.failures)
        assert is_whole(bystander)
    finally:
        subprocess.run(["umount", "-l", point], check=True)
    assert dead.collect().leaks == []


def test_a_fifo_in_place_of_a_note_keeps_nobody_waiting(dead: LedgerDoor) -> None:
    directory = dead.pod_directory()
    for place in ("@shim", "@socket", "@exits", "c1/.create", "c1/.cgroup", "c1/.rdt"):
        (directory / place).unlink(missing_ok=True)
        os.mkfifo(directory / place)
    bundles = dead.directory / "bundles"
    (bundles / "c1").rename(bundles / "gone")  # whose containerd it was, nobody can tell
    command = [sys.executable, "-m", "manor", "leaks", "--run-dir", str(dead.run_dir), "--grace", "0", "--gc"]
    subprocess.run(command, check=True, timeout=60)
    assert dead.state_directories() == []


# ---- what cannot be understood ---------------------------------------------------------------------


@pytest.mark.parametrize("what", ["@shim", "@socket", "c1/state.json", "note"])
def test_a_pod_whose_files_are_damaged_does_not_keep_the_others(
    dead: LedgerDoor, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes before them, too."""
    other = dead.run_dir / "pods" / "0000"
    shutil.copytree(dead.pod_directory(), other, copy_function=shutil.copy2)
    other.chmod(0o700)
    bundle = dead.directory / "bundles" / "before"
    bundle.mkdir()
    rewrite(other / "c1" / "state.json", bundle=str(bundle), cgroups_path="/nowhere", pid=2**22)
    for name in (".cgroup", ".create"):
        (other / "c1" / name).unlink()
    if what == "note":
        (bundle / "manor-exit.json").write_text('{"journal":99}\n')
    elif what == "c1/state.json":
        rewrite(other / what, pid=2**40, unit=5, terms="x")
    elif what == "@shim":
        rewrite(other / what, began=10**400)
        bundle.rmdir()
    else:
        (other / what).write_text("/s/\0/0000")
    code = leaks.main(["--run-dir", str(dead.run_dir), "--grace", "0", "--gc"])
    told = capsys.readouterr()
    assert dead.cgroups() == []
    if what == "note":
        assert (code, [str(other)]) == (1, dead.state_directories())
        assert "newer Manor" in told.err
    else:
        assert (code, told.err, dead.state_directories()) == (0, "", [])
    shutil.rmtree(other, ignore_errors=True)


def test_what_is_left_of_a_pod_is_said(dead: LedgerDoor, capsys: pytest.CaptureFixture[str]) -> None:
    (dead.pod_directory() / "@events").mkdir()
    assert leaks.main(["--run-dir", str(dead.run_dir), "--grace", "0", "--gc"]) == 1
    assert "is not empty" in capsys.readouterr().err
    (dead.pod_directory() / "@events").rmdir()
    assert dead.collect().leaks == []


# ---- numbers that are used again, and names ------------------------------------------------------


@pytest.mark.parametrize("end", ["\r", "\n", "\x0b", "\x85", "\udcff"])
def test_what_others_call_their_directories_hides_nothing(
    dead: LedgerDoor, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pod names the directories of its volumes, of which the kubelet may mount one by itself."""
    inside, place = dead.directory / f"in{end}side", dead.directory / f"vol{end}ume"
    inside.mkdir()
    place.mkdir()
    subprocess.run(["mount", "--bind", inside, place], check=True)
    try:
        assert leaks.main(["--run-dir", str(dead.run_dir), "--grace", "0", "--gc"]) == 0
        assert "removed 6 of 6" in capsys.readouterr().out
        assert str(place) in [each.point for each in ledger.mounts()]
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_the_stages_of_a_shim_that_has_the_dead_ones_pid_are_not_killed(dead: LedgerDoor) -> None:
    """A pid is free when its session is, and the next one that has it may be the leader of a session, too."""
    script = "import ctypes; ctypes.CDLL(None).prctl(15, b'manor:[LOG]', 0, 0, 0); print(flush=True); input()"
    stranger = subprocess.Popen(
        ["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert stranger.stdout is not None
    stranger.stdout.readline()
    try:
        rewrite(dead.pod_directory() / "@shim", pid=stranger.pid)
        noted = deed.read(str(dead.pod_directory()))
        assert noted is not None
        assert noted.start_time != procstat.start_time(stranger.pid)
        assert stranger.pid in [each.pid for each in ledger.stages()]
        assert not any(str(stranger.pid) in each.what for each in dead.look().leaks)
        assert dead.collect().leaks == []
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()


def test_a_socket_of_another_name_is_not_the_pods(dead: LedgerDoor) -> None:
    other = dead.directory / "other"
    subprocess.run(["python3", "-c", f"import socket; socket.socket(1).bind({str(other)!r})"], check=True)
    (dead.pod_directory() / "@socket").write_text(str(other))
    assert "socket" not in kinds(dead.look())
    assert dead.collect().leaks == []
    assert other.exists()


def test_a_bundle_that_was_made_anew_keeps_its_root_and_gets_no_note(dead: LedgerDoor) -> None:
    """containerd has forgotten the container; the next of that id is another runtime's, and its bundle lies there."""
    bundle = dead.directory / "bundles" / "c1"
    subprocess.run(["umount", "-l", bundle / "rootfs"], check=True)
    bundle.rename(dead.directory / "bundles" / "before")
    (bundle / "rootfs").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "theirs", bundle / "rootfs"], check=True)
    assert "mount" not in kinds(dead.look())
    assert dead.collect().leaks == []
    assert str(bundle / "rootfs") in dead.mounts()
    assert [each.name for each in bundle.iterdir()] == ["rootfs"]


def test_a_root_that_somebody_lives_in_is_left_to_him(
    dead: LedgerDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "END_S", 0.5)
    rootfs = dead.directory / "bundles" / "c1" / "rootfs"
    stranger = subprocess.Popen(["chroot", rootfs, "sleep", "1000"])
    try:
        eventually(lambda: os.readlink(f"/proc/{stranger.pid}/root") == str(rootfs))
        left = dead.collect()
        assert [each.held_by for each in left.leaks if each.kind == "mount"] == [(stranger.pid,)]
        assert any(f"in use by {stranger.pid}" in failure for failure in left.failures)
        assert str(rootfs) in dead.mounts()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    assert dead.collect().leaks == []


SILENT = """
import ctypes, errno, os, struct, sys
libc, place = ctypes.CDLL(None, use_errno=True), sys.argv[1].encode()
server = os.open("/dev/fuse", os.O_RDWR)
def succeed(failed):
    if failed:
        sys.exit(os.strerror(ctypes.get_errno()))
succeed(libc.unshare(0x00020000))
succeed(libc.mount(b"none", b"/", None, 0x44000, None))
options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other"
succeed(libc.mount(b"silent", place, b"fuse", 0, options.encode()))
if os.fork() == 0:
    os.close(server)
    os.chroot(place)
    os.chdir("/")
    print("there", flush=True)
    sys.stdin.read()
    os._exit(0)
while True:
    request = os.read(server, 1 << 17)
    _length, what, number, _node = struct.unpack_from("=IIQQ", request)
    if what == 26:
        answer = struct.pack("=4I2H2I2H8I", 7, 31, 65536, 0, 12, 8, 65536, 1, 0, 0, *[0] * 8)
        os.write(server, struct.pack("=IiQ", 16 + len(answer), 0, number) + answer)
    elif what != 3:  # FUSE_GETATTR
        os.write(server, struct.pack("=IiQ", 16, -errno.ENOSYS, number))
"""


def test_a_process_whose_root_does_not_answer_keeps_nobody_waiting(dead: LedgerDoor) -> None:
    """A file server that is gone, or a container with /dev/fuse and enough rights to mount."""
    place = dead.directory / "silent"
    place.mkdir()
    silent = subprocess.Popen(
        [sys.executable, "-c", SILENT, place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    looking: subprocess.Popen[bytes] | None = None
    assert silent.stdout is not None
    assert silent.stderr is not None
    try:
        if not silent.stdout.readline():
            pytest.skip(f"no FUSE: {silent.stderr.read().decode()}")
        command = [sys.executable, "-m", "manor", "leaks", "--run-dir", str(dead.run_dir), "--grace", "0"]
        looking = subprocess.Popen([*command, "--gc"])
        assert looking.wait(60) == 0
    finally:
        os.killpg(silent.pid, signal.SIGKILL)  # first: who waits for an answer cannot be killed
        silent.communicate()
        if looking is not None:
            looking.kill()
            looking.wait()
    assert dead.state_directories() == []


@pytest.mark.parametrize("by", ["bundle", "root_on_host"])
def test_a_record_that_names_another_pods_root_takes_nothing_from_it(dead: LedgerDoor, by: str) -> None:
    """c2 lives; the dead c1's record names its bundle, or its root."""
    first = dead.pod_directory()
    dead.client.close()
    dead.address = ""
    init = dead.run("c2", SLEEP)
    bundle = dead.directory / "bundles" / "c2"
    subprocess.run(["mount", "--bind", bundle / "rootfs", bundle / "rootfs"], check=True)
    file = first / "c1" / "state.json"
    terms = json.loads(file.read_text())["terms"]
    end_init_in(first)
    if by == "bundle":
        rewrite(file, bundle=str(bundle))
        (first / "c1" / ".create").unlink()
    else:
        rewrite(file, terms={**terms, "root_on_host": f"{bundle}/rootfs"})
    assert f"{bundle}/rootfs" not in [each.what for each in dead.look().leaks]
    leaks.collect(str(dead.run_dir), dead.look())
    assert f"{bundle}/rootfs" in dead.mounts()
    assert not (bundle / "manor-exit.json").exists()
    assert alive(init)
    subprocess.run(["umount", "-l", bundle / "rootfs"], check=True)
    dead.end("c2")


def end_init_in(directory: Path) -> None:
    known = state.load(str(directory), "c1")
    os.kill(known.pid, signal.SIGKILL)
    eventually(lambda: not alive(known.pid))


def test_a_cgroup_of_which_a_part_was_made_anew_keeps_that_part(dead: LedgerDoor) -> None:
    if len(dead.cgroups()) < 2:
        pytest.skip("one hierarchy")
    end_init(dead)
    cgroups = dead.cgroups()
    for each in cgroups[::2]:
        remove_cgroup(each)
        each.mkdir()
    assert dead.collect().leaks == []
    assert dead.cgroups() == cgroups[::2]
