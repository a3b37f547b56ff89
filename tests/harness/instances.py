"""What marks a thing on the machine as ours, and how everything of one instance is ended.

An instance is a short random name. Its directory, cgroup parent, bridge, containerd namespaces and an
environment variable of all its processes carry that name, so that clean-up can be complete and never
touches anything else. An instance whose owner died is swept by the next run.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.harness.mountinfo import mount_lines, mount_points
from tests.harness.paths import scratch_dir

MARK = "MANOR_INSTANCE"
PREFIX = "mnr-"
CGROUP_ROOT = Path("/sys/fs/cgroup")
CNI_RESULTS = Path("/var/lib/cni/results")
SHARED_SOCKETS = Path("/run/containerd/s")


@dataclass(frozen=True)
class Process:
    """A process as /proc shows it; pid and start time together are its identity."""

    pid: int
    start_time: int
    state: str
    command: str
    parent: int

    def __str__(self) -> str:
        return f"{self.pid} {self.command} ({self.state})"


def process(pid: int) -> Process | None:
    """Read /proc/<pid>/stat. None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    command = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    return Process(pid, int(fields[19]), fields[0], command, int(fields[1]))


def spawn(
    arguments: list[str], environment: dict[str, str], log: Path, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a server that ends with us, its output appended to `log`, in a session of its own."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd=cwd,
        )


def stop(server: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
    """Ask a server to end; kill it if it does not."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(timeout_s)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


class Instance:
    """One name, and everything on the machine that carries it."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.directory = scratch_dir() / f"{PREFIX}{name}"
        self.cgroup_parent = f"/{PREFIX}{name}"
        self.bridge = f"mnr{name}"
        self.network = f"{PREFIX}{name}"

    @classmethod
    def create(cls) -> Instance:
        """Make a new instance, after sweeping those whose owners are gone."""
        sweep()
        instance = cls(secrets.token_hex(3))
        instance.directory.mkdir(mode=0o711)
        own = process(os.getpid())
        assert own is not None
        owner = f"{own.pid} {own.start_time}\n"
        (instance.directory / "owner").write_text(owner, encoding="ascii")
        return instance

    def environment(self) -> dict[str, str]:
        """The environment of its processes: ours, and the mark."""
        temporary = self.directory / "tmp"
        temporary.mkdir(exist_ok=True)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
        return {**inherited, MARK: self.id, "TMPDIR": str(temporary)}

    def owned(self) -> bool:
        """Whether the process that made it still runs."""
        try:
            pid, start_time = (self.directory / "owner").read_text(encoding="ascii").split()
        except (OSError, ValueError):
            return False
        owner = process(int(pid))
        return owner is not None and owner.start_time == int(start_time)

    def processes(self) -> Iterator[Process]:
        """Every process that carries the mark in its environment or the name in its cgroup, zombies included."""
        mark = f"{MARK}={self.id}".encode()
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            if self._is_ours(entry, mark) and (found := process(int(entry))) is not None:
                yield found

    def _is_ours(self, entry: str, mark: bytes) -> bool:
        try:
            with open(f"/proc/{entry}/cgroup", "rb") as file:
                if f"{PREFIX}{self.id}".encode() in file.read():
                    return True
            with open(f"/proc/{entry}/environ", "rb") as file:
                return mark in file.read().split(b"\0")
        except OSError:
            return False

    def cgroups(self) -> Iterator[Path]:
        """Every cgroup directory of this instance in every hierarchy, the deepest first."""
        for hierarchy in hierarchies():
            top = hierarchy / self.cgroup_parent.lstrip("/")
            if top.is_dir():
                for directory, _, _ in os.walk(top, topdown=False):
                    yield Path(directory)

    def mounts(self, pid: str | int = "self") -> Iterator[str]:
        """Mount points below its directory, in the mount namespace of `pid`, in the order they were made."""
        below = f"{self.directory}/"
        for point in mount_points(pid):
            if point.startswith(below):
                yield point

    def destroy(self) -> None:
        """End and remove everything of the instance, whatever state it is in. Can be called again."""
        self._kill()
        for point in reversed(list(self.mounts())):
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        self._remove_cgroups()
        if Path("/sys/class/net", self.bridge).exists():
            subprocess.run(["ip", "link", "delete", self.bridge], check=False, capture_output=True)
        for result in CNI_RESULTS.glob(f"{self.network}-*"):
            result.unlink(missing_ok=True)
        for socket in self.shared_sockets():
            socket.unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def shared_sockets(self) -> Iterator[Path]:
        """Sockets that shims of containerd 1.6 keep in a directory that all containerds of the machine share."""
        for bundle in (self.directory / "state" / "io.containerd.runtime.v2.task").glob("*/*"):
            # containerd 1.6, runtime/v2/shim/util_unix.go: the name hashes daemon, namespace and id.
            name = f"{self.directory}/containerd.sock/{bundle.parent.name}/{bundle.name}"
            socket = SHARED_SOCKETS / hashlib.sha256(name.encode()).hexdigest()
            if socket.exists():
                yield socket

    def _kill(self) -> None:
        """Kill its processes until none is left: one may fork while we look."""
        self._thaw()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            alive = [found for found in self.processes() if found.state not in ("Z", "X")]
            if not alive:
                return
            for found in alive:
                try:
                    os.kill(found.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.02)

    def _thaw(self) -> None:
        """What is frozen cannot die."""
        for directory in self.cgroups():
            for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                try:
                    (directory / name).write_text(word)
                except OSError:
                    pass  # of another hierarchy, or gone

    def _remove_cgroups(self) -> None:
        for _ in range(50):
            left = list(self.cgroups())
            if not left:
                return
            for directory in left:
                try:
                    directory.rmdir()
                except OSError:
                    pass  # busy while the last process is on its way out: we come again
            time.sleep(0.02)


def hierarchies() -> list[Path]:
    """Where cgroup hierarchies are mounted, version 1 and 2."""
    found = []
    for line in mount_lines():
        before, _, after = line.partition(" - ")
        if after.split()[0] in ("cgroup", "cgroup2"):
            found.append(Path(before.split(" ")[4]))
    return found


def unified_hierarchy() -> Path:
    """Where the version 2 hierarchy is mounted: /sys/fs/cgroup, or below it on a hybrid machine."""
    (found,) = {path for path in hierarchies() if (path / "cgroup.subtree_control").exists()}
    return found


def sweep() -> None:
    """Destroy the instances of runs that died."""
    for directory in scratch_dir().glob(f"{PREFIX}*"):
        instance = Instance(directory.name.removeprefix(PREFIX))
        # A directory without an owner file is being made right now, or was left very early.
        try:
            young = time.time() - directory.stat().st_mtime < 60
        except FileNotFoundError:
            continue  # another run has just ended
        if not instance.owned() and not (young and not (directory / "owner").exists()):
            instance.destroy()
