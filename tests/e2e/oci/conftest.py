"""The command line, held beside runc's: every case runs on `manor-oci` and on runc 1.5.1.

Where the two may differ (wording, mostly) the case says what both must have in common. What exists after a test
must have existed before it: containers, their cgroups, mounts, processes and files.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.harness import tools
from tests.harness.bundles import Bundle
from tests.harness.commands import in_files
from tests.harness.mountinfo import mount_points, mounts_of
from tests.harness.paths import VENV
from tests.harness.waiting import eventually

GRACE_S = 30.0
MANOR, RUNC = "manor-oci", "runc"
PARENT = "manor-oci-tests"  # of all cgroups made here
_MESSAGE = re.compile(r'^time="[^"]*" level=error msg=(.*)$', re.MULTILINE)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runc does otherwise: tests marked `manor_only`, which say why."""

    def left_out(item: pytest.Item) -> bool:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return parameters.get("oci") == RUNC and item.get_closest_marker("manor_only") is not None

    config.hook.pytest_deselected(items=[item for item in items if left_out(item)])
    items[:] = [item for item in items if not left_out(item)]


@dataclass
class Done:
    """What a command left: its exit code and what it wrote."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The message of the last line of level error on standard error, unquoted."""
        found: list[str] = _MESSAGE.findall(self.stderr)
        assert found, f"no error was logged: {self.stderr!r}"
        text: str = json.loads(found[-1]) if found[-1].startswith('"') else found[-1]
        return text


@dataclass
class Oci:
    """One runtime's command with a root directory of its own; deletes what it has made."""

    name: str
    program: Path
    directory: Path
    made: int = 0
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.directory / "state"

    @property
    def is_manor(self) -> bool:
        return self.name == MANOR

    def words(self, *arguments: str | Path) -> list[str]:
        return [str(self.program), "--root", str(self.root), *map(str, arguments)]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "MANOR_OCI_TEST": str(self.directory)}

    def __call__(
        self,
        *arguments: str | Path,
        stdin: bytes | None = None,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
        timeout_s: float = 60,
    ) -> Done:
        """Run the command to its end. Its output goes to files: what it leaves running may keep them."""
        return self.run(
            self.words(*arguments), stdin=stdin, cwd=cwd, env=env, pass_fds=pass_fds, timeout_s=timeout_s
        )

    def run(
        self,
        words: list[str],
        stdin: bytes | None = None,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
        timeout_s: float = 60,
    ) -> Done:
        """The same for a whole command line."""
        environment = {**self.environment(), **(env or {})}
        place = cwd or self.directory
        done = Done(*in_files(words, stdin or b"", timeout_s, cwd=place, env=environment, pass_fds=pass_fds))
        if self.name == RUNC and not {"start", "-d", "--detach"}.isdisjoint(words):
            self._await_programs()
        return done

    def _await_programs(self) -> None:
        """runc says that a container is started a moment before it is its program."""
        init = f"{self.program}\0init\0".encode()
        for path in self.root.glob("*/state.json"):
            if not (path.parent / "exec.fifo").exists():
                pid = json.loads(path.read_bytes())["init_process_pid"]
                _await_other_command_line(pid, init)

    def ok(self, *arguments: str | Path, **how: Any) -> str:
        """What it printed, if it succeeded."""
        done = self(*arguments, **how)
        assert done.code == 0, f"{self.name} {arguments}: exit code {done.code}: {done.stderr}"
        return done.stdout

    def begin(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Start the command and leave it running, its output in a pipe; ended with the test."""
        running = subprocess.Popen(
            self.words(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.directory,
            env=self.environment(),
        )
        self.running.append(running)
        return running

    # ---- containers ----------------------------------------------------------------------------

    def bundle(self, *program: str, change: Callable[[dict[str, Any]], None] | None = None) -> Bundle:
        """A bundle, written, with a cgroup of its own; its directory's name is free as a container's id."""
        self.made += 1
        name = f"c{self.made}"
        (self.directory / name).mkdir()
        args = list(program or ("sleep", "1000"))
        bundle = Bundle(self.directory / name, args, f"/{PARENT}/{os.getpid()}-{name}")
        if change is not None:
            change(bundle.config)
        bundle.write()
        return bundle

    def created(self, *program: str, change: Callable[[dict[str, Any]], None] | None = None) -> str:
        """The id of a container that waits to be started."""
        bundle = self.bundle(*program, change=change)
        self.ok("create", "--bundle", bundle.path, bundle.path.name)
        return bundle.path.name

    def started(self, *program: str, change: Callable[[dict[str, Any]], None] | None = None) -> str:
        """The id of a running container, which sleeps unless told otherwise."""
        bundle = self.bundle(*program, change=change)
        self.ok("run", "--detach", "--bundle", bundle.path, bundle.path.name)
        return bundle.path.name

    def stopped(self) -> str:
        """The id of a container that has been killed."""
        name = self.started()
        self.ok("kill", name, "KILL")
        self.await_status(name, "stopped")
        return name

    def state(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.ok("state", name))
        return state

    def await_status(self, name: str, status: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while (found := self.state(name)["status"]) != status:
            assert time.monotonic() < deadline, f"{name} is {found}, not {status}"
            time.sleep(0.02)

    def cgroup_file(self, name: str, file: str) -> str:
        """The content of a container's cgroup file, wherever its controller is."""
        for place in cgroup_directories(name):
            if (place / file).exists():
                return (place / file).read_text().strip()
        raise AssertionError(f"{name} has no {file}")

    def clean(self) -> None:
        for running in self.running:
            if running.poll() is None:
                running.kill()
            running.communicate()
        if self.root.exists():
            for directory in self.root.iterdir():
                if directory.name[0] not in ".@":
                    self("delete", "--force", directory.name)


def _await_other_command_line(pid: int, than: bytes) -> None:
    eventually(lambda: _command_line(pid) != than)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def cgroup_mounts() -> list[Path]:
    """Where the hierarchies are mounted."""
    return [place for place in map(Path, mount_points()) if (place / "cgroup.procs").exists()]


def cgroup_directories(name: str = "*") -> list[Path]:
    """The cgroups of the container `name`, or of all made by this process, in every hierarchy."""
    return [found for place in cgroup_mounts() for found in place.glob(f"{PARENT}/{os.getpid()}-{name}")]


def end_cgroups() -> None:
    """Kill whoever is in a cgroup of ours, and remove it."""
    for _attempt in range(50):
        places = cgroup_directories()
        for place in places:
            for pid in (place / "cgroup.procs").read_text().split():
                os.kill(int(pid), 9)
            try:
                for below in sorted(place.glob("**/"), reverse=True):
                    below.rmdir()
            except OSError:
                time.sleep(0.05)
        if not places:
            return


def inventory(oci: Oci) -> set[str]:
    """Everything that a test could leave behind."""
    mark = f"MANOR_OCI_TEST={oci.directory}".encode()
    found = {f"cgroup {path}" for path in cgroup_directories()}
    found |= {f"mount {line}" for line in mounts_of(oci.directory)}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.add(f"process {entry.name} {(entry / 'comm').read_text().strip()}")
        except OSError:
            continue  # ended meanwhile
    if oci.root.exists():
        found |= {f"state {path.name}" for path in oci.root.iterdir() if path.name[0] not in ".@"}
    return found


@pytest.fixture(scope="session")
def programs() -> Iterator[dict[str, Path]]:
    """Both runtimes."""
    yield {MANOR: VENV / "bin" / MANOR, RUNC: tools.program(tools.RUNC_1, "runc")}
    for place in cgroup_mounts():
        try:
            (place / PARENT).rmdir()
        except OSError:
            continue  # another run uses it


@pytest.fixture(params=[MANOR, RUNC])
def oci(request: pytest.FixtureRequest, programs: dict[str, Path], tmp_path: Path) -> Iterator[Oci]:
    """The runtime under test."""
    tmp_path.chmod(0o711)
    made = Oci(request.param, programs[request.param], tmp_path)
    before = inventory(made)
    yield made
    made.clean()
    deadline = time.monotonic() + GRACE_S
    while (left := inventory(made) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        end_cgroups()  # so that one failure is not many
    assert not left, f"left behind: {sorted(left)}"
