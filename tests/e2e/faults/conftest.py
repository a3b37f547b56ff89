"""A Runner and what the walk over all steps needs: a machine that notes which steps are reached, and leak checks.

Faults happen in processes that share nothing with the test but memory, so what they report goes into a page that
all of them have. The test process adopts orphans, so that a process that outlived its parents is seen as well.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import faults, trace
from runtime.errors import NotFound
from runtime.operations.delete import delete_by_force
from runtime.waiting import run
from tests.e2e.runtime.conftest import Runner, _inventory, _reap, runner, way
from tests.harness.bundles import Bundle

__all__ = ["Runner", "runner", "way"]

GRACE_S = 30.0
PLACES = [(stage, step) for stage, steps in faults.STEPS.items() for step in steps]
_PR_SET_CHILD_SUBREAPER = 36

Place = tuple[str, str]
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def adopting() -> Iterator[None]:
    """Orphans of ours come to us."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    trace.planted = None


class Watch:
    """Notes which steps are reached, in whatever process, and can hold a process at one of them."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, 4096)
        self._released = len(PLACES)

    def note(self, stage: str, step: str) -> None:
        """To be planted: a step that faults.STEPS does not have raises."""
        self._page[PLACES.index((faults.STAGES[stage], step))] = 1

    def hold_at(self, place: Place) -> None:
        """Plant that whoever reaches `place` says so and waits for `release`, 20 s at most."""
        index = PLACES.index(place)
        self._page[self._released] = 0
        self._page[index] = 0

        def hold(stage: str, step: str) -> None:
            if (faults.STAGES.get(stage), step) != place:
                return
            self._page[index] = 1
            deadline = time.monotonic() + 60
            while not self._page[self._released] and time.monotonic() < deadline:
                time.sleep(0.002)

        trace.planted = hold

    def await_reached(self, place: Place, pid: int) -> bool:
        """Whether `place` was reached before process `pid` ended."""
        index = PLACES.index(place)
        while not self._page[index]:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return bool(self._page[index])
            time.sleep(0.001)
        return True

    def release(self) -> None:
        """Let go on whoever is held."""
        self._page[self._released] = 1

    def reached(self) -> list[Place]:
        """What was reached since the last call, in the order of faults.STEPS."""
        found = [place for index, place in enumerate(PLACES) if self._page[index]]
        self._page[: len(PLACES)] = bytes(len(PLACES))
        return found


@pytest.fixture
def watch() -> Watch:
    """A page of notes."""
    return Watch()


class Leaks:
    """What must be there again after a failure: nothing more than before."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._before = _inventory(runner)

    def check(self, what: object) -> None:
        """AssertionError with what is left after the grace."""
        deadline = time.monotonic() + GRACE_S
        while True:
            _reap()
            left = _inventory(self._runner) - self._before
            if not left:
                return
            assert time.monotonic() < deadline, f"{what}: left behind: {sorted(left)}"
            time.sleep(0.01)


def remove(runner: Runner, container_id: str) -> None:
    """What `delete --force` does, by one who did not make the container; there may be nothing left to remove."""
    try:
        run(delete_by_force(runner.host, container_id))
    except NotFound:
        pass


# ---- configurations that lead through all steps ---------------------------------------------------

_SECCOMP = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["reboot"], "action": "SCMP_ACT_ERRNO"}],
}


def rich(config: dict[str, Any]) -> None:
    """New namespaces of every kind but user, hooks at every moment, a filter that is loaded with CAP_SYS_ADMIN."""
    hook = [{"path": "/bin/true"}]
    moments = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    config["hooks"] = dict.fromkeys(moments, hook)
    config["domainname"] = "manor.test"
    config["process"]["noNewPrivileges"] = False
    linux = config["linux"]
    linux["namespaces"].append({"type": "time"})
    linux["timeOffsets"] = {"monotonic": {"secs": 1000}}
    linux["seccomp"] = _SECCOMP
    linux["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "81"}
    linux["personality"] = {"domain": "LINUX"}
    linux["memoryPolicy"] = {"mode": "MPOL_PREFERRED", "nodes": "0"}
    linux["resources"]["pids"] = {"limit": 100}


def joining(pid: int) -> Change:
    """The namespaces of process `pid`, by path, but for mount; a filter that is loaded last of all."""

    def change(config: dict[str, Any]) -> None:
        names = {
            "network": "net",
            "ipc": "ipc",
            "uts": "uts",
            "cgroup": "cgroup",
            "time": "time",
            "pid": "pid",
        }
        paths = [{"type": kind, "path": f"/proc/{pid}/ns/{name}"} for kind, name in names.items()]
        config["linux"]["namespaces"] = [{"type": "mount"}, *paths]
        config["linux"]["seccomp"] = _SECCOMP

    return change


def rich_beside(pid: int) -> Change:
    """The same as `rich`, but in the PID namespace of process `pid`: the world is made by who is not in it."""

    def change(config: dict[str, Any]) -> None:
        rich(config)
        kinds = [each for each in config["linux"]["namespaces"] if each["type"] != "pid"]
        config["linux"]["namespaces"] = [*kinds, {"type": "pid", "path": f"/proc/{pid}/ns/pid"}]

    return change


def on_the_host(config: dict[str, Any]) -> None:
    """No mount namespace of its own: what is mounted below the root is seen by all, and has to be taken away."""
    linux = config["linux"]
    linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "mount"]
    linux["maskedPaths"] = linux["readonlyPaths"] = []


def mapped(config: dict[str, Any]) -> None:
    """A user namespace of its own, and a mount with ids of its own."""
    linux = config["linux"]
    linux["namespaces"] += [{"type": "user"}, {"type": "time"}]
    linux["timeOffsets"] = {"boottime": {"secs": 1000}}
    ids = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    linux["uidMappings"] = linux["gidMappings"] = ids


def with_mapped_mount(bundle: Bundle) -> None:
    """A bind mount whose ids are mapped, which takes the host's side to make."""
    source = bundle.path / "volume"
    source.mkdir(exist_ok=True)
    (bundle.rootfs / "volume").mkdir(exist_ok=True)  # root of a user namespace may make nothing in there
    ids = [{"containerID": 0, "hostID": 200000, "size": 1000}]
    bundle.config["mounts"].append(
        {
            "destination": "/volume",
            "type": "bind",
            "source": str(source),
            "options": ["bind"],
            "uidMappings": ids,
            "gidMappings": ids,
        }
    )


def in_user_namespace_of(pid: int) -> Change:
    """The user namespace of process `pid` and, with it, a network namespace that it owns."""

    def change(config: dict[str, Any]) -> None:
        kinds = [each for each in config["linux"]["namespaces"] if each["type"] != "network"]
        config["linux"]["namespaces"] = [
            *kinds,
            {"type": "user", "path": f"/proc/{pid}/ns/user"},
            {"type": "network", "path": f"/proc/{pid}/ns/net"},
        ]

    return change


def chown_root(path: Path, uid: int) -> None:
    """Give a root file system to the root of a user namespace."""
    os.chown(path, uid, uid)
