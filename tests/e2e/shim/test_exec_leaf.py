"""An exec in a cgroup of its own, at the shim's door: what its kill ends, what its end spares, and what is left.

Also run where all controllers are in v2 (`tests/vm/run.sh`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.api import task
from shim.api.options import RuntimeOptions
from shim.api.types import pack
from shim.ttrpc.status import RpcError
from tests.e2e.cgroups.hugetlb import landlord_moved_away
from tests.e2e.shim.door import Door, opened
from tests.harness.instances import unified_hierarchy
from tests.harness.waiting import eventually, remove_cgroup

# A tree with all that a process can do to get away: a session of its own, and a parent that has ended. It says when
# all of it is there.
FUGITIVES = "setsid sh -c 'setsid sleep 1001 & sleep 1002 &' ; sleep 1003 & echo; exec sleep 1004"
# The same without those that have both.
FAMILY = "sh -c 'sleep 1002 & sh -c \"sleep 1001 & sleep 1005\" &' ; sleep 1003 & exec sleep 1004"


@pytest.fixture(scope="module")
def world() -> Iterator[Door]:
    """One container, `c1`, for all tests; each leaves it as it was."""
    with opened() as door:
        door.run("c1", ["sleep", "1000"])
        door.exec("c1", "first", ["true"])  # opens what stays open: the connection for events, the journal
        finish(door, "first", 0)
        eventually(lambda: "exit first" in door.events.topics())
        yield door
        door.end("c1")
        assert (door.cgroups(), door.mounts()) == ([], [])


@pytest.fixture
def door(world: Door) -> Iterator[Door]:
    fds, before = world.shim_fds(), pids(world)
    yield world
    eventually(lambda: (leaves(world), pids(world), world.zombies()) == ([], before, []))
    eventually(lambda: world.shim_fds() <= fds)


def own(door: Door, name: str = "c1") -> Path:
    """The v2 cgroup of a container."""
    return unified_hierarchy() / door.cgroup_parent / name


def leaves(door: Door, name: str = "c1") -> list[Path]:
    return sorted(own(door, name).glob("exec-*"))


def pids(door: Door, name: str = "c1") -> list[int]:
    """What the shim says is in a container."""
    return sorted(each.pid for each in door.ask("Pids", task.PidsRequest(name)).processes)


def place(pid: int, hierarchy: str = "") -> str:
    """The cgroup of a process."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _number, name, path = line.split(":", 2)
        if name == hierarchy:
            return path
    return ""


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def sleepers(door: Door, name: str = "c1") -> set[str]:
    """How long the processes of a container sleep, but for its init."""
    return {text.split()[-1] for pid in pids(door, name) if (text := command(pid)).startswith("sleep")} - {
        "1000"
    }


def started(door: Door, exec_id: str, text: str, expected: set[str], name: str = "c1") -> int:
    """An exec of which so many sleep in the end; its pid."""
    pid = door.exec(name, exec_id, ["sh", "-c", text])
    eventually(lambda: sleepers(door, name) == expected)
    return pid


def kill_exec(door: Door, exec_id: str, name: str = "c1", number: int = signal.SIGKILL) -> None:
    door.ask("Kill", task.KillRequest(name, exec_id, number))


def finish(door: Door, exec_id: str, code: int, name: str = "c1") -> None:
    assert door.wait(name, exec_id) == code
    door.delete(name, exec_id)


def test_an_exec_is_in_a_leaf_of_its_own_and_otherwise_where_its_container_is(door: Door) -> None:
    first, second = (door.exec("c1", name, ["sleep", "1001"]) for name in ("e1", "e2"))
    init = door.ask("State", task.StateRequest("c1")).pid
    places = {place(first), place(second)}
    assert places == {f"{place(init)}/{leaf.name}" for leaf in leaves(door)}
    assert len(places) == 2
    others = [
        line for line in Path(f"/proc/{init}/cgroup").read_text().splitlines() if not line.startswith("0::")
    ]
    found = Path(f"/proc/{first}/cgroup").read_text().splitlines()
    assert [line for line in found if not line.startswith("0::")] == others
    assert {init, first, second} <= set(pids(door))
    for name in ("e1", "e2"):
        kill_exec(door, name)
        finish(door, name, 137)
    eventually(lambda: not leaves(door))


def test_a_kill_ends_all_that_came_of_an_exec_and_nobody_else(door: Door) -> None:
    other = door.exec("c1", "other", ["sleep", "2000"])
    started(door, "e1", FUGITIVES, {"1001", "1002", "1003", "1004", "2000"})
    kill_exec(door, "e1")
    finish(door, "e1", 137)
    eventually(lambda: sleepers(door) == {"2000"})
    assert command(other) == "sleep 2000"
    kill_exec(door, "other")
    finish(door, "other", 137)


def test_another_signal_is_for_the_process_alone(door: Door) -> None:
    started(door, "e1", FUGITIVES, {"1001", "1002", "1003", "1004"})
    kill_exec(door, "e1", number=signal.SIGTERM)
    finish(door, "e1", 143)
    assert sleepers(door) == {"1001", "1002", "1003"}
    _end_sleepers(door)


def test_what_an_exec_leaves_behind_lives_on_until_it_ends(door: Door) -> None:
    door.exec("c1", "e1", ["sh", "-c", "setsid sleep 1001 & sleep 1002 &"])
    assert door.wait("c1", "e1") == 0
    with pytest.raises(RpcError):  # as containerd does with every exec before it deletes it
        kill_exec(door, "e1")
    door.delete("c1", "e1")
    for code in range(3):  # other execs come and go meanwhile
        door.exec("c1", "e2", ["sh", "-c", f"exit {code}"])
        finish(door, "e2", code)
    eventually(lambda: sleepers(door) == {"1001", "1002"})
    (leaf,) = leaves(door)
    _end_sleepers(door)
    eventually(lambda: not leaf.exists())


def _end_sleepers(door: Door) -> None:
    for pid in pids(door):
        if command(pid).startswith("sleep ") and command(pid) != "sleep 1000":
            os.kill(pid, signal.SIGKILL)


def test_more_leaves_in_use_than_are_watched_go_all_the_same(door: Door) -> None:
    for number in range(70):
        door.exec("c1", f"e{number}", ["sh", "-c", "sleep 1001 &"])
        finish(door, f"e{number}", 0)
    assert len(leaves(door)) == 70
    _end_sleepers(door)
    eventually(lambda: len(leaves(door)) == 6)
    for _ in range(3):
        door.exec("c1", "last", ["true"])
        finish(door, "last", 0)
    eventually(lambda: not leaves(door))


def test_an_exec_that_cannot_be_started_leaves_no_leaf(door: Door) -> None:
    with pytest.raises(RpcError, match="nope"):
        door.exec("c1", "e1", ["nope"])
    assert leaves(door) == []
    door.delete("c1", "e1")


def test_cgroups_that_were_made_in_a_leaf_go_with_it(door: Door) -> None:
    door.exec("c1", "e1", ["sleep", "1001"])
    (leaf,) = leaves(door)
    for number in range(250):
        (leaf / f"made-{number}" / "below").mkdir(parents=True)
    kill_exec(door, "e1")
    finish(door, "e1", 137)
    eventually(lambda: not leaf.exists())


def test_a_process_that_was_moved_elsewhere_is_killed_with_what_came_of_it(door: Door) -> None:
    pid = started(door, "e1", FAMILY, {"1001", "1002", "1003", "1004", "1005"})
    (leaf,) = leaves(door)
    (own(door) / "elsewhere").mkdir()
    for moved in [pid, *(pid for pid in pids(door) if command(pid) == "sleep 1002")]:
        (own(door) / "elsewhere/cgroup.procs").write_text(str(moved))
    kill_exec(door, "e1")
    finish(door, "e1", 137)
    eventually(lambda: sleepers(door) == set() and not leaf.exists())
    remove_cgroup(own(door) / "elsewhere")


def test_a_leaf_in_the_place_of_which_another_was_put_keeps_nobody_alive(door: Door) -> None:
    """The container has taken the leaf away and given its name to a cgroup of its own, with the exec in it."""
    pid = started(door, "e1", FAMILY, {"1001", "1002", "1003", "1004", "1005"})
    (leaf,) = leaves(door)
    family = [each for each in pids(door) if place(each).endswith(leaf.name)]
    for each in family:
        (own(door) / "cgroup.procs").write_text(str(each))
    leaf.rmdir()
    leaf.mkdir()
    for each in family:
        (leaf / "cgroup.procs").write_text(str(each))
    assert pid in family
    kill_exec(door, "e1")
    finish(door, "e1", 137)
    eventually(lambda: sleepers(door) == set())
    remove_cgroup(leaf)  # the container's own: gone if all in it had ended before the exec, and stays if not


def test_a_leaf_that_was_made_one_of_threads_keeps_nobody_alive(door: Door) -> None:
    pid = door.exec("c1", "e1", ["sleep", "1001"])
    (leaf,) = leaves(door)
    (own(door) / "cgroup.procs").write_text(str(pid))
    (leaf / "cgroup.type").write_text("threaded")
    (leaf / "cgroup.procs").write_text(str(pid))
    kill_exec(door, "e1")
    finish(door, "e1", 137)
    eventually(lambda: sleepers(door) == set() and not leaf.exists())


def test_where_init_has_cgroups_of_its_own_an_exec_joins_it_and_its_kill_goes_by_descent(door: Door) -> None:
    init = door.ask("State", task.StateRequest("c1")).pid
    with landlord_moved_away(own(door)) as child:
        pid = started(door, "e1", FAMILY, {"1001", "1002", "1003", "1004", "1005"})
        assert place(pid) == place(init)
        assert leaves(door) == []
        kill_exec(door, "e1")
        finish(door, "e1", 137)
        eventually(lambda: sleepers(door) == set())
    (own(door) / "cgroup.procs").write_text(str(init))
    child.rmdir()


def test_a_paused_container_has_its_execs_paused_and_lets_none_in(door: Door) -> None:
    writer = door.exec("c1", "e1", ["sh", "-c", "while :; do sleep 0.01; done"])
    door.ask("Pause", task.PauseRequest("c1"))
    before = Path(f"/proc/{writer}/stat").read_text()
    with pytest.raises(RpcError, match="paused"):
        door.exec("c1", "e2", ["true"])
    assert Path(f"/proc/{writer}/stat").read_text() == before
    door.ask("Resume", task.ResumeRequest("c1"))
    kill_exec(door, "e1")
    finish(door, "e1", 137)


def another(door: Door, name: str, options: str) -> None:
    """Another container in the same pod, with options of its own."""
    door.bundle(name, ["sleep", "1000"])
    door.create(name, options=pack(RuntimeOptions(config_body=options.encode())))
    door.ask("Start", task.StartRequest(name))


def test_a_handler_may_ask_for_no_leaves(door: Door) -> None:
    another(door, "c2", "ExecCgroup = 'container'")
    pid = started(door, "e1", FAMILY, {"1001", "1002", "1003", "1004", "1005"}, "c2")
    init = door.ask("State", task.StateRequest("c2")).pid
    assert (place(pid), leaves(door, "c2")) == (place(init), [])
    kill_exec(door, "e1", "c2")
    finish(door, "e1", 137, "c2")
    eventually(lambda: sleepers(door, "c2") == set())
    door.end("c2")


def test_a_container_that_is_deleted_takes_the_leaves_along(door: Door) -> None:
    another(door, "c3", "ExecCgroup = 'leaf'")
    door.exec("c3", "e1", ["sh", "-c", "sleep 1001 &"])
    finish(door, "e1", 0, "c3")
    door.exec("c3", "e2", ["sleep", "1002"])
    assert len(leaves(door, "c3")) == 2
    door.kill("c3")
    assert (door.wait("c3", "e2"), door.wait("c3")) == (137, 137)
    door.delete("c3")
    assert not own(door, "c3").exists()


def test_a_word_for_it_that_is_none_is_refused(door: Door) -> None:
    with pytest.raises(RpcError, match="ExecCgroup is 'leaf' or 'container', not 'own'"):
        another(door, "c4", "ExecCgroup = 'own'")
