"""The same config.json for Manor and for runc: what a program finds itself to be must be the same with both."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from runtime.stages.plan import DIRECT, STAGED
from tests.e2e.runtime.conftest import Output, Runner, runner
from tests.harness import tools

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.bundles import Bundle

__all__ = ["Runc", "Runner", "runc", "runner", "way"]


@pytest.fixture(params=[(DIRECT, True), (STAGED, False)], ids=["direct-apart", "staged"])
def way(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """Half of the ways that `runner` knows: each shape, and create here and apart. The other tests have them all."""
    chosen: tuple[str, bool] = request.param
    return chosen


@dataclass
class Runc:
    """runc with a root directory of its own; deletes what it has started."""

    program: Path
    root: Path
    ids: list[str] = field(default_factory=list)

    def _call(self, *arguments: str) -> Output:
        done = subprocess.run(
            [self.program, "--root", self.root, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=60,
        )
        return Output(done.returncode, done.stdout, done.stderr)

    def run(self, bundle: Bundle) -> Output:
        """`runc run` to the program's end."""
        bundle.write()
        return self._call("run", "--bundle", str(bundle.path), f"manor-test-{os.getpid()}-{bundle.path.name}")

    def started(self, bundle: Bundle) -> tuple[str, int]:
        """`runc run --detach`: the container's id and the pid of its init."""
        bundle.write()
        name = f"manor-test-{os.getpid()}-{bundle.path.name}"
        pid_file = bundle.path / "pid"
        log = bundle.path / "log"
        options = ["--detach", "--pid-file", str(pid_file), "--bundle", str(bundle.path)]
        call = [str(self.program), "--root", str(self.root), "run", *options, name]
        with open(log, "wb") as stream:  # not a pipe: the container keeps it
            done = subprocess.run(call, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, check=False)
        assert done.returncode == 0, log.read_text()
        self.ids.append(name)
        return name, int(pid_file.read_text())

    def exec(self, name: str, process: dict[str, Any], directory: Path) -> Output:
        """`runc exec` with a whole process.json."""
        file = directory / "process.json"
        file.write_text(json.dumps(process))
        return self._call("exec", "--process", str(file), name)

    def clean(self) -> None:
        for name in self.ids:
            self._call("delete", "--force", name)


@pytest.fixture
def runc(tmp_path: Path) -> Iterator[Runc]:
    """runc of the version that the tools are pinned to."""
    made = Runc(tools.program(tools.RUNC_1, "runc"), tmp_path / "runc")
    yield made
    made.clean()
