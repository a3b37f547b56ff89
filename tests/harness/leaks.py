"""What exists on the machine that an instance answers for, before and after.

Everything an instance makes carries its name (see `instances`), so other people's mounts and processes are not
seen at all. Where nothing else runs (`$CI`), links, mounts and top-level cgroups of the whole machine are
compared as well, in case something escaped its name. The kernel and PID 1 get five seconds' grace.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import cni, instances
from tests.harness.containerd import Containerd
from tests.harness.instances import Instance
from tests.harness.mountinfo import mount_points

GRACE_S = 30.0
# Directories below containerd's root and state that have one entry per pod, container or task.
KEPT_DIRECTORIES = (
    "state/io.containerd.runtime.v2.task/*",
    "root/io.containerd.runtime.v2.task/*",
    "state/io.containerd.sandbox.controller.v1.shim/*",
    "root/io.containerd.sandbox.controller.v1.shim/*",
    "state/io.containerd.grpc.v1.cri/*",
    "root/io.containerd.grpc.v1.cri/*",
    "state/io.containerd.cri.v1.runtime/*",
    "root/io.containerd.cri.v1.runtime/*",
    "s",
)
# How many descriptors more a Go daemon may have open: connections it caches, not pods it forgot.
DAEMON_SLACK = 4


@dataclass(frozen=True)
class Inventory:
    """Everything that exists at one moment, by kind."""

    things: dict[str, frozenset[str]]
    descriptors: dict[str, int] = field(default_factory=dict)

    def more_than(self, earlier: Inventory) -> list[str]:
        """What is here and was not `earlier`, one line each."""
        found = [
            f"{kind}: {thing}"
            for kind, things in self.things.items()
            for thing in sorted(things - earlier.things.get(kind, frozenset()))
        ]
        for owner, count in self.descriptors.items():
            before = earlier.descriptors.get(owner)
            if before is not None and count > before + (
                DAEMON_SLACK if owner.startswith("containerd") else 0
            ):
                found.append(f"descriptors: {owner} had {before} open, now {count}")
        return found


def take(node: Containerd) -> Inventory:
    """Look at everything that a node answers for."""
    instance = node.instance
    # The daemon may have been restarted in between: it is not what we look for. A warden is, if it stays.
    ours = list(instance.processes())
    parents = {found.pid for found in ours} | {node.process.pid}
    visible = {str(found) for found in ours if found.pid != node.process.pid and not _stays(found.pid)}
    things = {
        "process": frozenset(visible),
        "zombie": frozenset(_zombies(parents)),
        "mount": frozenset(instance.mounts()) | frozenset(instance.mounts(node.process.pid)),
        "cgroup": frozenset(str(path) for path in instance.cgroups() if path.name != instance.network),
        "link": frozenset(cni.links(instance)),
        "network": frozenset(cni.leases(instance)),
        "file": frozenset(_kept_files(instance)) | frozenset(_run_files(node)),
        "socket": frozenset(_sockets(instance)),
    }
    if os.environ.get("CI"):
        things |= _machine()
    return Inventory(things, _descriptors(node))


@contextmanager
def nothing_left(node: Containerd) -> Iterator[None]:
    """Fail with a list if more exists at the end than at the beginning, after the grace."""
    before = take(node)
    yield
    assert_nothing_more(node, before)


def assert_nothing_more(node: Containerd, before: Inventory) -> None:
    """Compare with an earlier inventory until it is equal or the grace is over; then AssertionError with a list."""
    deadline = time.monotonic() + GRACE_S
    while True:
        left = take(node).more_than(before)
        if not left:
            return
        if time.monotonic() > deadline:
            raise AssertionError("left behind:\n  " + "\n  ".join(left))
        time.sleep(0.1)


def _zombies(parents: set[int]) -> Iterator[str]:
    """Ended children that one of `parents` has not reaped; they have no environment any more that says whose."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := instances.process(int(entry))) is not None:
            if found.state == "Z" and found.parent in parents:
                yield f"{found} child of {found.parent}"


def _arguments(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _is_warden(pid: int) -> bool:
    return any(argument.startswith(b"manor-warden") for argument in _arguments(pid)[:1])


def _is_scribe(pid: int) -> bool:
    return any(b"shim.scribe" in argument for argument in _arguments(pid))


def _stays(pid: int) -> bool:
    """Whether a process outlives the pods by design: a node has one warden and one scribe."""
    return _is_warden(pid) or _is_scribe(pid)


def wardens(node: Containerd) -> list[int]:
    """The pids of a node's wardens."""
    return [found.pid for found in node.instance.processes() if _is_warden(found.pid)]


def staying(node: Containerd) -> dict[str, int]:
    """The processes that Manor has beside its shims, by kind and pid."""
    kinds = (("warden", _is_warden), ("scribe", _is_scribe))
    pids = [found.pid for found in node.instance.processes()]
    return {f"{kind} {pid}": pid for pid in pids for kind, is_one in kinds if is_one(pid)}


def _kept_files(instance: Instance) -> Iterator[str]:
    """Entries of the directories where pods, containers, tasks and shims have one each; containers' logs are ours."""
    for pattern in KEPT_DIRECTORIES:
        for directory in instance.directory.glob(pattern):
            if directory.is_dir():
                yield from (str(entry) for entry in directory.iterdir())
    yield from (str(path) for path in instance.shared_sockets())
    yield from (str(path) for path in (instance.directory / "tmp").glob("*"))


def _run_files(node: Containerd) -> Iterator[str]:
    """What lies in Manor's run directory, but for what a warden keeps there for the next pod."""
    for path in node.run_dir.rglob("*"):
        if not path.name.startswith(("warden", "filters", "seccomp", "scribe", "spans", "lock")):
            if not any(part.startswith(("filters", "seccomp")) for part in path.parts):
                yield str(path)


def _sockets(instance: Instance) -> Iterator[str]:
    """Unix sockets bound below the instance's directory; the daemon's own come and go with it."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if len(words) == 8 and words[7].startswith(f"{instance.directory}/"):
                if "containerd.sock" not in words[7]:
                    yield words[7]


def _descriptors(node: Containerd) -> dict[str, int]:
    """How many files the daemon and what stays of Manor have open."""
    owners = {f"containerd {node.process.pid}": node.process.pid} | staying(node)
    counts = {}
    for owner, pid in owners.items():
        try:
            counts[owner] = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            pass
    return counts


def _machine() -> dict[str, frozenset[str]]:
    """Kinds of things that rarely change on a machine where nobody else works."""
    mine = f"/{instances.PREFIX}"
    cgroups: Iterable[Path] = (entry for top in instances.hierarchies() for entry in top.iterdir())
    return {
        "link of the machine": frozenset(os.listdir("/sys/class/net")),
        "mount of the machine": frozenset(point for point in mount_points() if mine not in point),
        "cgroup of the machine": frozenset(
            str(path) for path in cgroups if path.is_dir() and mine not in str(path)
        ),
    }
