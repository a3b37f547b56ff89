"""The runtime without a shim: operations driven by `waiting.run`, on both shapes of the stages."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups.layout import detect_layout
from runtime.container import Container, CreateRequest, ExecRequest, Host, Tenant, open_host
from runtime.operations.apart import ApartRequest, create_apart
from runtime.operations.create import create
from runtime.operations.delete import delete
from runtime.operations.exec import exec_
from runtime.operations.kill import kill
from runtime.operations.start import start
from runtime.spec.load import load_process, load_spec
from runtime.stages.plan import DIRECT, STAGED, Stdio
from runtime.waiting import run
from tests.harness.bundles import Bundle
from tests.harness.mountinfo import mounts_of

GRACE_S = 30.0


@dataclass
class Output:
    """What a program left: its exit code (128 + signal) and what it wrote."""

    code: int
    stdout: str
    stderr: str


@dataclass
class Runner:
    """Makes and runs containers below one directory; remembers them, so that none outlives its test."""

    directory: Path
    host: Host
    shape: str
    apart: bool
    containers: list[Container] = field(default_factory=list)
    _names: int = 0

    def bundle(self, *args: str) -> Bundle:
        self._names += 1
        name = f"b{self._names}"
        (self.directory / name).mkdir()
        return Bundle(self.directory / name, list(args), f"/manor-tests/{os.getpid()}-{name}")

    def create(self, bundle: Bundle, stdio: Stdio | None = None, container_id: str = "") -> Container:
        data = bundle.write()
        name = container_id or bundle.path.name
        stdio = stdio or Stdio()
        if self.apart:
            terminal = bundle.config["process"]["terminal"]
            apart = ApartRequest(name, str(bundle.path), stdio, terminal, shape=self.shape)
            container = run(create_apart(self.host, apart))
        else:
            request = CreateRequest(name, str(bundle.path), load_spec(data), stdio, self.shape)
            container = run(create(self.host, request))
        self.containers.append(container)
        return container

    def started(self, *args: str, change: Callable[[dict[str, Any]], None] | None = None) -> Container:
        bundle = self.bundle(*(args or ("sleep", "1000")))
        if change is not None:
            change(bundle.config)
        container = self.create(bundle)
        run(start(container))
        return container

    def run(self, bundle: Bundle) -> Output:
        """Create, start, wait, delete; everything a container does in its life."""
        with Pipes() as pipes:
            container = self.create(bundle, pipes.stdio)
            pipes.close_far_ends()
            run(start(container))
            output = pipes.collect(container.pid)
        container.ended()
        self.delete(container)
        return output

    def exec(self, container: Container, *args: str, **changes: Any) -> Output:
        with Pipes() as pipes:
            tenant = self.exec_tenant(container, *args, stdio=pipes.stdio, **changes)
            pipes.close_far_ends()
            output = pipes.collect(tenant.pid)
        tenant.pidfd.close()
        return output

    def exec_tenant(
        self, container: Container, *args: str, stdio: Stdio | None = None, **changes: Any
    ) -> Tenant:
        process = Bundle.process(list(args)) | changes
        request = ExecRequest(load_process(_json(process)), stdio or Stdio(), self.shape)
        return run(exec_(container, request))

    def stop(self, container: Container) -> None:
        kill(container, 9)
        os.waitpid(container.pid, 0x40000000)
        container.ended()

    def delete(self, container: Container) -> None:
        run(delete(container))
        self.containers.remove(container)

    def clean(self) -> None:
        for container in list(self.containers):
            try:
                self.stop(container)
            except Exception:
                container.ended()
            self.delete(container)


def _json(value: object) -> bytes:
    import json

    return json.dumps(value).encode()


class Pipes:
    """Three pipes for a child's stdio."""

    def __init__(self) -> None:
        self._stdin, self._stdout, self._stderr = os.pipe(), os.pipe(), os.pipe()
        self.stdio = Stdio(self._stdin[0], self._stdout[1], self._stderr[1])
        self._open = [*self._stdin, *self._stdout, *self._stderr]

    def __enter__(self) -> Pipes:
        return self

    def __exit__(self, *_failure: object) -> None:
        for number in self._open:
            os.close(number)

    def close_far_ends(self) -> None:
        for number in (self.stdio.stdin, self.stdio.stdout, self.stdio.stderr, self._stdin[1]):
            os.close(number)
            self._open.remove(number)

    def collect(self, pid: int) -> Output:
        with open(self._stdout[0], "rb", closefd=False) as out:
            stdout = out.read()
        with open(self._stderr[0], "rb", closefd=False) as err:
            stderr = err.read()
        status = os.waitpid(pid, 0x40000000)[1]
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
        return Output(code, stdout.decode(errors="replace"), stderr.decode(errors="replace"))


def _name(way: tuple[str, bool]) -> str:
    shape, apart = way
    return f"{shape}-apart" if apart else shape


@pytest.fixture(params=[(DIRECT, False), (STAGED, False), (DIRECT, True), (STAGED, True)], ids=_name)
def way(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """Both shapes of stage 1, and create here or in a process of its own: every test holds for all of them."""
    chosen: tuple[str, bool] = request.param
    return chosen


@pytest.fixture
def runner(tmp_path: Path, way: tuple[str, bool]) -> Iterator[Runner]:
    """A Runner; what exists after the test must have existed before it."""
    host = open_host(str(tmp_path / "state"), str(tmp_path / "filters"), detect_layout())
    made = Runner(tmp_path, host, *way)
    before = _inventory(made)
    yield made
    made.clean()
    deadline = time.monotonic() + GRACE_S
    _reap()
    while (left := _inventory(made) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
        _reap()  # a process that has made a container for us may take a while to end
    assert not left, f"left behind: {sorted(left)}"
    host.procfs.close()


def _reap() -> None:
    """Collect the siblings that a process of ours has made for us, as a shim's reaper would."""
    try:
        while os.waitpid(-1, os.WNOHANG | 0x40000000) != (0, 0):
            pass
    except ChildProcessError:
        pass


def _inventory(runner: Runner) -> set[str]:
    """Descriptors and children of this process, our mounts, cgroups and state directories."""
    found = {f"fd {len(os.listdir('/proc/self/fd'))}"}
    for task in os.listdir("/proc/self/task"):
        found |= {f"child {pid}" for pid in Path(f"/proc/self/task/{task}/children").read_text().split()}
    found |= set(mounts_of(runner.directory))
    for hierarchy in runner.host.layout.hierarchies:
        ours = Path(hierarchy.mountpoint) / "manor-tests"
        found |= {f"cgroup {path}" for path in ours.glob(f"{os.getpid()}-*")}
    state = runner.directory / "state"
    found |= {f"state {path}" for path in state.glob("*")} if state.exists() else set()
    return found
