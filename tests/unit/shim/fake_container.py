"""A shim's pod whose containers a runtime plays that does what a test says; and everything it told containerd."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runtime import state
from runtime.bundle import read_config
from runtime.container import Terms
from runtime.errors import InvalidState, NotFound
from runtime.linux.fds import OwnedFd
from runtime.spec.load import load_spec
from runtime.waiting import Sleep
from shim import journal
from shim.api import task, types
from shim.api.events import TaskExit
from shim.api.message import Message
from shim.exits import Hold
from shim.journal import Exit, Journal
from shim.log import Log
from shim.loop import Loop
from shim.pod import Pod
from shim.task_service import TaskService
from shim.tasks import spawn
from shim.ttrpc.connection import Call
from tests.unit.shim.loops import turn_until

CALL = Call(1, "", "", b"")
PROCESS = {"args": ["/bin/sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}}


class Reaper:
    """The reaper's promises, without processes: `end` makes one end."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._watches: dict[int, list[Callable[[int, int], None]]] = {}
        self._holds = 0
        self._kept: dict[int, int] = {}

    def hold(self) -> Hold:
        self._holds += 1
        return Hold(self)  # type: ignore[arg-type]

    def end_hold(self) -> None:
        self._holds -= 1
        if not self._holds:
            self._kept.clear()

    def watch(self, pid: int, ended: Callable[[int, int], None]) -> SimpleNamespace:
        if pid in self._kept:
            self._loop.call_soon(ended, self._kept[pid], 1_000_000_000)
            return SimpleNamespace(cancel=lambda: None)
        self._watches.setdefault(pid, []).append(ended)
        return SimpleNamespace(cancel=lambda: self._cancel(pid, ended))

    def _cancel(self, pid: int, ended: Callable[[int, int], None]) -> None:
        if ended in self._watches.get(pid, []):
            self._watches[pid].remove(ended)

    def end(self, pid: int, wait_status: int = 0) -> None:
        if self._holds:
            self._kept[pid] = wait_status
        for ended in self._watches.pop(pid, []):
            ended(wait_status, 1_000_000_000)


class Cgroup:
    def __init__(self) -> None:
        self.signals: list[int] = []
        self.paths: dict[str, str] = {}

    def signal_all(self, number: int) -> None:
        self.signals.append(number)

    def thaw(self) -> None:
        self.signals.append(0)


class Runtime:
    """operations.*: each step can be made to fail, to take time, or to have its process end meanwhile."""

    def __init__(self, reaper: Reaper) -> None:
        self.reaper = reaper
        self.failing: dict[str, Exception] = {}
        self.ending: dict[str, int] = {}
        self.asked: list[str] = []
        self.next_pid = 100
        self.pidfd: OwnedFd | None = None
        self.leaf: Any = None  # of the next exec

    def _step(self, name: str) -> Generator[Any, Any, int]:
        self.asked.append(name)
        pid = self.next_pid
        yield Sleep(0.001)
        if name in self.failing:
            raise self.failing[name]
        return pid

    def create_apart(self, _host: object, request: Any) -> Generator[Any, Any, SimpleNamespace]:
        spec = load_spec(read_config(request.bundle))
        pid = yield from self._step("create")
        self.next_pid += 1
        if "create" in self.ending:
            self.reaper.end(pid, self.ending["create"])
        is_first = any(each.type == "pid" and not each.path for each in spec.linux.namespaces)
        terms = Terms(namespaces=0, init_is_first=is_first)
        made = SimpleNamespace(
            id=request.id,
            bundle=request.bundle,
            terms=terms,
            pid=pid,
            cgroup=Cgroup(),
            console=None,
            start_time=7,
        )
        made.pidfd = self.pidfd
        made.status, made.marks, made.warnings = state.CREATED, (("clone", 1),), ()

        def require(operation: str, *allowed: str) -> None:
            if made.status not in allowed:
                raise InvalidState(f"cannot {operation} container {made.id} in {made.status} state")

        def ended() -> None:
            made.status = state.STOPPED

        made.require, made.ended = require, ended
        return made

    def start(self, made: SimpleNamespace) -> Generator[Any, Any, None]:
        made.status = state.RUNNING
        if "start" in self.ending:
            self.reaper.end(made.pid, self.ending["start"])
        yield from self._step("start")
        made.marks += (("execve", 2),)

    def exec_(self, made: SimpleNamespace, _request: Any) -> Generator[Any, Any, SimpleNamespace]:
        made.require("exec in", state.RUNNING)
        pid = yield from self._step("exec")
        self.next_pid += 1
        if "exec" in self.ending:
            self.reaper.end(pid, self.ending["exec"])
        return SimpleNamespace(
            pid=pid,
            pidfd=self.pidfd,
            console=None,
            marks=(("clone", 1),),
            warnings=(),
            start_time=8,
            leaf=self.leaf,
        )

    def kill(self, made: SimpleNamespace, number: int, everyone: bool) -> None:
        self.asked.append(f"kill {number} {everyone}")
        if made.status == state.STOPPED:
            raise NotFound("process already finished")

    def pause(self, made: SimpleNamespace) -> Generator[Any, Any, None]:
        made.require("pause", state.CREATED, state.RUNNING)
        yield from self._step("pause")
        made.status = state.PAUSED

    def resume(self, made: SimpleNamespace) -> None:
        made.require("resume", state.PAUSED)
        made.status = state.RUNNING

    def delete(self, made: SimpleNamespace) -> Generator[Any, Any, None]:
        made.require("delete", state.STOPPED, state.CREATED)
        yield from self._step("delete")
        if made.status == state.CREATED:
            self.reaper.end(made.pid, 9)

    def update(self, _made: SimpleNamespace, resources: Any) -> Iterator[Any]:
        self.asked.append(f"update {resources.pids.limit}")
        yield from ()


class Shim:
    """A pod with its service, and everything it told containerd."""

    def __init__(self, loop: Loop, directory: Path, runtime: Runtime, reaper: Reaper) -> None:
        self.loop = loop
        self.directory = directory
        self.runtime = runtime
        self.reaper = reaper
        self.events: list[Message] = []
        self.spans: list[tuple[str, str]] = []
        self.shutdowns = 0
        layout = SimpleNamespace(find=lambda _controller: None)
        self.pod = Pod(
            loop,
            reaper,  # type: ignore[arg-type]
            SimpleNamespace(publish=self.events.append),  # type: ignore[arg-type]
            SimpleNamespace(layout=layout),  # type: ignore[arg-type]
            Log("", "test"),
            lambda name, parent, _marks, _attributes: self.spans.append((name, parent)),
            self._shutdown,
            Journal(str(directory), Log("", "test")),
        )
        self.service = TaskService(self.pod)

    def _shutdown(self) -> None:
        self.shutdowns += 1

    def on_record(self) -> list[Exit]:
        """What the exit journal holds."""
        return journal.read(str(self.directory))

    def told(self) -> list[str]:
        """The events so far: kind, and for exits whose."""
        return [
            f"exit {event.id}"
            if isinstance(event, TaskExit)
            else type(event).__name__.removeprefix("Task").lower()
            for event in self.events
        ]

    def begin(self, method: str, request: Message, call: Call = CALL) -> list[Any]:
        """Call; the answer or the failure is in the list once it is there."""
        answers: list[Any] = []
        try:
            answer = self.service.methods()[method].handler(request, call)
        except Exception as failure:
            return [failure]
        if isinstance(answer, Message):
            return [answer]
        spawn(self.loop, answer, lambda value, failure: answers.append(failure or value))
        return answers

    def ask(self, method: str, request: Message, call: Call = CALL) -> Any:
        answers = self.begin(method, request, call)
        turn_until(self.loop, lambda: answers)
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    def create(self, container_id: str = "c1", linux: object = None) -> int:
        bundle = self.directory / container_id
        bundle.mkdir(exist_ok=True)
        config = {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": PROCESS, "linux": linux or {}}
        (bundle / "config.json").write_text(json.dumps(config))
        request = task.CreateTaskRequest(id=container_id, bundle=str(bundle))
        pid: int = self.ask("Create", request).pid
        return pid

    def start(self, container_id: str = "c1", exec_id: str = "") -> int:
        pid: int = self.ask("Start", task.StartRequest(container_id, exec_id)).pid
        return pid

    def add_exec(self, exec_id: str = "e1", container_id: str = "c1") -> None:
        spec = types.Any("process", json.dumps(PROCESS).encode())
        self.ask("Exec", task.ExecProcessRequest(id=container_id, exec_id=exec_id, spec=spec))

    def delete(self, container_id: str = "c1", exec_id: str = "") -> task.DeleteResponse:
        answer: task.DeleteResponse = self.ask("Delete", task.DeleteRequest(container_id, exec_id))
        return answer

    def status(self, exec_id: str = "", container_id: str = "c1") -> int:
        answer: task.StateResponse = self.ask("State", task.StateRequest(container_id, exec_id))
        return answer.status
