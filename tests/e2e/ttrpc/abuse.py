"""What somebody who may connect to a shim's socket can do to it, and those who are to be served meanwhile.

`Peer` is a socket and frames made by hand. `Bystander` asks all the time, on a connection that it has had before, as
containerd has: how long it waited at most is what an attack did to the others. `Growth` is what it did to the shim.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from shim.api import task
from shim.api.codec import decode, encode
from shim.api.ttrpc import KeyValue, Request, Response
from shim.ttrpc.client import Client, socket_address
from tests.harness.beside import Beside
from tests.harness.processes import memory_kb

HEADER = struct.Struct(">IIBB")
MAX_PAYLOAD = 4 << 20
REQUEST, RESPONSE, DATA = 1, 2, 3
LIMIT_S = 60.0
ASK_EVERY_S = 0.05


def frame(
    stream_id: int, payload: bytes, kind: int = REQUEST, flags: int = 0, length: int | None = None
) -> bytes:
    """The bytes of a frame, which may announce another length than it has."""
    return HEADER.pack(len(payload) if length is None else length, stream_id, kind, flags) + payload


def request(
    method: str,
    payload: bytes = b"",
    service: str = task.SERVICE_V2,
    metadata: tuple[tuple[str, str], ...] = (),
    timeout_ns: int = 0,
) -> bytes:
    """What a frame of type request holds."""
    return encode(Request(service, method, payload, timeout_ns, [KeyValue(*pair) for pair in metadata]))


CONNECT = request("Connect", encode(task.ConnectRequest("nobody")))


class Peer:
    """A connection without any manners."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT_S)
        try:
            self._connect(socket_address(address))
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def _connect(self, name: str) -> None:
        """One with a time limit is not waited for where others wait to be let in: ask again."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                self._socket.connect(name)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.002)
            else:
                return

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> bool:
        """Send all of it, however long that takes; False if the other side has hung up."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def stuff(self, data: bytes) -> int:
        """Send what goes at once; how much that was."""
        sent = 0
        self._socket.setblocking(False)
        try:
            while sent < len(data):
                sent += self._socket.send(data[sent : sent + (1 << 18)])
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self._socket.settimeout(LIMIT_S)
        return sent

    def receive(self, count: int) -> bytes:
        """So many bytes; fewer where the other side has hung up."""
        data = b""
        while len(data) < count:
            try:
                more = self._socket.recv(count - len(data))
            except ConnectionResetError:
                break
            if not more:
                break
            data += more
        return data

    def answer(self) -> tuple[int, Response] | None:
        """The next answer and its stream; None where the other side has hung up."""
        header = self.receive(HEADER.size)
        if len(header) < HEADER.size:
            return None
        length, stream_id, kind, flags = HEADER.unpack(header)
        assert (kind, flags) == (RESPONSE, 0)
        return stream_id, decode(Response, self.receive(length))

    def code(self) -> tuple[int, int] | None:
        """The next answer's stream, and its code."""
        answered = self.answer()
        if answered is None:
            return None
        return answered[0], answered[1].status.code if answered[1].status is not None else 0

    def stream_of_answer(self) -> int:
        """The stream of the next answer, which has to come."""
        answered = self.answer()
        assert answered is not None, "the other side has hung up"
        return answered[0]

    def has_something(self) -> bool:
        """Whether an answer has come, or the end."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def is_served(self, stream_id: int) -> bool:
        """Whether an ordinary call is still answered on this connection."""
        return self.send(frame(stream_id, CONNECT)) and self.code() == (stream_id, 0)

    def has_been_hung_up_on(self) -> bool:
        """Whether the other side closes, having said nothing."""
        return self.receive(1) == b""


@contextmanager
def crowd(address: str, count: int) -> Iterator[list[Peer]]:
    """So many of them."""
    peers: list[Peer] = []
    try:
        for _ in range(count):
            peers.append(Peer(address))
        yield peers
    finally:
        for peer in peers:
            peer.close()


class Bystander(Beside):
    """Asks for a container's state while it is open."""

    def __init__(self, address: str, container: str) -> None:
        super().__init__()
        self.longest_s = 0.0
        self.answers = 0
        self.failure: Exception | None = None
        self._container = container
        self._client = Client(address)

    def _run(self) -> None:
        try:
            while True:
                begin = time.monotonic()
                asked = task.StateRequest(self._container)
                self._client.request(task.SERVICE_V2, "State", asked, task.StateResponse, LIMIT_S)
                self.longest_s = max(self.longest_s, time.monotonic() - begin)
                self.answers += 1
                if self._end.wait(ASK_EVERY_S):
                    return
        except Exception as error:
            self.failure = error
        finally:
            self._client.close()


class Growth:
    """The memory of a process: at its peak since `begin`, and what has stayed, in KiB more than at `begin`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = memory_kb(pid)["Anonymous"]
        # "5" sets the high-water mark back to what there is now (proc_pid_clear_refs(5)).
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
        self._resident = self._status("VmHWM")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self._pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        raise AssertionError(f"no {name}")

    def peak_kb(self) -> int:
        """The most so far."""
        return self._status("VmHWM") - self._resident

    def now_kb(self) -> int:
        """What there is now."""
        return memory_kb(self._pid)["Anonymous"] - self._before
