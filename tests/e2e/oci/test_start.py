"""start: once, and only what has been created."""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e.oci.conftest import Oci
from tests.harness.waiting import eventually


def test_it_runs_the_program(oci: Oci) -> None:
    name = oci.created()
    assert oci.ok("start", name) == ""
    assert oci.state(name)["status"] == "running"


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("running", "cannot start an already running container"),
        ("stopped", "cannot start a container that has stopped"),
        ("paused", "cannot start a container in the paused state"),
    ],
)
def test_what_was_started_is_refused(oci: Oci, how: str, told: str) -> None:
    name = oci.stopped() if how == "stopped" else oci.started()
    if how == "paused":
        oci.ok("pause", name)
    done = oci("start", name)
    assert done.code == 1
    assert done.error == told


def test_a_container_that_is_not_there_is_named(oci: Oci) -> None:
    oci.root.mkdir()
    done = oci("start", "nobody")
    assert done.code == 1
    assert "does not exist" in done.error


def test_two_starts_at_once_start_it_once(oci: Oci) -> None:
    name = oci.created("sh", "-c", "echo once >> /tmp/runs; sleep 1000")
    both = [
        subprocess.Popen(oci.words("start", name), stderr=subprocess.PIPE, env=oci.environment())
        for _each in range(2)
    ]
    if not oci.is_manor:  # its second one may wait for a writer of the FIFO as long as the container lives
        oci.await_status(name, "running")
        for each in both:
            each.kill()
    codes = sorted((each.communicate(), each.returncode)[1] for each in both)
    if oci.is_manor:
        assert codes == [0, 1]
    oci.await_status(name, "running")
    runs = oci.directory / name / "rootfs/tmp/runs"
    eventually(lambda: runs.exists() and runs.read_text())
    assert runs.read_text() == "once\n"


def test_a_program_that_cannot_be_executed_is_told(oci: Oci) -> None:
    bundle = oci.bundle("/broken")
    (bundle.rootfs / "broken").write_text("#!/nonsense foo\n")
    (bundle.rootfs / "broken").chmod(0o755)
    oci.ok("create", "-b", bundle.path, "c")
    done = oci("start", "c")
    if oci.is_manor:  # runc's init tells its own standard error
        assert done.code == 1
        assert "exec /broken: no such file or directory" in done.error
    oci.await_status("c", "stopped")


def test_an_init_that_was_killed_at_the_gate_is_not_started(oci: Oci) -> None:
    name = oci.created()
    oci.ok("kill", name, "KILL")
    oci.await_status(name, "stopped")
    done = oci("start", name)
    assert done.code == 1
    assert done.error == "cannot start a container that has stopped"
