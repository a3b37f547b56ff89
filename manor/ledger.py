"""The ledger of a node: what shims have made outside of a process's own life, where it is on record, and whose it is.

Everything that outlives a killed process is on record before it is made, in the pod's directory below
`$MANOR_RUN_DIR/pods`, and the record goes when it has gone. Nothing of that is synced: what it tells of ends with the
kernel. This is all there is:

    what                                  on record in              who removes it
    the shim's socket                     @shim, @socket            the shim; `delete`
    the pod's files, its /dev/shm         its directory, @pod       StopSandbox; `delete`
    a mounted root, a cgroup or unit,     ID/.create, before it is  Delete; `delete`
      a resctrl group, mounts on the host   made; ID/.cgroup, ID/.rdt
      of who has no mount namespace         (inode numbers) and
                                            ID/state.json behind that
    exits, events that wait               @exits, @events           the shim's end; `delete`
    a warden's socket                     its lock beside it        the warden; the next one

Namespaces are held by processes alone, and no fifo is ours: containerd makes them. An exec makes nothing that would
outlive it but a cgroup below its container's, which goes with that.

A pod's directory is owned by whoever holds its lock (`shim/deed.py`), else by a containerd whose bundle it is for: it
will call `delete` when it starts. What neither has, nobody will come for.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runtime import record, state
from runtime.errors import ManorError, NotFound
from runtime.linux.fds import OwnedFd
from runtime.rootfs.pivot import mountinfo, unescape
from runtime.state import State
from shim import deed, sockets
from shim.deed import Deed
from shim.pod_files import PodFiles

PODS = "pods"
STAGE = "manor:["  # how the name of a process of ours begins that is part of a start, or writes a log
ENDED = "ZX"  # the states of a process that has, and nobody has waited for
_PATIENCE_S = 1.0


class Untrusted(Exception):
    """A directory that others may write to says nothing that could be believed."""


@dataclass(frozen=True)
class Stage:
    """A process whose name says that it is ours. `session` is the pid of the shim that it was cloned for."""

    pid: int
    name: str
    state: str
    session: int
    parent: int
    start_time: int


@dataclass(frozen=True)
class Mount:
    """A line of mountinfo. `inside` is the place in its file system, which is the device `device`."""

    id: int
    point: str
    fstype: str
    source: str
    parent: int = 0
    device: str = ""
    inside: str = ""


@dataclass
class Pod:
    """What the ledger says of one pod. A container without a state that could be read is None."""

    directory: str
    deed: Deed | None
    socket: str
    containers: Mapping[str, State | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What people call it; the beginning of its directory's name, where there is no note."""
        return self.deed.id if self.deed is not None else os.path.basename(self.directory)[:12]

    @property
    def namespace(self) -> str:
        """containerd's."""
        return self.deed.namespace if self.deed is not None else ""

    @property
    def files(self) -> PodFiles:
        """The pod's own, where they are: a handler's Root leaves a link."""
        return PodFiles(os.path.realpath(self.directory))

    @property
    def own_socket(self) -> str:
        """Its socket as far as it can be told from another's: they have one name, the directory and it."""
        return self.socket if os.path.basename(self.socket) == os.path.basename(self.directory) else ""

    def bundles(self) -> list[str]:
        """Those of containerd's that are still there; it comes for their containers."""
        named = [known.bundle for known in self.containers.values() if known is not None]
        if self.deed is not None:
            named.append(self.deed.bundle)
        own = (f"{self.files.directory}/", f"{PodFiles(self.directory).directory}/")
        return sorted({each for each in named if not each.startswith(own) and os.path.isdir(each)})

    def containerd_answers(self) -> bool | None:
        """Whether the containerd that has started the shim is there; None if nobody knows which that was."""
        address = "" if self.deed is None else self.deed.containerd.removeprefix("unix://")
        return _accepts(address) if address.startswith("/") else None


def check_directory(path: str) -> None:
    """Untrusted if somebody else could have written what is in there. OSError."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Untrusted(f"{path}: it is not ours, or others may write to it")


def pods(run_dir: str) -> Iterator[Pod]:
    """All pods of a node that there is something of. Untrusted, OSError (but for a run directory that is not there)."""
    top = f"{run_dir}/{PODS}"
    try:
        check_directory(run_dir)  # wardens are in there, too
        names = sorted(os.listdir(top))
    except FileNotFoundError:
        return
    check_directory(top)
    for name in names:
        try:
            found = read_pod(f"{top}/{name}") if os.path.isdir(f"{top}/{name}") else None
        except FileNotFoundError:
            continue  # it has gone in this moment
        if found is not None:
            yield found


def read_pod(directory: str) -> Pod:
    """What the ledger says of the pod with that directory. Untrusted, OSError."""
    check_directory(directory)
    _check_link(directory)
    note = deed.read(directory)
    recorded = sockets.recorded_socket(directory) or (note.socket if note is not None else "")
    names = [name for name in sorted(os.listdir(directory)) if not name.startswith(sockets.NOTE_MARK)]
    return Pod(directory, note, recorded, {name: _state(directory, name) for name in names})


def _check_link(path: str) -> None:
    """Untrusted for a link that no handler's Root has made: such a one leads to a pod's directory of that name."""
    if os.path.islink(path):
        place = os.path.realpath(path)
        names = os.listdir(place)
        ours = not names or any(name.startswith(sockets.NOTE_MARK) for name in names)
        if os.path.basename(place) != os.path.basename(path) or not ours:
            raise Untrusted(f"{path}: it leads to {place}, which is no pod's")


def _state(directory: str, container_id: str) -> State | None:
    """Known by the name of its directory, whatever stands in there."""
    known = _read_state(directory, container_id)
    return known if known is None or known.id == container_id else record.replace(known, id=container_id)


def _read_state(directory: str, container_id: str) -> State | None:
    try:
        return state.load(directory, container_id)
    except ManorError:
        pass
    try:
        return state.salvage(directory, container_id) or state.announced(directory, container_id)
    except NotFound:
        return state.announced(directory, container_id)
    except ManorError:
        return None


def mounts() -> list[Mount]:
    """What is mounted in our mount namespace."""
    found = []
    with mountinfo() as lines:
        for line in lines:
            front, _dash, back = line.partition(" - ")
            fields, (fstype, source) = front.split(" "), back.split(" ")[:2]
            number, parent, device, inside, point = fields[:5]
            places = unescape(point), fstype, unescape(source)
            found.append(Mount(int(number), *places, int(parent), device, unescape(inside)))
    return found


def stages() -> list[Stage]:
    """All processes whose names say that they are ours. A container's may lie: nothing is to be believed of these
    but what the kernel says of them, pid, session and start time.
    """
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stage := _stage(int(entry))) is not None:
            found.append(stage)
    return sorted(found, key=lambda stage: stage.start_time)


def _stage(pid: int) -> Stage | None:
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None  # it has ended
    name = line[line.index(b"(") + 1 : line.rindex(b")")].decode(errors="replace")
    if not name.startswith(STAGE):
        return None
    fields = line[line.rindex(b")") + 2 :].split()
    parent, session, started = int(fields[1]), int(fields[3]), int(fields[19])
    return Stage(pid, name.removeprefix(STAGE).rstrip("]"), fields[0].decode(), session, parent, started)


@dataclass(frozen=True)
class DeadWarden:
    """The stem of the files that a warden has left; the lock, which says that it is dead, is the caller's."""

    stem: str
    lock: OwnedFd


def dead_wardens(run_dir: str) -> Iterator[DeadWarden]:
    """Those whose lock nobody has. Who goes through them holds each lock for as long as that takes."""
    for lock_path in sorted(Path(run_dir).glob("warden-*.lock")):
        try:
            lock = OwnedFd(os.open(lock_path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
        except OSError:
            continue
        with lock:
            try:
                os.lockf(lock.fileno(), os.F_TLOCK, 1)
                still = os.path.samestat(os.fstat(lock.fileno()), os.stat(lock_path))
            except OSError:
                continue  # it lives
            if still:
                yield DeadWarden(str(lock_path)[: -len(".lock")], lock)


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PATIENCE_S)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True  # too busy to answer is there
    return True
