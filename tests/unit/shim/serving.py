"""What tests of the server share: a real one on a loop in a thread, and services that it has."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from runtime.errors import NotFound
from runtime.linux.fds import OwnedFd
from runtime.waiting import Sleep
from shim.api.task import WaitRequest, WaitResponse
from shim.errors import failed_precondition
from shim.log import Log
from shim.loop import Loop
from shim.open_calls import Method
from shim.server import Server
from shim.streams import Stream, StreamMethod
from shim.tasks import Cancelled, Outcome
from shim.ttrpc.client import Client
from shim.ttrpc.connection import Call

SERVICE = "test.Service"


class Echo:
    """Says what it hears."""

    def __init__(self, stream: Stream, heard: list[str]) -> None:
        self._stream = stream
        self._heard = heard

    def message(self, payload: bytes) -> None:
        self._heard.append(payload.decode())
        self._stream.send(payload)

    def closed(self) -> None:
        self._heard.append("closed")
        self._stream.end()

    def room(self) -> None:
        pass

    def gone(self) -> None:
        self._heard.append("gone")


class Service:
    """Methods of every kind; `request.id` says what to do."""

    def __init__(self) -> None:
        self.event = Outcome()
        self.ended: list[str] = []
        self.begun = 0
        self.heard: list[str] = []

    def at_once(self, request: WaitRequest, _call: Call) -> WaitResponse:
        if request.id == "missing":
            raise NotFound("no such thing")
        if request.id == "bug":
            raise ZeroDivisionError("a bug")
        if request.id == "large":
            return WaitResponse(len(request.exec_id))
        return WaitResponse(7)

    def later(self, request: WaitRequest, _call: Call) -> Generator[Any, Any, WaitResponse]:
        self.begun += 1
        if request.id == "refused":
            raise failed_precondition("not now")
        try:
            yield Sleep(float(request.exec_id or "0.01"))
        except TimeoutError:
            self.ended.append("timed out")
            raise
        except Cancelled:
            self.ended.append("cancelled")
            raise
        self.ended.append("finished")
        return WaitResponse(8)

    def wait(self, _request: WaitRequest, _call: Call) -> Generator[Any, Any, WaitResponse]:
        self.begun += 1
        try:
            yield self.event
        except Cancelled:
            self.ended.append("abandoned")
            raise
        return WaitResponse(9)

    def large(self, _request: WaitRequest, call: Call) -> WaitRequest:
        return WaitRequest(exec_id="x" * 1_000_000)

    def stream(self, stream: Stream) -> Echo:
        return Echo(stream, self.heard)

    def methods(self) -> dict[str, Method | StreamMethod]:
        return {
            "AtOnce": Method(WaitRequest, self.at_once),
            "Later": Method(WaitRequest, self.later),
            "Wait": Method(WaitRequest, self.wait, abandon=True),
            "Large": Method(WaitRequest, self.large),
            "Stream": StreamMethod(self.stream),
        }


class Served:
    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "socket")
        self.log = directory / "log"
        self.log.touch()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        self.loop = Loop()
        self.failures: list[Exception] = []
        self.loop.on_failure = self.failures.append
        self.service = Service()
        services = {SERVICE: self.service.methods()}
        self.server = Server(self.loop, OwnedFd(listener.detach()), services, Log(str(self.log), "test"))
        self._wake, self._woken = os.pipe()
        self.loop.watch(self._wake, 1, lambda _events: None)
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def close(self) -> None:
        self.loop.stop()
        os.write(self._woken, b"x")
        self._thread.join()
        self.server.close()
        self.loop.close()
        os.close(self._wake)
        os.close(self._woken)
        assert self.failures == []

    def ask(self, method: str, what: str = "", more: str = "", timeout_s: float = 60) -> WaitResponse:
        with Client(self.path) as client:
            return client.request(SERVICE, method, WaitRequest(what, more), WaitResponse, timeout_s)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
