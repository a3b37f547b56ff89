"""A shim without containerd: started by its launcher in a bundle, called at its ttrpc door, its events collected.

Everything has the name of one test: a directory, a run directory with a warden of its own, a cgroup parent.
`Door.close` ends it all, whatever state the test left it in.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any as Json

from shim.api import events, task, types
from shim.api.bootstrap import BootstrapParams, BootstrapResult
from shim.api.codec import decode, encode
from shim.api.message import Message
from shim.api.types import Any, Empty, Mount
from shim.ttrpc.client import Client
from shim.ttrpc.connection import Call, ServerConnection
from tests.harness.bundles import Bundle, make_rootfs
from tests.harness.instances import hierarchies
from tests.harness.mountinfo import mount_points
from tests.harness.paths import SHIM, scratch_dir
from tests.harness.waiting import eventually

NAMESPACE = "test"
TIMEOUT_S = 60
_ROOMS = itertools.count(1)


class Events:
    """containerd's events service, in a thread; what came is in `seen`, in order."""

    def __init__(self, path: str) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._peers: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _address = self._listener.accept()
            except OSError:
                return
            self._peers.append(peer)
            self._threads.append(threading.Thread(target=self._serve, args=(peer,), daemon=True))
            self._threads[-1].start()

    def _serve(self, peer: socket.socket) -> None:
        protocol = ServerConnection()
        with peer:
            try:
                while data := peer.recv(65536):
                    for call in protocol.receive(data):
                        assert isinstance(call, Call)
                        self._note(decode(events.ForwardRequest, call.payload).envelope)
                        peer.sendall(protocol.respond(call.stream_id, encode(Empty())))
            except OSError:
                pass  # the shim was killed

    def _note(self, envelope: types.Envelope | None) -> None:
        assert envelope is not None
        assert envelope.event is not None
        self.seen.append((envelope.topic, envelope.event.value))

    def topics(self) -> list[str]:
        """The topics so far, without their common prefix; exits with the id of the process."""
        return [
            f"exit {decode(events.TaskExit, value).id}"
            if topic == "/tasks/exit"
            else topic.removeprefix("/tasks/")
            for topic, value in list(self.seen)
        ]

    def close(self) -> None:
        """Hang up. No thread is left: one that ended while a later test clones a process would stop it for ever."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for peer in self._peers:
            with contextlib.suppress(OSError):  # it has hung up itself
                peer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()


class Calls:
    """The Task service of a shim as functions, over a connection of its own."""

    def __init__(self, address: str) -> None:
        self.client = Client(address)

    def ask(self, method: str, request: Message, timeout_s: float = TIMEOUT_S) -> Json:
        """Call the Task service."""
        return self.client.request(task.SERVICE_V2, method, request, task.METHODS[method][1], timeout_s)

    def add_exec(self, container_id: str, exec_id: str, args: list[str], **streams: Json) -> None:
        """Add an exec, to be started."""
        process = Bundle.process(args)
        process.update(streams.pop("process", {}))
        spec = Any("process", json.dumps(process).encode())
        self.ask("Exec", task.ExecProcessRequest(id=container_id, exec_id=exec_id, spec=spec, **streams))

    def exec(self, container_id: str, exec_id: str, args: list[str], **streams: Json) -> int:
        """Start an exec; its pid."""
        self.add_exec(container_id, exec_id, args, **streams)
        pid: int = self.ask("Start", task.StartRequest(container_id, exec_id)).pid
        return pid

    def wait(self, container_id: str, exec_id: str = "") -> int:
        """The exit status of a process."""
        status: int = self.ask("Wait", task.WaitRequest(container_id, exec_id)).exit_status
        return status

    def kill(self, container_id: str, number: int = signal.SIGKILL) -> None:
        """Signal init."""
        self.ask("Kill", task.KillRequest(container_id, "", number))

    def delete(self, container_id: str, exec_id: str = "") -> task.DeleteResponse:
        """Delete a process that has ended."""
        answer: task.DeleteResponse = self.ask("Delete", task.DeleteRequest(container_id, exec_id))
        return answer

    def status(self, container_id: str, exec_id: str = "") -> int:
        """The state that the shim tells."""
        status: int = self.ask("State", task.StateRequest(container_id, exec_id)).status
        return status

    def end(self, container_id: str) -> None:
        """Kill a container and forget it."""
        if self.status(container_id) != types.STATUS_STOPPED:
            self.kill(container_id)
            self.wait(container_id)
        self.delete(container_id)


class Door(Calls):
    """One shim's world. `start` runs the launcher; the calls go to the shim that answered last."""

    def __init__(self, directory: Path, program: Path = SHIM) -> None:
        self.directory = directory
        self.run_dir = directory / "run"
        self.run_dir.mkdir(mode=0o700)
        self.cgroup_parent = f"mnr-{secrets.token_hex(4)}"
        self.events = Events(str(directory / "events"))
        self.address = ""
        self.program = program
        self.environ = {
            **os.environ,
            "MANOR_RUN_DIR": str(self.run_dir),
            "MANOR_TRACE": "off",  # the scribe comes and goes when it likes
            "TTRPC_ADDRESS": str(directory / "events"),
        }

    # --- bundles and the launcher ------------------------------------------------------------------

    def bundle(self, container_id: str, args: list[str], annotations: dict[str, str] | None = None) -> Bundle:
        """A bundle whose config can be changed before it is used; its root file system is complete."""
        path = self.directory / "bundles" / container_id
        path.mkdir(parents=True)
        bundle = Bundle(path, args, f"/{self.cgroup_parent}/{container_id}")
        bundle.config["annotations"] = annotations or {}
        bundle.write()
        return bundle

    def launch(
        self, action: str, container_id: str, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the launcher in a bundle, as containerd 1.6 does."""
        return subprocess.run(
            [
                str(self.program),
                *("-namespace", NAMESPACE, "-address", str(self.directory / "grpc"), "-id", container_id),
                action,
            ],
            cwd=self.directory / "bundles" / container_id,
            env=self.environ,
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    def start(self, container_id: str, stdin: bytes = b"") -> str:
        """Start the shim of a bundle and connect to it; `stdin` may hold a handler's options in an Any."""
        done = self.launch("start", container_id, stdin)
        assert done.returncode == 0, done.stderr
        self.address = done.stdout.decode()
        self.client = Client(self.address)
        return self.address

    def start_elsewhere(self, container_id: str) -> BootstrapResult:
        """Start the shim of a bundle as containerd 2.3 does, with its socket in a directory of our own."""
        params = BootstrapParams(
            instance_id=container_id,
            namespace=NAMESPACE,
            containerd_ttrpc_address=str(self.directory / "events"),
            containerd_grpc_address=str(self.directory / "grpc"),
            socket_dir=str(self.directory / "s"),
        )
        done = self.launch("start", container_id, encode(params))
        assert done.returncode == 0, done.stderr
        answer = decode(BootstrapResult, done.stdout)
        self.address = answer.address
        self.client = Client(self.address)
        return answer

    def run_elsewhere(self, container_id: str, args: list[str], annotations: dict[str, str]) -> int:
        """A running container whose shim was started so."""
        self.bundle(container_id, args, annotations)
        self.start_elsewhere(container_id)
        pid = self.create(container_id)
        self.ask("Start", task.StartRequest(container_id))
        return pid

    def create(self, container_id: str, rootfs: list[Mount] | None = None, **streams: Json) -> int:
        """Create a container from its bundle."""
        bundle = str(self.directory / "bundles" / container_id)
        request = task.CreateTaskRequest(id=container_id, bundle=bundle, rootfs=rootfs or [], **streams)
        pid: int = self.ask("Create", request).pid
        return pid

    def run(self, container_id: str, args: list[str], annotations: dict[str, str] | None = None) -> int:
        """A running container, from nothing."""
        self.bundle(container_id, args, annotations)
        if not self.address:
            self.start(container_id)
        pid = self.create(container_id)
        self.ask("Start", task.StartRequest(container_id))
        return pid

    # --- looking from outside ----------------------------------------------------------------------

    def shim_pid(self) -> int:
        """The shim's process."""
        pid: int = self.ask("Connect", task.ConnectRequest("")).shim_pid
        return pid

    def shim_fds(self) -> int:
        """How many descriptors the shim has open."""
        return len(os.listdir(f"/proc/{self.shim_pid()}/fd"))

    def zombies(self) -> list[str]:
        """Dead children that the shim has not reaped."""
        shim = str(self.shim_pid())
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if fields[:2] == ["Z", shim]:
                    found.append(entry)
        return found

    def cgroups(self) -> list[Path]:
        """All cgroup directories of this world's containers, in every hierarchy."""
        return [
            path
            for top in hierarchies()
            if (top / self.cgroup_parent).is_dir()
            for path in (top / self.cgroup_parent).iterdir()
            if path.is_dir()
        ]

    def mounts(self) -> list[str]:
        """Mount points below this world's directory."""
        return [point for point in mount_points() if point.startswith(f"{self.directory}/")]

    def state_directories(self) -> list[str]:
        """What the shims have on disk."""
        return [str(path) for path in (self.run_dir / "pods").glob("*")] if self.run_dir.exists() else []

    # --- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """End every process of this world and remove what they left."""
        self.events.close()
        if hasattr(self, "client"):
            self.client.close()
        for pid in self._processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for path in self.cgroups():
            for pid_text in (path / "cgroup.procs").read_text().split():
                try:
                    os.kill(int(pid_text), signal.SIGKILL)
                except ProcessLookupError:
                    pass
        for point in reversed(self.mounts()):
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        eventually(self._remove_cgroups)
        for address in (self.address, *self._noted_addresses()):
            if address:
                Path(address.removeprefix("unix://")).unlink(missing_ok=True)

    def _noted_addresses(self) -> Iterator[str]:
        """Of every shim that was started here: one that was killed leaves its socket to `delete`."""
        for note in (self.directory / "bundles").glob("*/address"):
            if note.is_file():
                yield note.read_text()

    def _processes(self) -> list[int]:
        """The warden and the shims: their command lines name our directory."""
        mark = str(self.directory).encode()
        found = []
        for entry in os.listdir("/proc"):
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes() if entry.isdigit() else b""
            except OSError:
                continue
            if mark in command and command.startswith((b"manor-warden", b"containerd-shim-manor-v2")):
                found.append(int(entry))
        return found

    def _remove_cgroups(self) -> bool:
        below = [leaf for path in self.cgroups() for leaf in path.glob("exec-*")]
        for path in [*below, *self.cgroups(), *(top / self.cgroup_parent for top in hierarchies())]:
            try:
                path.rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                return False
        return True


def room_in(world: Door) -> Path:
    """Where the next node that shares the world's warden has its files: a short path, which sockets need."""
    return world.directory / str(next(_ROOMS))


def overlay(directory: Path, layers: int = 1) -> list[Mount]:
    """A root file system as containerd gives it to Create: an overlay over `layers` directories."""
    lower = []
    for number in range(layers):
        path = directory / f"snapshots-with-a-long-name-so-that-options-grow/{number}/fs"
        path.mkdir(parents=True)
        (path / f"layer-{number}").touch()
        lower.append(str(path))
    make_rootfs(Path(lower[0]))
    for name in ("upper", "work"):
        (directory / name).mkdir()
    options = [f"workdir={directory}/work", f"upperdir={directory}/upper", f"lowerdir={':'.join(lower)}"]
    return [Mount("overlay", "overlay", "", options)]


@contextmanager
def opened() -> Iterator[Door]:
    """A door in a directory of its own, whose name is short: sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="manor-door-", dir=scratch_dir()) as directory:
        made = Door(Path(directory))
        try:
            yield made
        finally:
            made.close()
