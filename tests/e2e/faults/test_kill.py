"""Stage 0 is killed in the middle of any step; then `delete --force` by somebody else leaves nothing.

A command line can be killed at any moment, and so can a shim. What there is by then is known from the state
directory alone; stages that are still at work end by themselves when they find nobody to talk to.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator

import pytest

from runtime import trace
from runtime.errors import NotFound
from runtime.operations.delete import delete_by_force
from runtime.waiting import run
from tests.e2e.faults.conftest import Leaks, Place, Runner, Watch, remove, rich
from tests.e2e.faults.test_every_step import Life, Walker, reach


def killed(act: Callable[[], None], watch: Watch, place: Place) -> bool:
    """Do `act` in a process of its own and kill that at `place`; False if it never came there."""
    watch.hold_at(place)
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(0)
    was_there = watch.await_reached(place, pid)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    trace.planted = None
    return was_there


@pytest.fixture
def walker(runner: Runner, watch: Watch) -> Iterator[Walker]:
    """What a test that fails leaves is removed."""
    made = Walker(runner, watch)
    yield made
    watch.release()
    trace.planted = None
    for life in made.lives:
        life.remove()


def walk(walker: Walker, watch: Watch, make: Callable[[], Life]) -> int:
    """Kill stage 0 at each step of create, start and delete; how many there were."""
    runner = walker.runner
    leaks = Leaks(runner)
    phases = reach(watch, make)
    leaks.check("a life without failures")
    count = 0
    for verb, places in phases.items():
        for place in places:
            if verb == "start" and place[0] != "main":
                continue  # init was born before; it is stopped from outside like any other
            life = make()
            before, act = _acts(life, verb)
            before()
            assert killed(act, watch, place), (verb, place)
            by_force(runner, life.id)
            watch.release()
            if hasattr(life, "container"):
                life.container.leave()
            leaks.check((verb, place))
            count += 1
    return count


def _acts(life: Life, verb: str) -> tuple[Callable[[], None], Callable[[], None]]:
    def run_it() -> None:
        life.create()
        life.start()

    def end_it() -> None:
        run_it()
        life.stop()

    return {
        "create": (lambda: None, life.create),
        "start": (life.create, life.start),
        "exec": (run_it, life.exec),
        "delete": (end_it, life.delete),
    }[verb]


def by_force(runner: Runner, container_id: str) -> None:
    """`delete --force` by somebody else, who finds something, or nothing at all; after that there is nothing.

    Orphans are ours to reap meanwhile: a PID namespace ends with the last of them.
    """
    remover = os.fork()
    if remover == 0:
        status = 1
        try:
            remove(runner, container_id)
            with pytest.raises(NotFound):
                run(delete_by_force(runner.host, container_id))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    while True:
        pid, status = os.waitpid(-1, 0x40000000)
        if pid == remover:
            assert status == 0
            return


def maker(walker: Walker, gate: bool) -> Callable[[], Life]:
    def make() -> Life:
        bundle = walker.runner.bundle("sleep", "1000")
        rich(bundle.config)
        walker.lives.append(Life(walker.runner, bundle, gate))
        return walker.lives[-1]

    return make


def test_a_command_killed_at_any_step_leaves_what_delete_by_force_removes(
    walker: Walker, watch: Watch
) -> None:
    """With a start gate, as the command line makes containers."""
    if walker.runner.apart:
        pytest.skip("who creates apart is a shim, and has no start gate for others")
    assert walk(walker, watch, maker(walker, gate=True)) > 40
