"""Every step of create, start, exec and delete is made to fail: the error says where, and nothing is left behind.

Which steps there are is found out by going through them once; that none was forgotten, by comparing with
`faults.STEPS`, which a unit test compares with the code.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime import faults, trace
from runtime.container import CreateOptions, CreateRequest, ExecRequest
from runtime.errors import StageError
from runtime.operations.apart import ApartRequest, create_apart
from runtime.operations.create import create
from runtime.operations.delete import delete, delete_by_force
from runtime.operations.exec import exec_
from runtime.operations.load import load
from runtime.operations.start import start
from runtime.spec.load import load_process, load_spec
from runtime.stages.plan import DIRECT, Stdio
from runtime.waiting import run
from tests.e2e.faults.conftest import (
    Change,
    Leaks,
    Place,
    Runner,
    Watch,
    in_user_namespace_of,
    joining,
    mapped,
    on_the_host,
    remove,
    rich,
    rich_beside,
    with_mapped_mount,
)
from tests.harness.bundles import Bundle

NUMBER = errno.EMEDIUMTYPE  # one that no step fails with by itself

_EXCLUSIVE = "takes CPUs that belong to another exclusive set: tests/e2e/cgroups/test_tenants.py"
_ROOTLESS = "takes who is not root: tests/e2e/rootless"
# Steps that none of the configurations here leads to, and why.
ELSEWHERE: dict[Place, str] = {
    ("main", "prepare root file system"): "shim's: tests/e2e/shim",
    ("inter", "set up network devices"): "takes a device to give away: tests/e2e/runtime",
    ("init", "set up network devices"): "takes a device to give away: tests/e2e/runtime",
    ("inter", "open own namespaces"): _ROOTLESS,
    ("init", "open own namespaces"): _ROOTLESS,
    ("inter", "enter cpuset of the initial CPUs"): _EXCLUSIVE,
    ("init", "enter cpuset of the initial CPUs"): _EXCLUSIVE,
    ("main", "remove resctrl group"): "takes a CPU with Resource Director Technology",
}


class Life:
    """One container of a bundle, made in the way of the runner, and started, entered and removed."""

    def __init__(self, runner: Runner, bundle: Bundle, gate: bool = False) -> None:
        self.runner, self.bundle, self.gate = runner, bundle, gate
        self.id = bundle.path.name
        self.data = bundle.write()

    def create(self) -> None:
        runner, path, stdio = self.runner, str(self.bundle.path), Stdio()
        if runner.apart:
            terminal = self.bundle.config["process"].get("terminal", False)
            made = run(
                create_apart(runner.host, ApartRequest(self.id, path, stdio, terminal, shape=runner.shape))
            )
        else:
            options = CreateOptions(gate=self.gate)
            spec = load_spec(self.data)
            request = CreateRequest(self.id, path, spec, stdio, runner.shape, options=options)
            made = run(create(runner.host, request))
        if self.gate:
            made.leave()
            self.container = load(runner.host, self.id)
        else:
            self.container = made

    def start(self) -> None:
        run(start(self.container))

    def exec(self) -> None:
        process = load_process(json.dumps(Bundle.process(["true"])).encode())
        tenant = run(exec_(self.container, ExecRequest(process, Stdio(), self.runner.shape)))
        os.waitpid(tenant.pid, 0x40000000)
        tenant.pidfd.close()

    def stop(self) -> None:
        pid = self.container.pid
        os.kill(pid, 9)
        os.waitpid(pid, 0x40000000)
        self.container.ended()

    def delete(self) -> None:
        run(delete(self.container))

    def remove(self) -> None:
        """By one who did not make it, in whatever state it is."""
        container = self.__dict__.pop("container", None)
        if container is not None:
            container.leave()
        remove(self.runner, self.id)


Make = Callable[[], Life]


def expect_failure(place: Place, act: Callable[[], None], before: Callable[[], None] | None = None) -> None:
    """`act` fails at `place`, and says so; the failure is planted before `before` is done, which does not fail."""
    stage, step = place
    faults.plant([faults.Fault(stage, step, NUMBER)])
    try:
        if before is not None:
            before()
        with pytest.raises(StageError) as caught:
            act()
    finally:
        faults.plant([])
    error = caught.value
    assert (faults.STAGES[error.stage], error.operation, error.number) == (stage, step, NUMBER), str(error)
    assert str(error).startswith(f"{error.stage}: {step}")


def walk(runner: Runner, watch: Watch, make: Make) -> set[Place]:
    """Fail each step of a whole life, once each; the steps there were."""
    leaks = Leaks(runner)
    phases = reach(watch, make)
    leaks.check("a life without failures")
    for place in phases["create"]:
        life = make()
        expect_failure(place, life.create)
        leaks.check(("create", place))
    for place in phases["start"]:
        life = make()
        if place[0] == "main":
            life.create()
            expect_failure(place, life.start)
        else:  # init is there already: it has to be born with the failure
            expect_failure(place, life.start, before=life.create)
        life.remove()
        leaks.check(("start", place))
    life = make()
    life.create()
    life.start()
    running = Leaks(runner)
    for place in phases["exec"]:
        expect_failure(place, life.exec)
        running.check(("exec", place))
    life.exec()  # the container is none the worse for it
    life.remove()
    leaks.check("exec")
    for place in phases["delete"]:
        life = make()
        life.create()
        life.start()
        life.stop()
        expect_failure(place, life.delete)
        life.remove()
        leaks.check(("delete", place))
    return {place for places in phases.values() for place in places}


def reach(watch: Watch, make: Make) -> dict[str, list[Place]]:
    """The steps of each verb, by doing all of them with nothing going wrong."""
    trace.planted = watch.note
    watch.reached()
    life = make()
    phases = {}
    for verb, act in (("create", life.create), ("start", life.start), ("exec", life.exec)):
        act()
        phases[verb] = watch.reached()
    life.stop()
    watch.reached()
    life.delete()
    phases["delete"] = watch.reached()
    trace.planted = None
    return phases


class Walker:
    """Walks through the life of a configuration."""

    def __init__(self, runner: Runner, watch: Watch) -> None:
        self.runner, self.watch = runner, watch
        self.lives: list[Life] = []

    def __call__(self, change: Change, gate: bool = False, volume: bool = False) -> set[Place]:
        def make() -> Life:
            bundle = self.runner.bundle("sleep", "1000")
            change(bundle.config)
            if volume:
                with_mapped_mount(bundle)
            self.lives.append(Life(self.runner, bundle, gate))
            return self.lives[-1]

        return walk(self.runner, self.watch, make)


@pytest.fixture
def walker(runner: Runner, watch: Watch) -> Iterator[Walker]:
    """What a test that fails leaves is removed: the runner does not know of it."""
    made = Walker(runner, watch)
    yield made
    faults.plant([])
    for life in made.lives:
        life.remove()


def test_a_failure_at_any_step_is_named_and_leaves_nothing(walker: Walker, met: set[Place]) -> None:
    met |= walker(rich)


def test_neither_does_one_of_a_container_that_joins_others(
    runner: Runner, walker: Walker, met: set[Place]
) -> None:
    landlord = runner.started("sleep", "1000", change=lambda config: _add_time(config["linux"]))
    met |= walker(joining(landlord.pid))
    if runner.shape != DIRECT:
        met |= walker(rich_beside(landlord.pid))
        met.add(fail_to_make_a_terminal(walker, landlord.pid))


def fail_to_make_a_terminal(walker: Walker, landlord: int) -> Place:
    """A step of its own where a PID namespace is joined."""
    place = "inter", "make terminal"
    bundle = walker.runner.bundle("sleep", "1000")
    rich_beside(landlord)(bundle.config)
    bundle.config["process"]["terminal"] = True
    life = Life(walker.runner, bundle)
    walker.lives.append(life)
    leaks = Leaks(walker.runner)
    expect_failure(place, life.create)
    leaks.check(place)
    return place


def _add_time(linux: dict[str, list[dict[str, str]]]) -> None:
    linux["namespaces"].append({"type": "time"})


def test_neither_does_one_of_a_container_with_a_user_namespace(
    runner: Runner, walker: Walker, met: set[Place]
) -> None:
    with tempfile.TemporaryDirectory(prefix="manor-tests-") as directory:
        os.chmod(directory, 0o755)  # the mapped root must reach it; pytest's own directories are 0700
        runner.directory = Path(directory)
        met |= walker(mapped, volume=True)
        if runner.shape != DIRECT:
            landlord = runner.started("sleep", "1000", change=mapped)
            met |= walker(in_user_namespace_of(landlord.pid))


def test_neither_does_one_of_a_container_with_a_start_gate(walker: Walker, met: set[Place]) -> None:
    if walker.runner.apart:
        pytest.skip("who creates apart starts it as well")
    met |= walker(rich, gate=True)


def test_neither_does_one_of_a_container_without_a_mount_namespace(walker: Walker, met: set[Place]) -> None:
    met |= walker(on_the_host)


@pytest.fixture(scope="module")
def met() -> set[Place]:
    """All steps that the tests of this module have let fail."""
    return set()


def test_no_step_was_left_out(met: set[Place]) -> None:
    if not met:
        pytest.skip("only after the others")
    everything = {(stage, step) for stage, steps in faults.STEPS.items() for step in steps}
    assert everything - met == set(ELSEWHERE)
    assert callable(delete_by_force)
