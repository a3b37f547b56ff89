"""Real cgroups with real processes in them, made below a parent of our own."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from runtime.cgroups.cgroup import Cgroup, create_cgroup
from runtime.cgroups.layout import Layout, detect_layout
from runtime.linux.fds import OwnedFd, pipe
from runtime.linux.process import clone3
from runtime.spec.model import Resources

BUSYBOX = "/bin/busybox"
GRACE_S = 30.0


@dataclass
class Yard:
    """Makes cgroups and puts processes into them, as the stages do."""

    layout: Layout
    parent: str
    cgroups: list[Cgroup] = field(default_factory=list)
    members: dict[int, int] = field(default_factory=dict)

    def make(self, name: str = "", **parts: Any) -> Cgroup:
        path = f"/{self.parent}/{name or f'c{len(self.cgroups)}'}"
        made = create_cgroup(self.layout, path, Resources(**parts))
        made.confine()
        self.cgroups.append(made)
        return made

    def file(self, cgroup: Cgroup, name: str) -> Path:
        """A file of `cgroup`, found by its controller, which is the first part of its name."""
        controller = name.partition(".")[0]
        places = self.layout.places(cgroup.path)
        directory = places[controller][0] if controller in places else cgroup.paths["unified"]
        return Path(directory) / name

    def read(self, cgroup: Cgroup, name: str) -> str:
        return self.file(cgroup, name).read_text().strip()

    def is_v1(self, controller: str) -> bool:
        found = self.layout.find(controller)
        return found is not None and found.version == 1

    def spawn(self, cgroup: Cgroup, *arguments: str, v2_dir: OwnedFd | None = None, landlord: int = 0) -> int:
        """Start busybox with `arguments` as a member of `cgroup`; the pid. OSError as clone3 or the join has it."""
        failure, report = pipe()
        with failure, report, cgroup.open_join(landlord) as join:
            directory = v2_dir or join.v2_dir
            pid, pidfd = clone3(0, signal.SIGCHLD, directory.fileno() if directory is not None else -1)
            if not pid:
                _become_member(join.enter_v1, arguments, report.fileno())
            self.members[pid] = pidfd
            report.close()
            if number := os.read(failure.fileno(), 16):
                raise OSError(int(number), os.strerror(int(number)))
        return pid

    def wait(self, pid: int) -> int:
        """The exit code of a member, negative for a signal."""
        waited: list[int] = []

        def ended() -> bool:
            found, status = os.waitpid(pid, os.WNOHANG)
            waited.append(status)
            return found == pid

        until(ended)
        os.close(self.members.pop(pid))
        return os.waitstatus_to_exitcode(waited[-1])

    def run(self, cgroup: Cgroup, *arguments: str) -> int:
        return self.wait(self.spawn(cgroup, *arguments))

    def close(self) -> None:
        for cgroup in self.cgroups:
            cgroup.thaw()
            cgroup.signal_all(signal.SIGKILL)
        for pid in list(self.members):
            os.kill(pid, signal.SIGKILL)
            self.wait(pid)
        for cgroup in self.cgroups:
            until(cgroup.try_delete)
        until(Cgroup(detect_layout(), self.parent).try_delete)  # in all of them: runc goes everywhere


def _become_member(enter: Any, arguments: tuple[str, ...], report: int) -> NoReturn:
    try:
        enter()
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.execv(BUSYBOX, ["busybox", *arguments])
    except OSError as error:
        os.write(report, str(error.errno).encode())
    finally:
        os._exit(127)


def until(true: Any) -> None:
    """Ask until `true()` is; the kernel ends processes in its own time."""
    deadline = time.monotonic() + GRACE_S
    while not true():
        assert time.monotonic() < deadline, true
        time.sleep(0.01)
