"""kill: which signal reaches whom."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.oci.conftest import Oci

# Says which signal came, into a file of the bundle's root.
TRAPS = 'for s in USR1 HUP WINCH TERM; do trap "echo $s >> /said" $s; done; echo ready >> /said; '
TRAPS += "while :; do sleep 0.05; done"


def said(oci: Oci, name: str, wanted: str, timeout_s: float = 60) -> None:
    file = oci.directory / name / "rootfs" / "said"
    deadline = time.monotonic() + timeout_s
    while not file.exists() or wanted not in file.read_text().split():
        assert time.monotonic() < deadline, f"{wanted} has not come"
        time.sleep(0.02)
    file.write_text("")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["USR1"], "USR1"),
        (["SIGUSR1"], "USR1"),
        (["usr1"], "USR1"),
        (["sigHup"], "HUP"),
        (["10"], "USR1"),
        (["28"], "WINCH"),
        ([], "TERM"),
        ([""], "TERM"),
    ],
)
def test_a_signal_goes_by_name_or_number(oci: Oci, words: list[str], wanted: str) -> None:
    name = oci.started("sh", "-c", TRAPS)
    said(oci, name, "ready")
    oci.ok("kill", name, *words)
    said(oci, name, wanted)


def test_all_is_taken_for_old_times_sake(oci: Oci) -> None:
    name = oci.started("sh", "-c", TRAPS)
    said(oci, name, "ready")
    oci.ok("kill", "--all", name, "USR1")
    said(oci, name, "USR1")


def test_kill_ends_the_container(oci: Oci) -> None:
    name = oci.started()
    oci.ok("kill", name, "KILL")
    oci.await_status(name, "stopped")
    assert oci("kill", name, "KILL").error == "container not running"
    assert oci("kill", name).error == "container not running"
    oci.ok("kill", "--all", name, "KILL")


def test_a_created_container_can_be_killed(oci: Oci) -> None:
    name = oci.created()
    oci.ok("kill", name, "SIGKILL")
    oci.await_status(name, "stopped")


def test_sigkill_reaches_a_paused_container(oci: Oci) -> None:
    name = oci.started()
    oci.ok("pause", name)
    oci.ok("kill", name, "9")
    oci.await_status(name, "stopped")


def test_signal_zero_asks_whether_it_runs(oci: Oci) -> None:
    name = oci.started()
    oci.ok("kill", name, "0")
    oci.ok("kill", name, "KILL")
    oci.await_status(name, "stopped")
    assert oci("kill", name, "0").error == "container not running"


@pytest.mark.parametrize("text", ["FOO", "SIG", "SIGFOO", "9x", "KILL ", "_IGN", "SIG_DFL", "0x9", "٩"])
def test_a_name_that_is_no_signal_is_refused(oci: Oci, text: str) -> None:
    name = oci.started()
    done = oci("kill", name, text)
    assert (done.code, done.error) == (1, f'unknown signal "{text}"')
    assert oci.state(name)["status"] == "running"


@pytest.mark.parametrize("text", ["-9", "99", "100000"])
def test_a_number_that_is_no_signal_is_refused(oci: Oci, text: str) -> None:
    name = oci.started()
    assert oci("kill", name, text).code == 1
    assert oci.state(name)["status"] == "running"


def without_pid_namespace(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"] = [each for each in config["linux"]["namespaces"] if each["type"] != "pid"]


def test_sigkill_takes_all_processes_where_they_have_no_pid_namespace(oci: Oci) -> None:
    name = oci.started("sh", "-c", "sleep 1000 & sleep 1001 & wait", change=without_pid_namespace)
    pid = oci.state(name)["pid"]
    deadline = time.monotonic() + 60
    while len(children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    oci.ok("kill", name, "KILL")
    oci.await_status(name, "stopped")
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{child}/exe") and running(child) for child in children):
        assert time.monotonic() < deadline, "a child outlived its container"
        time.sleep(0.02)


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nobody_is_killed_for_a_container_that_is_not_there(oci: Oci) -> None:
    done = oci("kill", "nobody", "KILL")
    assert done.code == 1
    assert "does not exist" in done.error
