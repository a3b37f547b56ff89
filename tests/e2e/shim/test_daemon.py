"""The shim as a process: started, shared by a pod, ended, killed and cleaned up after; and what it may not do."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from runtime.linux import procstat
from shim import deed, install
from shim.api import task
from shim.api.codec import decode, encode
from shim.api.options import Options
from shim.api.types import pack
from tests.e2e.shim.door import Door, overlay
from tests.harness.instances import hierarchies
from tests.harness.processes import memory_kb
from tests.harness.waiting import eventually
from tests.unit.shim.installed import make_code, own_shim

POD = {"io.kubernetes.cri.sandbox-id": "pod1"}
SLEEP = ["sleep", "1000"]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_start_answers_with_an_address_and_leaves_it_in_the_bundle(door: Door) -> None:
    bundle = door.bundle("c1", SLEEP)
    done = door.launch("start", "c1")
    door.address = done.stdout.decode()
    assert re.fullmatch(r"unix:///run/containerd/s/[0-9a-f]{64}", door.address)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (bundle.path / "address").read_text() == door.address


def test_start_in_protobuf_is_answered_in_protobuf_and_uses_the_directory_it_names(door: Door) -> None:
    door.bundle("c1", SLEEP)
    answer = door.start_elsewhere("c1")
    assert answer.address.startswith(f"unix://{door.directory}/s/")
    assert (answer.version, answer.protocol) == (3, "ttrpc")


def test_containers_of_a_pod_share_a_shim_and_others_do_not(door: Door) -> None:
    door.run("c1", SLEEP, POD)
    first = door.address
    door.bundle("c2", SLEEP, POD)
    assert door.launch("start", "c2").stdout.decode() == first
    door.create("c2")
    door.bundle("c3", SLEEP)
    other = door.launch("start", "c3").stdout.decode()
    assert other != first
    Path(other.removeprefix("unix://")).unlink()
    door.ask("Shutdown", task.ShutdownRequest("c1"))
    door.end("c1")
    door.end("c2")


def test_the_shim_of_the_last_container_ends_when_asked_and_leaves_nothing(door: Door) -> None:
    door.run("c1", SLEEP)
    pid = door.shim_pid()
    door.ask("Shutdown", task.ShutdownRequest("c1"))
    door.end("c1")
    assert is_alive(pid)
    door.ask("Shutdown", task.ShutdownRequest("c1"))
    eventually(lambda: not is_alive(pid))
    assert not Path(door.address.removeprefix("unix://")).exists()
    assert door.state_directories() == []
    assert door.events.topics() == ["create", "start", "exit c1", "delete"]


def test_a_shim_that_is_told_to_end_leaves_its_containers_running(door: Door) -> None:
    init = door.run("c1", SLEEP)
    pid = door.shim_pid()
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not is_alive(pid))
    assert is_alive(init)
    assert door.launch("delete", "c1").returncode == 0
    eventually(lambda: not is_alive(init))


def test_delete_after_a_killed_shim_removes_all_that_its_pod_had(door: Door, tmp_path: Path) -> None:
    bundle = door.bundle("c1", SLEEP, POD)
    os.rename(bundle.rootfs, bundle.path / "unused")
    bundle.rootfs.mkdir()
    (tmp_path / "image").mkdir()
    door.start("c1")
    first = door.create("c1", overlay(tmp_path / "image"))
    door.ask("Start", task.StartRequest("c1"))
    second = door.run("c2", SLEEP, POD)
    door.exec("c1", "e1", SLEEP)
    os.kill(door.shim_pid(), signal.SIGKILL)
    time.sleep(0.05)
    assert is_alive(first)
    done = door.launch("delete", "c1")
    answer = decode(task.DeleteResponse, done.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (answer.pid, answer.exit_status) == (first, 137)
    assert answer.exited_at is not None
    eventually(lambda: not is_alive(first) and not is_alive(second))
    assert (door.cgroups(), door.mounts(), door.state_directories()) == ([], [], [])
    assert not Path(door.address.removeprefix("unix://")).exists()
    again = door.launch("delete", "c2")
    assert (again.returncode, again.stderr) == (0, b"")


def test_delete_leaves_a_pod_whose_shim_is_alive_alone(door: Door) -> None:
    init = door.run("c1", SLEEP, POD)
    door.bundle("c2", SLEEP, POD)
    door.launch("start", "c2")
    assert door.launch("delete", "c2").returncode == 0
    assert door.launch("delete", "c1").returncode == 0
    assert is_alive(init)
    door.end("c1")


def test_delete_finds_a_shim_that_listens_in_a_directory_of_containerds_choice(door: Door) -> None:
    """A container that joined its pod's shim without a start of its own has nothing in its bundle about it."""
    init = door.run_elsewhere("c1", SLEEP, POD)
    joined = door.bundle("c2", SLEEP, POD)
    second = door.create("c2")
    assert not (joined.path / "address").exists()
    assert door.launch("delete", "c2").returncode == 0
    assert is_alive(init)
    assert is_alive(second)
    door.end("c2")
    door.end("c1")


def test_delete_of_what_never_was_succeeds(door: Door) -> None:
    door.bundle("c1", SLEEP)
    done = door.launch("delete", "c1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert decode(task.DeleteResponse, done.stdout).exit_status == 137


def test_delete_after_a_refused_create_leaves_the_cgroup_to_the_container_that_has_it(door: Door) -> None:
    init = door.run("c1", SLEEP)
    bundle = door.bundle("c2", SLEEP)
    bundle.config["linux"]["cgroupsPath"] = f"/{door.cgroup_parent}/c1"
    bundle.write()
    first = door.client
    door.start("c2")
    shim = door.shim_pid()
    with pytest.raises(Exception, match="in use"):
        door.create("c2")
    door.ask("Shutdown", task.ShutdownRequest("c2"))
    eventually(lambda: not is_alive(shim))
    done = door.launch("delete", "c2")
    assert (done.returncode, done.stderr) == (0, b"")
    time.sleep(0.2)
    assert is_alive(init)
    assert door.cgroups() != []
    door.client.close()
    door.client = first
    door.end("c1")
    assert door.cgroups() == []


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_delete_copes_with_a_damaged_state(door: Door, damage: str) -> None:
    init = door.run("c1", SLEEP)
    os.kill(door.shim_pid(), signal.SIGKILL)
    (directory,) = door.state_directories()
    (Path(directory) / "c1/state.json").write_text(damage)
    done = door.launch("delete", "c1")
    assert done.returncode == 0
    assert b"c1" in done.stderr
    eventually(lambda: not is_alive(init))
    assert (door.cgroups(), door.state_directories()) == ([], [])


def test_a_shim_joins_the_cgroup_that_the_handlers_options_name(door: Door) -> None:
    door.bundle("c1", SLEEP)
    name = f"{door.cgroup_parent}/shims"
    for top in hierarchies():
        (top / name).mkdir(parents=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # empty in a new cgroup of version 1
            if (top / name / setting).exists() and not (top / name / "cgroup.controllers").exists():
                for directory in (top / door.cgroup_parent, top / name):
                    (directory / setting).write_text((top / setting).read_text())
    done = door.launch("start", "c1", encode(pack(Options(shim_cgroup=f"/{name}"))))
    assert done.returncode == 0, done.stderr
    door.start("c1")
    paths = {line.split(":")[2] for line in Path(f"/proc/{door.shim_pid()}/cgroup").read_text().split()}
    assert paths == {f"/{name}"}


def test_that_cgroup_need_not_be_in_all_hierarchies(door: Door) -> None:
    door.bundle("c1", SLEEP)
    name = f"{door.cgroup_parent}/shims"
    first, *_others = hierarchies()
    (first / name).mkdir(parents=True)
    for setting in ("cpuset.cpus", "cpuset.mems"):
        if (first / name / setting).exists() and not (first / name / "cgroup.controllers").exists():
            for directory in (first / door.cgroup_parent, first / name):
                (directory / setting).write_text((first / setting).read_text())
    done = door.launch("start", "c1", encode(pack(Options(shim_cgroup=f"/{name}"))))
    assert done.returncode == 0, done.stderr
    door.start("c1")
    assert str(door.shim_pid()) in (first / name / "cgroup.procs").read_text().split()


def test_a_start_that_fails_says_why_and_leaves_no_socket(door: Door) -> None:
    bundle = door.bundle("c1", SLEEP)
    (bundle.path / "config.json").write_text("{")
    done = door.launch("start", "c1")
    assert done.returncode != 0
    assert b"config.json" in done.stderr
    (bundle.path / "config.json").write_text("{}")
    (bundle.path / "address").mkdir()
    done = door.launch("start", "c1")
    assert done.returncode != 0
    (bundle.path / "address").rmdir()
    assert door.launch("delete", "c1").returncode == 0


@pytest.mark.parametrize("action", ["start", "delete"])
def test_a_run_directory_that_others_may_write_to_is_refused(door: Door, action: str) -> None:
    """They could put a pod there whose record names what is theirs or the node's, for us to kill and to remove."""
    door.bundle("c1", SLEEP)
    door.run_dir.chmod(0o777)
    done = door.launch(action, "c1")
    assert (done.returncode, done.stdout) == (1, b"")
    assert f"directory {door.run_dir}: others may write to it" in done.stderr.decode()
    assert list(door.run_dir.iterdir()) == []


def test_a_shim_that_had_to_do_without_a_warden_says_so_in_containerds_log(
    door: Door, tmp_path: Path
) -> None:
    code = make_code(tmp_path / "code")
    own_shim(code, START_S=0)
    door.program = install.write_launcher(tmp_path, code)
    log = door.bundle("c1", SLEEP).path / "log"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        door.start("c1")
        eventually(lambda: select.select([reader], [], [], 1)[0])
        line = os.read(reader, 4096).decode()
    finally:
        os.close(reader)
    assert "level=warning" in line
    assert 'msg="no warden (no warden came up within 0 s): the shim ' in line


@pytest.mark.parametrize("words", [["frobnicate"], [], ["-frob"]])
def test_a_command_that_does_not_exist_is_refused(door: Door, words: list[str]) -> None:
    done = subprocess.run(
        [str(door.program), *words],
        env=door.environ,
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"containerd-shim-manor-v2: ")


def test_nothing_is_loaded_after_the_fork(door: Door, tmp_path: Path) -> None:
    """A late import is memory that no other shim shares, and reads a file that an upgrade may have replaced."""
    door.bundle("c1", SLEEP)
    door.bundle("c2", ["no-such-program"])
    door.start("c1")
    trace = tmp_path / "trace"
    strace = subprocess.Popen(
        [
            "strace",
            "-f",
            "-qq",
            "-e",
            "trace=openat,open,execve",
            "-o",
            str(trace),
            "-p",
            str(door.shim_pid()),
        ]
    )
    try:
        eventually(lambda: "TracerPid:\t0" not in Path(f"/proc/{door.shim_pid()}/status").read_text())
        door.create("c1")
        door.ask("Start", task.StartRequest("c1"))
        for method, request in (
            ("Stats", task.StatsRequest("c1")),
            ("Pids", task.PidsRequest("c1")),
            ("Pause", task.PauseRequest("c1")),
            ("Resume", task.ResumeRequest("c1")),
        ):
            door.ask(method, request)
        door.exec("c1", "e1", ["true"])
        door.wait("c1", "e1")
        with pytest.raises(Exception, match="no-such-program"):
            door.create("c2")
        door.end("c1")
    finally:
        strace.terminate()
        strace.wait()
    opened = re.findall(r'open(?:at)?\([^"]*"([^"]+)"', trace.read_text())
    assert len(opened) > 50
    assert [path for path in opened if re.search(r"\.(py|pyc|so)\b|/python3", path)] == []


def test_a_shim_does_nothing_while_nothing_happens(running: Door) -> None:
    pid = running.shim_pid()

    def sleeps() -> int:
        """How often it went to sleep: once more for each time that it was woken."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches:"))

    for _second in range(5):  # it may still have had something to do in the first of them
        before = sleeps()
        time.sleep(1)
        if sleeps() == before:
            return
    pytest.fail("it never slept for a second")


def test_a_thousand_execs_cost_a_shim_no_descriptor_and_hardly_any_memory(running: Door) -> None:
    pid = running.shim_pid()

    def execs(count: int) -> None:
        for number in range(count):
            running.exec("c1", f"e{number}", ["true"])
            assert running.wait("c1", f"e{number}") == 0
            running.delete("c1", f"e{number}")

    execs(50)
    descriptors, memory = running.shim_fds(), memory_kb(pid)["Anonymous"]
    execs(300)
    eventually(lambda: running.shim_fds() == descriptors)
    assert memory_kb(pid)["Anonymous"] - memory < 300
    assert running.zombies() == []


def test_delete_after_a_create_that_was_cut_short_removes_what_was_made_for_it(door: Door) -> None:
    """By whichever container of the pod it comes for first."""
    door.run("c1", SLEEP, POD)
    there, go_on = door.directory / "there", door.directory / "go-on"
    bundle = door.bundle("c2", SLEEP, POD)
    script = f"touch {there}; while ! [ -e {go_on} ]; do sleep 0.05; done; rm {there}"
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    bundle.write()
    shim = door.shim_pid()
    request = task.CreateTaskRequest(id="c2", bundle=str(bundle.path))
    door.client.begin(task.SERVICE_V2, "Create", encode(request))
    eventually(there.exists)
    assert len({path.name for path in door.cgroups()}) == 2
    os.kill(shim, signal.SIGKILL)
    eventually(lambda: not is_alive(shim))
    for container_id in ("c1", "c2"):
        done = door.launch("delete", container_id)
        assert (done.returncode, done.stderr) == (0, b"")
    go_on.touch()
    eventually(lambda: not there.exists())  # a hook is nobody's but its own
    assert (door.cgroups(), door.mounts(), door.state_directories()) == ([], [], [])


def test_delete_waits_for_whoever_still_makes_something_for_the_pod_but_not_for_ever(door: Door) -> None:
    door.run("c1", SLEEP)
    (directory,) = door.state_directories()
    shim = door.shim_pid()
    os.kill(shim, signal.SIGKILL)
    eventually(lambda: not is_alive(shim))
    with deed.hold(directory):
        done = door.launch("delete", "c1")
    assert done.returncode == 0
    assert b"has not ended" in done.stderr
    assert (door.cgroups(), door.state_directories()) == ([], [])


def test_a_shims_directory_says_whose_it_is_from_before_its_socket_until_its_end(door: Door) -> None:
    door.bundle("c1", SLEEP)
    door.start("c1")
    (directory,) = door.state_directories()
    said = deed.read(directory)
    assert said is not None
    assert (said.pid, said.namespace, said.id) == (door.shim_pid(), "test", "c1")
    assert said.start_time == procstat.start_time(said.pid)
    assert f"unix://{said.socket}" == door.address
    assert said.bundle == str(door.directory / "bundles" / "c1")
    with pytest.raises(TimeoutError):
        deed.take(directory, 0)
    door.ask("Shutdown", task.ShutdownRequest("c1"))
    eventually(lambda: not is_alive(said.pid))
    assert door.state_directories() == []
