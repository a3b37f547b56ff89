"""The order in which stages do things, and what each of them has and is called meanwhile, as seen from outside.

The same tests run on both shapes; where there is no intermediate process its part is done by init itself.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime import faults, trace
from runtime.container import CreateRequest, ExecRequest
from runtime.errors import StageError
from runtime.linux import seccomp as kernel
from runtime.operations.create import create
from runtime.operations.delete import delete
from runtime.operations.exec import exec_
from runtime.operations.start import start
from runtime.seccomp import compile_profile
from runtime.spec.load import load_process, load_spec
from runtime.spec.model import Seccomp, SeccompRule
from runtime.stages.plan import DIRECT, STAGED, Stdio
from runtime.waiting import run
from tests.e2e.faults.conftest import PLACES, Place, Runner, mapped, remove, rich
from tests.harness.bundles import Bundle
from tests.unit.runtime.forked import in_child


@pytest.fixture(params=[(DIRECT, False), (STAGED, False)], ids=lambda way: way[0])
def way(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """Both shapes."""
    chosen: tuple[str, bool] = request.param
    return chosen


class Clock:
    """When each step was first reached, in whatever process; and what was seen there of that process."""

    def __init__(self) -> None:
        self._times = mmap.mmap(-1, 8 * len(PLACES))
        self._seen = mmap.mmap(-1, 4096 * len(PLACES))

    def note(self, stage: str, step: str) -> None:
        index = PLACES.index((faults.STAGES[stage], step))
        if not struct.unpack_from("Q", self._times, 8 * index)[0]:
            struct.pack_into("Q", self._times, 8 * index, time.time_ns())  # no time namespace moves it

    def order(self) -> list[Place]:
        """All that was reached, by time."""
        times = {
            place: struct.unpack_from("Q", self._times, 8 * index)[0] for index, place in enumerate(PLACES)
        }
        return sorted((place for place, when in times.items() if when), key=lambda place: times[place])


def order_of(act: Callable[[], object]) -> list[Place]:
    clock = Clock()
    trace.planted = clock.note
    try:
        act()
    finally:
        trace.planted = None
    return clock.order()


def before(order: list[Place], first: str, second: str) -> bool:
    """Whether the first step of that name came before the first of the other, in any stage."""
    names = [step for _stage, step in order]
    assert names.index(first) < names.index(second), order
    return True


def world_readable(runner: Runner, bundle: Bundle) -> None:
    """Let the root of a user namespace reach the bundle: pytest's own directories are 0700."""
    for parent in (bundle.path, *bundle.path.parents):
        if str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o055)


def test_the_cgroup_comes_before_every_namespace_that_hides_it(runner: Runner) -> None:
    bundle = runner.bundle("true")
    mapped(bundle.config)
    world_readable(runner, bundle)
    order = order_of(lambda: runner.create(bundle))
    if runner.shape == STAGED:
        assert before(order, "join cgroup", "unshare user namespace")
        assert before(order, "join cgroup", "clone init")
        assert before(order, "map user namespace", "clone init")
    assert before(order, "join cgroup", "unshare cgroup namespace")
    assert before(order, "join cgroup", "set cpu affinity")
    assert before(order, "join cgroup", "mount root file system")


def test_the_root_of_the_cgroup_namespace_is_the_containers_cgroup(runner: Runner) -> None:
    output = runner.run(runner.bundle("cat", "/proc/self/cgroup"))
    paths = {line.split(":", 2)[2] for line in output.stdout.splitlines()}
    assert paths == {"/"}


def test_the_pid_namespace_is_the_last_that_the_intermediate_process_enters(runner: Runner) -> None:
    if runner.shape == DIRECT:
        pytest.skip("there is no intermediate process: init is born in it")
    bundle = runner.bundle("sleep", "1000")
    order = [step for stage, step in order_of(lambda: runner.create(bundle)) if stage == "inter"]
    assert order[-2:] == ["unshare pid namespace", "clone init"]
    run(start(runner.containers[0]))
    tenant: list[Place] = order_of(lambda: runner.exec(runner.containers[0], "true"))
    inter = [step for stage, step in tenant if stage == "inter"]
    before_clone = ["join namespaces", "join pid namespace", "give up capabilities"]
    assert inter == ["join cgroup", "set cpu affinity", *before_clone, "clone init"]


def test_a_tenant_only_joins_and_changes_no_limit(runner: Runner) -> None:
    container = runner.started(
        "sleep", "1000", change=lambda config: config["linux"]["resources"].update(pids={"limit": 50})
    )
    directory = Path(next(path for name, path in container.cgroup.paths.items() if "pids" in name))
    (directory / "pids.max").write_text("40")
    assert runner.exec(container, "true").code == 0
    assert (directory / "pids.max").read_text() == "40\n"


def held_at(runner: Runner, place: Place, act: Callable[[], object], look: Callable[[int], Any]) -> Any:
    """What `look` sees of the process that is at `place` of `act`, which is done in a process of its own."""
    page = mmap.mmap(-1, 16)

    def hold(stage: str, step: str) -> None:
        if (faults.STAGES[stage], step) == place:
            with open("/proc/thread-self/status", encoding="ascii") as status:  # its pid as we see it
                outer = next(line for line in status if line.startswith("NSpid")).split()[1]
            struct.pack_into("Q", page, 0, int(outer))
            while not page[8]:
                time.sleep(0.002)

    trace.planted = hold
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(0)
    trace.planted = None
    try:
        end = time.monotonic() + 60
        while not (found := struct.unpack_from("Q", page, 0)[0]):
            assert time.monotonic() < end
            time.sleep(0.002)
        return look(found)
    finally:
        page[8] = 1
        end = time.monotonic() + 60
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(pid, 9)
            time.sleep(0.005)


def descriptors(pid: int) -> list[str]:
    """What a process has open beside its standard streams, which are the caller's until they are set up."""
    numbers = [each for each in os.listdir(f"/proc/{pid}/fd") if int(each) > 2]
    return sorted(os.readlink(f"/proc/{pid}/fd/{each}") for each in numbers)


def test_stages_are_named_and_hold_nothing_but_their_channels(runner: Runner) -> None:
    """As seen in the middle of a create by one who looks from outside."""
    bundle = runner.bundle("true")
    data = bundle.write()
    spec = load_spec(data)
    secret = os.open("/", os.O_RDONLY)  # what the caller has open is none of a stage's business

    def act() -> None:
        made = run(create(runner.host, CreateRequest("c", str(bundle.path), spec, Stdio(), runner.shape)))
        made.close()

    def look(pid: int) -> tuple[str, list[str]]:
        return Path(f"/proc/{pid}/comm").read_text().strip(), descriptors(pid)

    places = {("init", "set hostname"): "manor:[2:INIT]"}
    if runner.shape == STAGED:
        places[("inter", "clone init")] = "manor:[1:INTER]"
    for place, expected in places.items():
        name, held = held_at(runner, place, act, look)
        assert name == expected
        # /dev/null for each stream, the plan's, and its own channels: no directory of the host's, no cgroup, no state.
        others = [each for each in held if not each.startswith(("socket:", "/dev/null"))]
        assert others == [], (place, held)
        channels = [each for each in held if each.startswith("socket:")]
        assert len(channels) <= (2 if place[0] == "inter" else 1), (place, held)
        remove(runner, "c")
    os.close(secret)


NO_CLONE3 = Seccomp("SCMP_ACT_ALLOW", syscalls=(SeccompRule(("clone3",), "SCMP_ACT_ERRNO", 38),))
NO_CLONE = Seccomp("SCMP_ACT_ALLOW", syscalls=(SeccompRule(("clone3",), "SCMP_ACT_ERRNO", 11),))


def whole_life(runner: Runner, data: bytes, path: str) -> tuple[str, int, str]:
    """Create, start, enter and end a container here; the status of init, an exec's exit code and its cgroups."""
    made = run(create(runner.host, CreateRequest("c", path, load_spec(data), Stdio(), runner.shape)))
    run(start(made))
    process = load_process(json.dumps(Bundle.process(["sh", "-c", "exit 7"])).encode())
    tenant = run(exec_(made, ExecRequest(process, Stdio(), runner.shape)))
    code = os.waitstatus_to_exitcode(os.waitpid(tenant.pid, 0x40000000)[1])
    cgroups = Path(f"/proc/{made.pid}/cgroup").read_text()
    os.kill(made.pid, 9)
    os.waitpid(made.pid, 0x40000000)
    made.ended()
    run(delete(made))
    return made.status, code, cgroups


def test_all_works_where_clone3_is_blocked(runner: Runner) -> None:
    """As under a container engine whose filter answers ENOSYS: clone(2) does it, and cgroups are joined by hand."""
    bundle = runner.bundle("sleep", "1000")
    data = bundle.write()
    compiled = compile_profile(NO_CLONE3)

    def act() -> tuple[str, int, str]:
        kernel.load(compiled)
        return whole_life(runner, data, str(bundle.path))

    status, code, cgroups = in_child(act)
    assert (status, code) == ("stopped", 7)
    assert all(
        f"manor-tests/{os.getpid()}-" in line for line in cgroups.splitlines() if line.startswith("0::")
    )


def test_another_error_of_clone3_is_told_and_leaves_nothing(runner: Runner) -> None:
    """EAGAIN is no reason to try clone(2): it is the answer, and its number comes along."""
    bundle = runner.bundle("true")
    data = bundle.write()
    compiled = compile_profile(NO_CLONE)

    def act() -> tuple[str, int, str]:
        kernel.load(compiled)
        with pytest.raises(StageError) as caught:
            run(
                create(
                    runner.host, CreateRequest("c", str(bundle.path), load_spec(data), Stdio(), runner.shape)
                )
            )
        return caught.value.operation, caught.value.number, str(caught.value)

    operation, number, text = in_child(act)
    assert (operation, number) == ("clone", 11)
    assert text == "main: clone: Resource temporarily unavailable"


def test_hooks_see_the_mounts_while_the_root_is_the_hosts(runner: Runner) -> None:
    bundle = runner.bundle("true")
    rich(bundle.config)
    order = order_of(lambda: runner.create(bundle))
    assert before(order, "mount root file system", "attend to the host's part")
    assert before(order, "attend to the host's part", "run createContainer hooks")
    assert before(order, "run createContainer hooks", "pivot into")
    assert before(order, "pivot into", "mask and protect paths")
    assert before(order, "write sysctls", "mask and protect paths")
    assert before(order, "set limits", "set credentials")
