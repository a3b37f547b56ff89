"""`manor ps`: what shims have, asked from them; and of one that says nothing what is on disk, without a wait."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from manor import ps
from manor.ps import Row
from shim.api import task
from shim.ttrpc.client import Client
from tests.e2e.leaks.conftest import LedgerDoor
from tests.harness.waiting import eventually

SLEEP = ["sleep", "1000"]


def look(door: LedgerDoor, timeout_s: float = 30) -> list[Row]:
    return ps.look(str(door.run_dir), timeout_s)


def shown(row: Row) -> dict[tuple[str, str], str]:
    return {(each.container, each.exec): each.status for each in row.processes}


def hold_creates(door: LedgerDoor, container_id: str) -> tuple[Path, Path]:
    """A bundle whose create waits in a hook; a file that says that it is there, and one that lets it go on."""
    there, go_on = door.directory / "there", door.directory / "go-on"
    bundle = door.bundle(container_id, SLEEP)
    script = f"touch {there}; while ! [ -e {go_on} ]; do sleep 0.05; done"
    bundle.config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    bundle.write()
    return there, go_on


def test_containers_and_execs_with_their_stages_and_ages(door: LedgerDoor) -> None:
    init = door.run("c1", SLEEP)
    running = door.exec("c1", "running", SLEEP)
    door.add_exec("c1", "added", SLEEP)
    door.exec("c1", "ended", ["sh", "-c", "exit 3"])
    door.wait("c1", "ended")
    (row,) = look(door)
    assert (row.namespace, row.pod, row.shim, row.pid, row.note) == (
        "test",
        "c1",
        "alive",
        door.shim_pid(),
        "",
    )
    assert shown(row) == {
        ("c1", ""): "running",
        ("c1", "running"): "running",
        ("c1", "added"): "created",
        ("c1", "ended"): "stopped",
    }
    pids = {each.exec: each.pid for each in row.processes}
    assert (pids[""], pids["running"], pids["added"]) == (init, running, 0)
    assert all(0 <= each.age_s < 600 for each in row.processes)
    assert [each.exit_status for each in row.processes if each.exec == "ended"] == [3]
    door.ask("Pause", task.PauseRequest("c1"))
    assert shown(look(door)[0])["c1", ""] == "paused"
    door.ask("Resume", task.ResumeRequest("c1"))
    door.end("c1")


def test_what_each_uses_with_all_that_came_of_it(door: LedgerDoor) -> None:
    door.run("c1", ["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000 & sleep 1000"])
    door.exec("c1", "e1", SLEEP)
    door.add_exec("c1", "added", SLEEP)

    def used() -> dict[str, tuple[float | None, int | None]]:
        return {each.exec: (each.cpu_s, each.memory_bytes) for each in look(door)[0].processes}

    eventually(lambda: (used()[""][0] or 0) > 0)  # clock ticks
    eventually(lambda: (used()[""][1] or 0) > (used()["e1"][1] or 0) > 0)  # two processes, and one
    assert used()["added"] == (None, None)
    (row,) = look(door)
    assert row.cpu_s is not None
    assert row.memory_bytes is not None
    assert 0 < row.memory_bytes < 40 << 20
    door.end("c1")
    assert [(each.cpu_s, each.memory_bytes) for row in look(door) for each in row.processes] == []


def test_a_create_that_is_under_way_says_how_far_it_is_and_who_is_at_work(door: LedgerDoor) -> None:
    there, go_on = hold_creates(door, "c1")
    door.start("c1")
    with Client(door.address) as client:
        request = task.CreateTaskRequest(id="c1", bundle=str(door.directory / "bundles" / "c1"))
        creating = threading.Thread(
            target=lambda: client.request(task.SERVICE_V2, "Create", request, task.CreateTaskResponse, 60)
        )
        creating.start()
        eventually(there.exists)
        (row,) = look(door)
        (process,) = row.processes
        assert (process.container, process.status, process.step) == ("c1", "creating", "open streams")
        assert "0:CREATE" in [stage["stage"] for stage in row.stages]
        assert all(isinstance(stage["pid"], int) for stage in row.stages)
        go_on.touch()
        creating.join(60)
    assert shown(look(door)[0]) == {("c1", ""): "created"}
    door.end("c1")


def test_a_shim_that_does_not_answer_holds_nobody_up(door: LedgerDoor) -> None:
    door.run("c1", SLEEP)
    first, stopped = door.client, door.shim_pid()
    door.address = ""
    door.run("c2", SLEEP)
    workers = ThreadPoolExecutor(1)
    os.kill(stopped, signal.SIGSTOP)
    try:
        looking = workers.submit(look, door, 0.5)
        rows = {row.pod: row for row in looking.result(30)}
    finally:
        os.kill(stopped, signal.SIGCONT)
        workers.shutdown()
    assert (rows["c1"].shim, rows["c1"].pid) == ("no answer", stopped)
    assert "from its files" in rows["c1"].note
    assert shown(rows["c1"]) == {("c1", ""): "running"}
    assert shown(rows["c2"]) == {("c2", ""): "running"}
    door.end("c2")
    door.client.close()
    door.client = first
    door.end("c1")


def test_a_dead_shims_containers_are_read_from_its_files(
    door: LedgerDoor, capsys: pytest.CaptureFixture[str]
) -> None:
    init = door.run("c1", SLEEP)
    door.kill_shim()
    (row,) = look(door)
    assert (row.shim, shown(row), row.processes[0].pid) == ("dead", {("c1", ""): "running"}, init)
    assert ps.main(["--run-dir", str(door.run_dir), "--json"]) == 1
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["pod"], told["shim"], told["processes"][0]["container"]) == ("c1", "dead", "c1")
    assert ps.main(["--run-dir", str(door.run_dir)]) == 1
    head, pod, process = capsys.readouterr().out.splitlines()[:3]
    assert head.split() == list(ps.HEADS)
    assert "shim dead" in pod
    assert process.split()[:3] == ["c1", str(init), "running"]


def test_a_node_without_pods_has_nothing_to_show(
    door: LedgerDoor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ps.main(["--run-dir", str(door.directory / "nowhere")]) == 0
    assert capsys.readouterr().out == ""
