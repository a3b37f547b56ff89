"""A small blocking ttrpc client: what tests, benches and tools call a shim or containerd with.

One connection, one thread. Answers may come in any order, so a call can be begun and finished apart:

    with Client("unix:///run/containerd/s/1f2e…") as client:
        waiting = client.begin(SERVICE, "Wait", encode(WaitRequest(id="a")))
        client.request(SERVICE, "Kill", KillRequest(id="a", signal=15), Empty)
        exited = decode(WaitResponse, client.finish(waiting, timeout_s=10))

A shim itself drives `connection` from its loop instead. Streaming methods are not offered here.
"""

from __future__ import annotations

import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket

from shim.api.codec import decode, encode
from shim.ttrpc.connection import Answer, ClientConnection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self, TypeVar

    from shim.api.message import Message

    M = TypeVar("M", bound=Message)

_CHUNK = 64 * 1024


def socket_address(address: str) -> str:
    """The name to connect(2) to: `unix://PATH` or a PATH that starts with `/`; anything else is abstract."""
    path = address.removeprefix("unix://")
    return path if path.startswith("/") else "\0" + path


class Client:
    """A connection to a ttrpc server. OSError if it cannot be made within `timeout_s`."""

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        self._connection = ClientConnection()
        self._answers: dict[int, Answer] = {}
        self._socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(socket_address(address))
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, f"connect: {error.strerror or error}", address) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; calls that were begun stay without an answer."""
        self._socket.close()

    def request(
        self,
        service: str,
        method: str,
        message: Message,
        answer: type[M],
        timeout_s: float = 10.0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> M:
        """Call with a message and return the message that answers. Failures as for `call`, and CodecError."""
        return decode(answer, self.call(service, method, encode(message), timeout_s, metadata))

    def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        timeout_s: float = 10.0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> bytes:
        """Call and return the answer's payload.

        RpcError if it was answered with a failure, TimeoutError if not in time (the server is told how
        long we wait), ConnectionError if the server went away.
        """
        return self.finish(self.begin(service, method, payload, timeout_s, metadata), timeout_s)

    def begin(
        self,
        service: str,
        method: str,
        payload: bytes,
        timeout_s: float = 0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> int:
        """Send a call and return its stream's id. `timeout_s` is what the server is told; 0 is no limit."""
        timeout_ns = int(timeout_s * 1_000_000_000)
        stream_id, opening = self._connection.call(service, method, payload, timeout_ns, metadata)
        self._socket.settimeout(timeout_s or None)
        self._socket.sendall(opening)
        return stream_id

    def finish(self, stream_id: int, timeout_s: float | None = 10.0) -> bytes:
        """Wait for the answer to a call that was begun; None waits for ever. Failures as for `call`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while stream_id not in self._answers:
            self._receive(stream_id, deadline)
        return self._answers.pop(stream_id).result()

    def _receive(self, stream_id: int, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            self._connection.forget(stream_id)
            raise TimeoutError(f"no answer on stream {stream_id}")
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(_CHUNK)
        except TimeoutError:
            return
        if not data:
            raise ConnectionError(f"connection closed before the answer on stream {stream_id}")
        for event in self._connection.receive(data):
            if isinstance(event, Answer):
                self._answers[event.stream_id] = event
