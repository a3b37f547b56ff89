"""A shim that dies after a process has ended and before anybody heard: the journal knows how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shim import deed, journal
from shim.api import task, types
from shim.api.codec import decode
from tests.e2e.conftest import Node
from tests.e2e.exits.conftest import LIMIT_S, is_alive, journal_directory, killed_between_record_and_event
from tests.e2e.shim.door import Door
from tests.harness.bundles import make_rootfs
from tests.harness.paths import SHIM
from tests.harness.waiting import eventually

POD = {"io.kubernetes.cri.sandbox-id": "pod1"}
ENDS_WITH_3 = ["sh", "-c", "trap 'exit 3' TERM; echo ready >/ready; while :; do sleep 0.05; done"]


def ready(root: Path) -> None:
    """Wait until the container's shell has set its trap."""
    eventually((root / "ready").exists, LIMIT_S)


def delete(door: Door, container_id: str) -> task.DeleteResponse:
    done = door.launch("delete", container_id)
    assert (done.returncode, done.stderr) == (0, b"")
    return decode(task.DeleteResponse, done.stdout)


def test_delete_answers_with_the_exit_on_record(door: Door) -> None:
    init = door.run("c1", ENDS_WITH_3)
    ready(door.directory / "bundles/c1/rootfs")
    before = time.time()
    with killed_between_record_and_event(door.shim_pid()):
        os.kill(init, signal.SIGTERM)
    assert "exit c1" not in door.events.topics()
    after = time.time()
    answer = delete(door, "c1")
    assert (answer.pid, answer.exit_status) == (init, 3)
    assert answer.exited_at is not None
    assert before <= answer.exited_at.seconds + answer.exited_at.nanos / 1e9 <= after
    assert (door.cgroups(), door.state_directories()) == ([], [])


def test_delete_of_the_others_of_the_pod_does_too_whichever_comes_first(door: Door) -> None:
    """containerd 1.6 asks for each of them; the first `delete` removes the pod."""
    first = door.run("c1", ENDS_WITH_3, POD)
    running = door.run("c2", ["sleep", "1000"], POD)
    ready(door.directory / "bundles/c1/rootfs")
    with killed_between_record_and_event(door.shim_pid()):
        os.kill(first, signal.SIGTERM)
    killed, ended = delete(door, "c2"), delete(door, "c1")
    assert (killed.pid, killed.exit_status) == (running, 137)
    assert (ended.pid, ended.exit_status) == (first, 3)
    assert not is_alive(running)
    assert door.state_directories() == []


def test_a_new_shim_of_the_pod_first_ends_what_a_dead_one_has_left(door: Door) -> None:
    """It may be asked for before any `delete` has run, and none would touch the pod of a shim that answers."""
    ended = door.run("c1", ENDS_WITH_3, POD)
    running = door.run("c2", ["sleep", "1000"], POD)
    ready(door.directory / "bundles/c1/rootfs")
    first = door.shim_pid()
    with killed_between_record_and_event(first):
        os.kill(ended, signal.SIGTERM)
    door.bundle("c3", ["sleep", "1000"], POD)
    door.client.close()
    door.start("c3")
    assert not is_alive(running)
    assert door.cgroups() == []
    door.create("c3")
    assert door.shim_pid() != first
    assert [(told.pid, told.exit_status) for told in (delete(door, "c1"), delete(door, "c2"))] == [
        (ended, 3),
        (running, 137),
    ]
    assert door.status("c3") == types.STATUS_CREATED  # no `delete` was its
    door.end("c3")


def test_of_a_shim_that_died_before_anybody_connected_nothing_is_left(door: Door) -> None:
    """containerd forgets a start whose shim it could not connect to, and asks for no `delete`."""
    door.bundle("c1", ["sleep", "1000"])
    for killed in (signal.SIGKILL, signal.SIGSEGV):
        socket = Path(door.launch("start", "c1").stdout.decode().removeprefix("unix://"))
        assert socket.exists()
        claimed = deed.read(journal_directory(door.run_dir))
        assert claimed is not None
        os.kill(claimed.pid, killed)
        eventually(lambda: not door.state_directories(), LIMIT_S)
        assert not socket.exists()


def test_an_exec_is_on_record_too_and_no_answer_for_init(door: Door) -> None:
    init = door.run("c1", ["sleep", "1000"])
    door.exec("c1", "e1", ["sleep", "1000"])
    door.ask("Kill", task.KillRequest("c1", "e1", signal.SIGTERM))
    assert door.wait("c1", "e1") == 143
    (entry,) = journal.read(journal_directory(door.run_dir))
    assert (entry.container, entry.exec_id, entry.code, entry.signal) == ("c1", "e1", 143, signal.SIGTERM)
    assert entry.start_time > 0
    os.kill(door.shim_pid(), signal.SIGKILL)
    answer = delete(door, "c1")
    assert (answer.pid, answer.exit_status) == (init, 137)


def test_the_journal_goes_with_the_pod(door: Door) -> None:
    door.run("c1", ["true"])
    assert door.wait("c1") == 0
    assert [entry.code for entry in journal.read(journal_directory(door.run_dir))] == [0]
    door.delete("c1")
    shim = door.shim_pid()
    door.ask("Shutdown", task.ShutdownRequest("c1"))
    eventually(lambda: not is_alive(shim), LIMIT_S)
    assert door.state_directories() == []


def test_a_torn_record_hides_no_other(door: Door) -> None:
    init = door.run("c1", ["sh", "-c", "exit 4"])
    assert door.wait("c1") == 4
    os.kill(door.shim_pid(), signal.SIGKILL)
    with open(f"{journal_directory(door.run_dir)}/{journal.FILE}", "ab") as file:
        file.write(b'{"container":"c1","exec":"","pid":')
    answer = delete(door, "c1")
    assert (answer.pid, answer.exit_status) == (init, 4)


# --- through a containerd, without the CRI: by a client that does not wait for the task ---


class Ctr:
    """`ctr` in containerd's own CRI namespace, where no leak goes unseen."""

    def __init__(self, node: Node) -> None:
        self.node = node.containerd
        self._command = [str(self.node.binaries.ctr), "-a", str(self.node.socket), "-n", "k8s.io"]

    def run(self, *arguments: str, check: bool = True) -> str:
        """Run one command; AssertionError with what it printed."""
        done = subprocess.run(
            [*self._command, *arguments],
            env=self.node.environment(),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    @contextmanager
    def events(self, path: Path) -> Iterator[Path]:
        """What is told from now on, a line each, in the file `path`."""
        with open(path, "wb") as output:
            listener = subprocess.Popen(
                [*self._command, "events"], env=self.node.environment(), stdout=output
            )
        try:
            # It does not say when it listens: send something until it comes.
            eventually(
                lambda: self.run("namespaces", "label", "k8s.io", "seen=yes") or path.stat().st_size, LIMIT_S
            )
            yield path
        finally:
            listener.terminate()
            listener.wait()
            self.run("namespaces", "label", "k8s.io", "seen=")


@pytest.fixture
def ended_unheard(node: Node, tmp_path: Path) -> Iterator[tuple[Ctr, Path, int]]:
    """A task `c1` that ended with 3, and whose shim was killed before containerd heard; the events, init's pid."""
    make_rootfs(tmp_path / "root")
    ctr = Ctr(node)
    cgroup = f"{node.containerd.instance.cgroup_parent}/ctr-c1"
    with ctr.events(tmp_path / "events") as events:
        ctr.run(
            *(
                "run",
                "-d",
                "--null-io",
                "--env",
                "PATH=/bin",
                "--cgroup",
                cgroup,
                "--runtime",
                "io.containerd.manor.v2",
            ),
            *("--rootfs", str(tmp_path / "root"), "c1", *ENDS_WITH_3),
        )
        try:
            (init,) = (
                int(line.split()[1]) for line in ctr.run("task", "ls").splitlines() if line.startswith("c1")
            )
            ready(tmp_path / "root")
            (shim,) = node.containerd.shim_pids("c1")
            with killed_between_record_and_event(shim):
                os.kill(init, signal.SIGTERM)
            yield ctr, events, init
        finally:
            ctr.run("task", "rm", "-f", "c1", check=False)
            ctr.run("containers", "rm", "c1", check=False)


@pytest.mark.skipif(not SHIM.exists(), reason="make venv")
def test_containerd_hears_the_code_on_record_when_it_cleans_up(ended_unheard: tuple[Ctr, Path, int]) -> None:
    _ctr, events, init = ended_unheard

    def exits() -> list[dict[str, object]]:
        return [
            json.loads(line[line.index("{") :])
            for line in events.read_text().splitlines()
            if " /tasks/exit " in line
        ]

    eventually(exits, LIMIT_S)
    (told,) = exits()
    assert (told["container_id"], told["pid"], told.get("exit_status")) == ("c1", init, 3)
