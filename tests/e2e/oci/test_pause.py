"""pause and resume, of containers in every state."""

from __future__ import annotations

import time

from tests.e2e.oci.conftest import Oci


def test_a_paused_container_stands_still_until_it_is_resumed(oci: Oci) -> None:
    name = oci.started("sh", "-c", "while :; do echo . >> /tmp/ticks; sleep 0.01; done")
    ticks = oci.directory / name / "rootfs/tmp/ticks"
    oci.ok("pause", name)
    assert oci.state(name)["status"] == "paused"
    before = ticks.stat().st_size if ticks.exists() else 0
    time.sleep(0.2)
    assert (ticks.stat().st_size if ticks.exists() else 0) == before
    oci.ok("resume", name)
    assert oci.state(name)["status"] == "running"
    deadline = time.monotonic() + 60
    while not ticks.exists() or ticks.stat().st_size <= before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_created_container_can_be_paused_and_is_not_started_then(oci: Oci) -> None:
    name = oci.created()
    oci.ok("pause", name)
    assert oci.state(name)["status"] == "paused"
    assert name in [line.split()[0] for line in oci.ok("list").splitlines() if "paused" in line]
    done = oci("start", name)
    assert (done.code, done.error) == (1, "cannot start a container in the paused state")
    oci.ok("resume", name)
    assert oci.state(name)["status"] == "created"
    oci.ok("start", name)
    assert oci.state(name)["status"] == "running"


def test_a_paused_container_that_was_not_started_can_be_killed(oci: Oci) -> None:
    name = oci.created()
    oci.ok("pause", name)
    oci.ok("kill", name, "KILL")
    oci.await_status(name, "stopped")


def test_pause_and_resume_the_other_way_round_are_refused(oci: Oci) -> None:
    name = oci.started()
    done = oci("resume", name)
    assert (done.code, done.error) == (1, "container not paused")
    oci.ok("pause", name)
    done = oci("pause", name)
    assert (done.code, done.error) == (1, "container not running")
    stopped = oci.stopped()
    assert oci("pause", stopped).code == 1
