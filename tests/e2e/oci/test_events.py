"""events: counters of a container now and then, its OOM kills, and the end when it ends."""

from __future__ import annotations

import json
import select
import subprocess
import time
from typing import Any

import pytest

from runtime.cgroups.layout import UNIFIED, detect_layout
from tests.e2e.oci.conftest import Oci

MIB = 1 << 20


def read_event(running: subprocess.Popen[bytes], timeout_s: float = 60) -> dict[str, Any]:
    """The next line of a running `events`."""
    assert running.stdout is not None
    assert select.select([running.stdout], [], [], timeout_s)[0], "no event came"
    line = running.stdout.readline()
    assert line, "it has ended"
    event: dict[str, Any] = json.loads(line)
    return event


def keys(value: Any, path: str = "") -> list[str]:
    """Every key of nested JSON objects, in order, but for those of counters that come and go with the kernel."""
    found = []
    if isinstance(value, dict):
        for key, below in value.items():
            found.append(f"{path}/{key}")
            if key not in ("raw", "hugetlb"):
                found += keys(below, f"{path}/{key}")
    return found


def test_stats_have_runcs_fields(oci: Oci) -> None:
    name = oci.started()
    (line,) = oci.ok("events", "--stats", name).splitlines()
    event = json.loads(line)
    assert (event["type"], event["id"]) == ("stats", name)
    data = event["data"]
    assert list(data) == [
        *("cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces")
    ]
    assert data["cpu"]["usage"]["total"] > 0
    assert {"kernel", "user"} <= set(data["cpu"]["usage"])
    assert data["pids"]["current"] == 1
    assert data["memory"]["usage"]["usage"] > 0
    assert data["memory"]["raw"]


def test_stats_follow_the_limits_and_the_load(oci: Oci) -> None:
    def limited(config: dict[str, Any]) -> None:
        config["linux"]["resources"] |= {
            "memory": {"limit": 64 * MIB},
            "pids": {"limit": 20},
            "cpu": {"quota": 20000, "period": 100000, "cpus": "0"},
        }

    name = oci.started("sh", "-c", "sleep 1000 & while :; do :; done", change=limited)
    deadline = time.monotonic() + 60
    while True:
        data = json.loads(oci.ok("events", "--stats", name))["data"]
        throttling = data["cpu"].get("throttling", {})
        # The kernel adds up the time when a task runs again, long after it has counted the period on a busy machine.
        if throttling.get("throttledPeriods", 0) > 1 and throttling.get("throttledTime", 0) > 0:
            break
        assert time.monotonic() < deadline, throttling
    assert data["memory"]["usage"]["limit"] == 64 * MIB
    assert data["pids"] == {"current": 2, "limit": 20}
    if oci.is_manor or detect_layout().mode != UNIFIED:  # runc tells nothing of v2's
        assert data["cpuset"]["cpus"] == [0]
    assert data["cpu"]["usage"]["total"] > 10_000_000  # nanoseconds


@pytest.mark.manor_only("runs runc as well, and compares")
def test_both_say_the_same_of_the_same_container(oci: Oci) -> None:
    from tests.harness import tools

    name = oci.started()
    other = Oci("runc", tools.program(tools.RUNC_1, "runc"), oci.directory / "other", made=100)
    other.directory.mkdir()
    try:
        ours = json.loads(oci.ok("events", "--stats", name))["data"]
        theirs = json.loads(other.ok("events", "--stats", other.started()))["data"]
    finally:
        other.clean()
    assert keys(ours) == keys(theirs)
    assert set(ours["memory"]["raw"]) == set(theirs["memory"]["raw"])
    assert ours["cpuset"] == theirs["cpuset"]


def test_events_come_at_the_interval_until_the_container_ends(oci: Oci) -> None:
    name = oci.started()
    running = oci.begin("events", "--interval", "100ms", name)
    first, second = read_event(running), read_event(running)
    assert (first["type"], second["type"]) == ("stats", "stats")
    assert second["data"]["cpu"]["usage"]["total"] >= first["data"]["cpu"]["usage"]["total"]
    oci.ok("kill", name, "KILL")
    oci.await_status(name, "stopped")
    oci.ok("delete", name)
    assert running.wait(60) == 0


@pytest.mark.manor_only("runc goes on until the cgroup is removed")
def test_events_end_with_init(oci: Oci) -> None:
    name = oci.started()
    running = oci.begin("events", "--interval", "100ms", name)
    read_event(running)
    oci.ok("kill", name, "KILL")
    assert running.wait(60) == 0


def test_an_oom_kill_is_an_event(oci: Oci) -> None:
    def small(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["memory"] = {"limit": 16 * MIB, "swap": 16 * MIB}

    # A child that eats memory when told to, so that init outlives it.
    script = "until [ -e /go ]; do sleep 0.05; done; tail -c 64m /dev/zero; sleep 1000"
    name = oci.started("sh", "-c", script, change=small)
    running = oci.begin("events", "--interval", "200ms", name)
    assert read_event(running)["type"] == "stats"  # it watches from before the first
    (oci.directory / name / "rootfs" / "go").touch()
    deadline = time.monotonic() + 60
    while (event := read_event(running))["type"] == "stats":
        assert time.monotonic() < deadline, "no OOM event came"
    assert event == {"type": "oom", "id": name}


@pytest.mark.parametrize("interval", ["0", "-1s", "0ms"])
def test_an_interval_must_be_more_than_nothing(oci: Oci, interval: str) -> None:
    name = oci.started()
    assert oci("events", f"--interval={interval}", name).error == "duration interval must be greater than 0"


def test_a_stopped_container_has_no_events(oci: Oci) -> None:
    name = oci.stopped()
    for words in (["events", name], ["events", "--stats", name]):
        assert oci(*words).error == f"container with id {name} is not running"


def test_a_paused_container_has_stats(oci: Oci) -> None:
    name = oci.started()
    oci.ok("pause", name)
    assert json.loads(oci.ok("events", "--stats", name))["data"]["pids"]["current"] == 1
