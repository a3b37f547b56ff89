"""A pod's states: what may follow what, what a failure gives back, and who is told of the end.

What would make namespaces, mounts and processes are stand-ins that record what they are asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.errors import CgroupError, NotFound, StageError
from runtime.linux.fds import OwnedFd
from runtime.spec.json import parse
from runtime.waiting import Sleep
from shim import sandbox as sandboxes
from shim.api import sandbox as api
from shim.api import task
from shim.api.pod_config import LinuxPodSandboxConfig, PodSandboxConfig
from shim.api.types import SPEC_URL, pack
from shim.container import DRAIN_TIMEOUT_S
from shim.log import Log
from shim.loop import Loop
from shim.pod import Pod
from shim.sandbox import CREATED, ENDED, NEXT, READY, STOPPED, STOPPING, Sandbox
from shim.sandbox_service import SandboxService
from shim.task_service import TaskService
from shim.tasks import Outcome, spawn
from shim.ttrpc import status
from shim.ttrpc.connection import Call
from shim.ttrpc.status import RpcError
from tests.unit.shim.loops import drive, settle, turn_until

CALL = Call(1, "", "", b"")
LANDLORD = 4711


class World:
    """All that a pod is made of; each step can be made to fail."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.fds: list[OwnedFd] = []
        self.died: Callable[[int, int], None] = lambda _status, _when: None

    def _step(self, name: str) -> Generator[Any, Any, None]:
        self.asked.append(name)
        yield Sleep(0.001)
        if name in self.failing:
            raise self.failing[name]

    def make_namespaces(
        self, _plan: Any, _prepare: Any, _keep: Any
    ) -> Generator[Any, Any, dict[str, OwnedFd]]:
        yield from self._step("make namespaces")
        self.fds = [OwnedFd(os.open("/proc/self/ns/ipc", os.O_RDONLY)) for _ in range(3)]
        return dict(zip(("network", "ipc", "uts"), self.fds, strict=True))

    def bring_up(self, *arguments: Any) -> Generator[Any, Any, SimpleNamespace]:
        yield from self._step("bring up landlord")
        self.died = arguments[-1]
        return SimpleNamespace(
            pid=LANDLORD,
            remove=lambda: self._step("remove landlord"),
            path_of_pid_namespace=lambda: f"/proc/{LANDLORD}/ns/pid",
        )

    def in_child(self, name: str, _run: Any) -> Generator[Any, Any, None]:
        yield from self._step(name)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World()
    monkeypatch.setattr(sandboxes, "make_namespaces", made.make_namespaces)
    monkeypatch.setattr(sandboxes, "landlord", SimpleNamespace(bring_up=made.bring_up))
    monkeypatch.setattr(sandboxes, "rootfs_mounts", SimpleNamespace(in_child=made.in_child))
    yield made
    for fd in made.fds:
        fd.close()


class Shim:
    """The service of a pod, called as containerd does."""

    def __init__(self, loop: Loop, directory: Path) -> None:
        self.loop = loop
        self.shutdowns = 0
        self.pod = Pod(
            loop,
            SimpleNamespace(),  # type: ignore[arg-type]
            SimpleNamespace(publish=lambda _event: None),  # type: ignore[arg-type]
            SimpleNamespace(root=str(directory)),  # type: ignore[arg-type]
            Log("", "test"),
            lambda *_span: None,
            self._shut_down,
        )
        self.methods = SandboxService(self.pod).methods()

    def _shut_down(self) -> None:
        self.shutdowns += 1

    @property
    def sandbox(self) -> Sandbox:
        assert self.pod.sandbox is not None
        return self.pod.sandbox

    def begin(self, method: str, **fields: Any) -> list[Any]:
        """Call; the answer or the failure is in the list once it is there."""
        answers: list[Any] = []
        request = api.METHODS[method][0](sandbox_id=fields.pop("sandbox_id", "p1"), **fields)
        answer = self.methods[method].handler(request, CALL)
        if isinstance(answer, Generator):
            spawn(self.loop, answer, lambda value, failure: answers.append(failure or value))
        else:
            answers.append(answer)
        return answers

    def ask(self, method: str, **fields: Any) -> Any:
        answers = self.begin(method, **fields)
        turn_until(self.loop, lambda: answers)
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    def create(self, shares_pids: bool = False) -> None:
        options = pack(PodSandboxConfig(linux=LinuxPodSandboxConfig("/pods"))) if shares_pids else None
        self.ask("CreateSandbox", options=options)


@pytest.fixture
def shim(loop: Loop, world: World, tmp_path: Path) -> Shim:
    return Shim(loop, tmp_path)


def test_a_life_without_a_landlord(shim: Shim, world: World) -> None:
    shim.create()
    assert (shim.sandbox.status, shim.sandbox.pid, world.asked) == (CREATED, 0, [])
    started = shim.ask("StartSandbox")
    assert (started.pid, shim.sandbox.status) == (os.getpid(), READY)
    assert started.created_at.seconds > 0
    assert started.spec.type_url == SPEC_URL
    assert parse(started.spec.value)["annotations"]["io.kubernetes.cri.sandbox-id"] == "p1"
    tenancy = shim.sandbox.tenancy()
    assert tenancy.pid == os.getpid()
    assert tenancy.paths == {
        name: f"/proc/self/fd/{fd.fileno()}"
        for name, fd in zip(("network", "ipc", "uts"), world.fds, strict=True)
    }
    assert tenancy.fds == tuple(fd.fileno() for fd in world.fds)
    shim.ask("StopSandbox")
    assert (shim.sandbox.status, shim.sandbox.pid) == (STOPPED, 0)
    assert world.asked == ["make namespaces", "remove pod"]
    assert all(fd.closed for fd in world.fds)


def test_a_landlord_is_what_the_pods_namespaces_are_named_by(shim: Shim, world: World) -> None:
    shim.create(shares_pids=True)
    assert shim.ask("StartSandbox").pid == shim.ask("SandboxStatus").pid == LANDLORD
    assert shim.sandbox.tenancy().paths["pid"] == f"/proc/{LANDLORD}/ns/pid"
    shim.ask("StopSandbox")
    assert world.asked == ["make namespaces", "bring up landlord", "remove landlord", "remove pod"]


def test_everybody_who_waits_is_told_of_the_end(shim: Shim) -> None:
    shim.create()
    shim.ask("StartSandbox")
    waits = [shim.begin("WaitSandbox") for _ in range(3)]
    settle(shim.loop)
    assert waits == [[], [], []]
    shim.ask("StopSandbox")
    turn_until(shim.loop, lambda: all(waits))
    waits.append([shim.ask("WaitSandbox")])
    assert {(answer.exit_status, answer.exited_at.seconds > 0) for (answer,) in waits} == {(0, True)}


def test_a_dead_landlord_ends_the_pod_and_leaves_the_rest_to_stop(shim: Shim, world: World) -> None:
    shim.create(shares_pids=True)
    shim.ask("StartSandbox")
    wait = shim.begin("WaitSandbox")
    world.died(9, 5_000_000_000)
    turn_until(shim.loop, lambda: wait)
    assert (wait[0].exit_status, wait[0].exited_at.seconds) == (137, 5)
    answered = shim.ask("SandboxStatus")
    assert (answered.state, answered.pid, shim.sandbox.status) == ("SANDBOX_NOTREADY", 0, ENDED)
    with pytest.raises(RpcError, match="takes no containers"):
        shim.sandbox.tenancy()
    assert not world.fds[0].closed
    shim.ask("StopSandbox")
    assert world.asked[-2:] == ["remove landlord", "remove pod"]
    assert shim.ask("WaitSandbox").exit_status == 137  # the end is told once


@pytest.mark.parametrize("step", ["make namespaces", "bring up landlord"])
def test_a_start_that_fails_gives_everything_back(shim: Shim, world: World, step: str) -> None:
    shim.create(shares_pids=True)
    wait = shim.begin("WaitSandbox")
    world.failing[step] = StageError("0:POD", "do", "it", "no luck")
    with pytest.raises(StageError, match="no luck"):
        shim.ask("StartSandbox")
    assert world.asked[-1] == "remove pod"
    assert all(fd.closed for fd in world.fds)
    assert shim.sandbox.status == STOPPED
    turn_until(shim.loop, lambda: wait)
    with pytest.raises(RpcError, match="cannot start pod p1: it is stopped"):
        shim.ask("StartSandbox")


def test_what_a_failed_start_cannot_give_back_does_not_hide_why_it_failed(shim: Shim, world: World) -> None:
    shim.create()
    world.failing = {"make namespaces": StageError("", "", "", "first"), "remove pod": CgroupError("second")}
    with pytest.raises(StageError, match="first"):
        shim.ask("StartSandbox")


@pytest.mark.parametrize("step", ["remove landlord", "remove pod"])
def test_a_stop_that_fails_can_be_tried_again(shim: Shim, world: World, step: str) -> None:
    shim.create(shares_pids=True)
    shim.ask("StartSandbox")
    world.failing[step] = CgroupError("busy")
    with pytest.raises(CgroupError):
        shim.ask("StopSandbox")
    assert shim.sandbox.status == STOPPING
    assert shim.ask("SandboxStatus").state == "SANDBOX_NOTREADY"
    world.failing.clear()
    shim.ask("StopSandbox")
    assert shim.sandbox.status == STOPPED


def test_of_two_starts_at_once_one_makes_the_pod(shim: Shim, world: World) -> None:
    shim.create()
    first, second = shim.begin("StartSandbox"), shim.begin("StartSandbox")
    turn_until(shim.loop, lambda: first and second)
    assert first[0].pid == os.getpid()
    assert isinstance(second[0], RpcError)
    assert world.asked == ["make namespaces"]


def test_a_stop_waits_for_a_start_and_takes_all_that_it_has_made(shim: Shim, world: World) -> None:
    shim.create(shares_pids=True)
    starting, stopping = shim.begin("StartSandbox"), shim.begin("StopSandbox")
    turn_until(shim.loop, lambda: starting and stopping)
    assert world.asked == ["make namespaces", "bring up landlord", "remove landlord", "remove pod"]
    assert all(fd.closed for fd in world.fds)
    shim.ask("StopSandbox")
    assert (shim.sandbox.status, world.asked[-1:]) == (STOPPED, ["remove pod"])


def test_two_stops_at_once_give_back_once(shim: Shim, world: World) -> None:
    shim.create()
    shim.ask("StartSandbox")
    stops = [shim.begin("StopSandbox") for _ in range(2)]
    turn_until(shim.loop, lambda: all(stops))
    assert world.asked.count("remove pod") == 1


def test_a_pod_that_was_never_started_has_nothing_to_give_back(shim: Shim, world: World) -> None:
    shim.create()
    shim.ask("StopSandbox")
    assert (shim.sandbox.status, world.asked) == (STOPPED, [])


class Container:
    """One of the pod's; `kill` makes it end soon, if it listens, and finds no process in it, if it is `gone`."""

    def __init__(self, pod: Pod, listens: bool = True, container_id: str = "c1", gone: bool = False) -> None:
        self.id = container_id
        self.gone = gone
        self.pod = pod
        self.listens = listens
        self.init = SimpleNamespace(status="running", exited=Outcome())
        self.deleted = False
        self.patience_s = -1.0

    def kill(self, init: Any, number: int, everyone: bool) -> Generator[Any, Any, None]:
        assert (init, number, everyone) == (self.init, 9, True)
        yield Sleep(0.001)
        if self.listens:
            self.pod.loop.call_later(0.005, self._end)
        if self.gone:
            raise NotFound("process already finished")

    def _end(self) -> None:
        self.init.status = "stopped"
        self.init.exited.set()

    def delete(self, _init: Any, patience_s: float) -> Generator[Any, Any, None]:
        """Its reader takes all the time that it is given, but no more than 50 ms."""
        self.patience_s = patience_s
        yield Sleep(min(patience_s, 0.05))
        self.deleted = True
        self.pod.remove(self.id)


@pytest.mark.parametrize("gone", [False, True])
def test_a_stop_ends_containers_before_it_gives_back(shim: Shim, world: World, gone: bool) -> None:
    """Also one that has just ended, and whose exit is not told yet."""
    shim.create()
    shim.ask("StartSandbox")
    container = Container(shim.pod, gone=gone)
    shim.pod.add(container)  # type: ignore[arg-type]
    shim.ask("StopSandbox")
    assert container.init.exited.done
    assert not container.deleted
    assert world.asked == ["make namespaces", "remove pod"]


def test_a_container_that_does_not_end_keeps_its_pod(shim: Shim, world: World) -> None:
    shim.create()
    shim.ask("StartSandbox")
    container = Container(shim.pod, listens=False)
    shim.pod.add(container)  # type: ignore[arg-type]
    with pytest.raises(TimeoutError, match="container c1 was killed and has not ended"):
        drive(shim.loop, shim.sandbox.stop(0.05))
    assert world.asked == ["make namespaces"]
    assert not world.fds[0].closed
    container.listens = True
    shim.ask("StopSandbox")
    assert all(fd.closed for fd in world.fds)


def test_shutdown_takes_along_what_nobody_has_deleted(shim: Shim, world: World) -> None:
    shim.create()
    shim.ask("StartSandbox")
    container = Container(shim.pod)
    shim.pod.add(container)  # type: ignore[arg-type]
    shim.ask("ShutdownSandbox")
    assert container.deleted
    assert (shim.pod.sandbox, shim.shutdowns) == (None, 1)


@pytest.mark.parametrize("given_s", [0.0, 5.0, float("inf")])
def test_readers_of_a_pod_that_is_shut_down_share_the_time_there_is(
    shim: Shim, world: World, given_s: float
) -> None:
    shim.create()
    shim.ask("StartSandbox")
    first, second = Container(shim.pod), Container(shim.pod, container_id="c2")
    for container in (first, second):
        shim.pod.add(container)  # type: ignore[arg-type]
    drive(shim.loop, shim.sandbox.dissolve(given_s))
    assert first.deleted
    assert second.deleted
    assert 0 <= first.patience_s <= min(given_s, DRAIN_TIMEOUT_S)
    assert 0 <= second.patience_s <= max(0.0, first.patience_s - 0.05)


def test_a_shim_whose_create_was_refused_can_be_shut_down(shim: Shim) -> None:
    shim.ask("ShutdownSandbox")
    assert shim.shutdowns == 1


def test_a_pod_is_not_shut_down_by_another_id(shim: Shim) -> None:
    shim.create()
    with pytest.raises(RpcError) as failure:
        shim.ask("ShutdownSandbox", sandbox_id="p2")
    assert (failure.value.code, shim.shutdowns) == (status.NOT_FOUND, 0)


def test_the_task_service_ends_a_pods_shim_by_the_pods_own_id_only(shim: Shim, loop: Loop) -> None:
    """containerd asks for each deleted task of an older shim; and for the shim of a pod that it does not know."""
    shim.create()
    shim.ask("StartSandbox")
    service = TaskService(shim.pod)
    drive(loop, service.shutdown(task.ShutdownRequest("c1"), CALL))
    assert (shim.sandbox.status, shim.shutdowns) == (READY, 0)
    drive(loop, service.shutdown(task.ShutdownRequest("p1"), CALL))
    assert (shim.pod.sandbox, shim.shutdowns) == (None, 1)


def test_the_states_lead_to_the_end() -> None:
    assert {after for allowed in NEXT.values() for after in allowed} == set(NEXT) - {CREATED}
    assert [state for state, allowed in NEXT.items() if not allowed] == [STOPPED]
