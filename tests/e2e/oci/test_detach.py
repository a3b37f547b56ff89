"""run --detach: the command ends, the container lives on with the descriptors it was given."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.e2e.oci.conftest import Oci, cgroup_directories


def test_the_container_runs_when_the_command_has_ended(oci: Oci) -> None:
    bundle = oci.bundle()
    oci.ok("run", "-d", "-b", bundle.path, "c")
    state = oci.state("c")
    assert state["status"] == "running"
    with open(f"/proc/{state['pid']}/comm", encoding="utf-8") as comm:
        assert comm.read().strip() in ("sleep", "busybox")


def test_its_streams_are_the_callers_own(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "cat; echo out; echo err >&2; sleep 0.2; echo late")
    with open(oci.directory / "out", "w+b") as out:
        words = oci.words("run", "--detach", "-b", bundle.path, "c")
        done = subprocess.run(
            words, input=b"in\n", stdout=out, stderr=subprocess.STDOUT, env=oci.environment(), check=False
        )
    assert done.returncode == 0
    oci.await_status("c", "stopped")
    assert (oci.directory / "out").read_text() == "in\nout\nerr\nlate\n"


def test_a_pipe_ends_with_the_container_and_not_before(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "sleep 0.5; echo last")
    running = oci.begin("run", "-d", "-b", bundle.path, "c")
    assert running.wait(60) == 0
    assert running.stdout is not None
    assert running.stdout.read() == b"last\n"


def test_it_has_its_pid_file_when_the_command_ends(oci: Oci) -> None:
    bundle = oci.bundle()
    file = oci.directory / "pid"
    oci.ok("run", "-d", "--pid-file", file, "-b", bundle.path, "c")
    assert file.read_text() == str(oci.state("c")["pid"])


@pytest.mark.parametrize("program", ["nonsense", "/etc/passwd"])
def test_what_cannot_be_run_is_told_and_leaves_nothing(oci: Oci, program: str) -> None:
    bundle = oci.bundle(program)
    done = oci("run", "-d", "-b", bundle.path, "c")
    assert done.code == 1
    assert f'exec: "{program}": ' in done.error
    assert oci("state", "c").code == 1
    assert not cgroup_directories(bundle.path.name)


def test_a_pid_file_that_cannot_be_written_ends_the_container(oci: Oci) -> None:
    bundle = oci.bundle()
    done = oci("run", "-d", "--pid-file", "/nonexistent/pid", "-b", bundle.path, "c")
    assert done.code == 1
    assert "/nonexistent/" in done.error
    assert oci("state", "c").code == 1
    assert not cgroup_directories(bundle.path.name)


def test_a_detached_exec_lives_on(oci: Oci) -> None:
    name = oci.started()
    file = oci.directory / "pid"
    oci.ok("exec", "--detach", "--pid-file", file, name, "sh", "-c", "echo $$ > /tmp/mine; sleep 1000")
    pid = int(file.read_text())
    place = oci.directory / name / "rootfs/tmp/mine"
    deadline = time.monotonic() + 60
    while not place.exists() or not place.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        inner = next(line for line in status if line.startswith("NSpid:")).split()[-1]
    assert inner == place.read_text().strip()
