"""The kill of a process and all that came of it, with processes of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from runtime.linux.procstat import lineage, start_time
from runtime.operations.kill_tree import _is_of, _signal_same, kill_descent
from runtime.waiting import Sleep, run
from tests.harness.waiting import eventually

Tree = subprocess.Popen[str]


def everybody() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def alive(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/exe") != ""
    except OSError:
        return False


@pytest.fixture
def trees() -> Iterator[list[Tree]]:
    """What a test has started; whoever is left of it is known by its session."""
    started: list[Tree] = []
    yield started
    for tree in started:
        for pid in everybody():
            try:
                if lineage(pid)[1] == tree.pid:
                    os.kill(pid, signal.SIGKILL)
            except (OSError, ValueError):
                continue
        tree.wait()
        assert tree.stdout is not None
        tree.stdout.close()


def begin(trees: list[Tree], script: str, count: int) -> tuple[Tree, list[int]]:
    """A shell in a session of its own, as an exec is, and the pids that it tells of."""
    tree = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    trees.append(tree)
    assert tree.stdout is not None
    return tree, [int(tree.stdout.readline()) for _each in range(count)]


def test_children_and_who_has_lost_a_parent_go_with_it(trees: list[Tree]) -> None:
    script = "sh -c 'sleep 100 & echo $!'; sh -c 'sleep 100 & echo $!; wait' & echo $!; exec sleep 100"
    tree, pids = begin(trees, script, 3)
    stranger = subprocess.Popen(["sleep", "100"])
    run(kill_descent(tree.pid, everybody))
    assert tree.wait(60) == -signal.SIGKILL
    eventually(lambda: not any(alive(pid) for pid in pids))
    assert stranger.poll() is None
    assert not lineage(stranger.pid)[3]
    stranger.kill()
    stranger.wait()


def test_what_is_forked_meanwhile_is_found(trees: list[Tree]) -> None:
    script = "echo $$; i=0; while [ $i -lt 400 ]; do i=$((i+1)); sleep 100 & done; wait"
    tree, _pids = begin(trees, script, 1)
    run(kill_descent(tree.pid, everybody))
    assert tree.wait(60) == -signal.SIGKILL
    eventually(lambda: not [pid for pid in everybody() if alive(pid) and _session(pid) == tree.pid])


def _session(pid: int) -> int:
    try:
        return lineage(pid)[1]
    except (OSError, ValueError):
        return 0


def test_a_session_of_its_own_hides_nobody_who_has_a_parent(trees: list[Tree]) -> None:
    tree, pids = begin(trees, "setsid sh -c 'sleep 100 & echo $!; wait' & echo $!; wait", 2)
    run(kill_descent(tree.pid, everybody))
    eventually(lambda: not any(alive(pid) for pid in pids))


def test_who_is_seen_before_its_parent_is_found_the_next_time(trees: list[Tree]) -> None:
    tree, pids = begin(trees, "setsid sh -c 'sleep 100 & echo $!; wait' & echo $!; wait", 2)
    run(kill_descent(tree.pid, lambda: sorted((tree.pid, *pids), reverse=True)))
    eventually(lambda: not any(alive(pid) for pid in pids))


def test_an_end_half_way_kills_who_was_found(trees: list[Tree]) -> None:
    tree, pids = begin(trees, "sleep 100 & echo $!; wait", 1)
    walk = kill_descent(tree.pid, everybody)
    while not isinstance(next(walk), Sleep) or not lineage(pids[0])[3]:
        pass  # until all have been looked at
    walk.close()
    assert tree.wait(60) == -signal.SIGKILL
    eventually(lambda: not alive(pids[0]))


def test_a_process_that_has_got_the_number_of_another_is_spared(trees: list[Tree]) -> None:
    tree, _pids = begin(trees, "echo $$; exec sleep 100", 1)
    assert not _signal_same(tree.pid, start_time(tree.pid) + 1, signal.SIGKILL)
    assert not _is_of(tree.pid, {tree.pid: start_time(tree.pid) + 1})
    assert tree.poll() is None


def test_one_that_has_ended_is_no_error(trees: list[Tree]) -> None:
    tree, _pids = begin(trees, "echo $$", 1)
    tree.wait(60)
    run(kill_descent(tree.pid, everybody))
