"""A seccomp agent: it gets listeners on a socket and answers for the processes behind them."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.oci.conftest import Oci, oci, programs, pytest_collection_modifyitems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.oci.conftest import Done
    from tests.harness.bundles import Bundle

__all__ = ["Oci", "oci", "programs", "pytest_collection_modifyitems"]

# linux/seccomp.h
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION, _RESPONSE = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_CONTINUE = 1
CONTINUE = 0


class Agent:
    """Answers each call with the errno in `answers` for its number, and lets all others through.

    `states` are the container process states that it was told, `named` the names of the descriptors that came along
    with each and what they are, `asked` the numbers of the calls it has answered.
    """

    def __init__(self, path: Path, answers: dict[int, int]) -> None:
        self.path, self.answers = path, answers
        self.states: list[dict[str, Any]] = []
        self.named: list[list[str]] = []
        self.asked: list[int] = []
        self._listeners: list[int] = []
        self._stop = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen(8)
        self._socket.settimeout(0.05)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _peer = self._socket.accept()
            except TimeoutError:
                pass
            else:
                self._take(connection)
            self._answer_all()

    def _take(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(60)
            data, fds, _flags, _peer = socket.recv_fds(connection, 1 << 16, 4)
            while part := connection.recv(1 << 16):
                data += part
        self.named.append([os.readlink(f"/proc/self/fd/{fd}") for fd in fds])
        self.states.append(json.loads(data))
        self._listeners += fds

    def _answer_all(self) -> None:
        for listener in list(self._listeners):
            poll = select.poll()
            poll.register(listener, select.POLLIN)
            while ready := poll.poll(0):
                if not ready[0][1] & select.POLLIN or not self._answer(listener):
                    self._listeners.remove(listener)
                    os.close(listener)
                    break

    def _answer(self, listener: int) -> bool:
        buffer = ctypes.create_string_buffer(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, buffer)
            identity, _pid, _flags, number, *_rest = _NOTIFICATION.unpack(buffer.raw)
            error = self.answers.get(number, CONTINUE)
            response = _RESPONSE.pack(identity, 0, -error, 0 if error else _CONTINUE)
            self.asked.append(number)
            fcntl.ioctl(listener, _SEND, response)
        except FileNotFoundError:
            return True  # the process was ended while it waited
        return True

    def await_states(self, count: int) -> list[dict[str, Any]]:
        """The states, when there are `count` of them."""
        deadline = time.monotonic() + 60
        while len(self.states) < count:
            assert time.monotonic() < deadline, f"{len(self.states)} states, not {count}"
            time.sleep(0.01)
        return self.states

    def close(self) -> None:
        """Go away, as an agent that crashed would."""
        self._stop.set()
        self._thread.join()
        self._socket.close()
        for listener in self._listeners:
            os.close(listener)
        self._listeners.clear()


class Scene:
    """Containers of the runtime under test whose calls an agent answers."""

    def __init__(self, oci: Oci) -> None:
        self.oci = oci
        self.path = oci.directory / "agent.sock"
        self._agents: list[Agent] = []

    def agent(self, answers: dict[int, int] | None = None) -> Agent:
        """An agent that listens where the containers' profiles say."""
        self.path.unlink(missing_ok=True)
        made = Agent(self.path, answers or {})
        self._agents.append(made)
        return made

    def profile(self, *names: str, no_new_privileges: bool = True) -> Callable[[dict[str, Any]], None]:
        """A change of a config: the agent answers for the calls `names`."""

        def change(config: dict[str, Any]) -> None:
            config["process"]["noNewPrivileges"] = no_new_privileges
            config["annotations"] = {"org.example": "a"}
            config["linux"]["seccomp"] = {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "listenerPath": str(self.path),
                "listenerMetadata": "of the test",
                "syscalls": [{"names": list(names), "action": "SCMP_ACT_NOTIFY"}],
            }

        return change

    def run(self, bundle: Bundle) -> Done:
        """Run it to its end."""
        return self.oci("run", "--bundle", bundle.path, bundle.path.name)

    def close(self) -> None:
        for agent in self._agents:
            agent.close()


@pytest.fixture
def scene(oci: Oci) -> Iterator[Scene]:
    """What every test needs."""
    made = Scene(oci)
    yield made
    made.close()
