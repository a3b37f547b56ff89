"""What containerd is told without asking: events, in the order in which they happened, each until it is taken.

Publishing only queues; one task sends, one event at a time, because containerd handles calls of one
connection side by side and would mix them up. An event that containerd cannot take (it is being
restarted) is sent again until it can. What is held in memory is bounded: when containerd stays away for
long, further events wait on disk. Before anything is sent, the exits that are on record have reached the disk.

Which event comes when is decided by `container` and `process`.
"""

from __future__ import annotations

import _socket
import time

from runtime.errors import describe
from runtime.waiting import Readable, Sleep, Writable
from shim.api.codec import encode
from shim.api.events import SERVICE, TOPICS, ForwardRequest
from shim.api.types import Envelope, pack, timestamp
from shim.backlog import Backlog
from shim.errors import status_of
from shim.log import ERROR, WARNING
from shim.tasks import Outcome, spawn
from shim.ttrpc.client import socket_address
from shim.ttrpc.connection import NAMESPACE, Answer, ClientConnection
from shim.ttrpc.frames import ProtocolError
from shim.ttrpc.status import RpcError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from runtime.waiting import Operation
    from shim.api.message import Message
    from shim.log import Log
    from shim.loop import Loop

MAX_QUEUED = 256
ANSWER_TIMEOUT_S = 5.0
# Whoever waits for an answer comes first: sending wakes containerd, which takes the CPU from a process that
# is being started, or has been and may be about to end. So events wait a little, and as long as something is
# being started, but no longer than this makes together.
COURTESY_S = 0.002
COURTESIES = 10
FIRST_DELAY_S = 0.05
MAX_DELAY_S = 2.0
# An event that containerd takes and refuses is not for it; one it cannot reach is kept for as long as it takes.
MAX_REFUSALS = 5
_READ_BYTES = 16 * 1024


class Publisher:
    """Sends to the ttrpc socket `address`; with none ("") events are dropped, nobody wants them.

    `busy` says whether something more urgent is going on; `settle` waits until all that was put on record before is
    on disk; what is too much for memory goes to `directory` ("": the oldest are dropped then).
    """

    def __init__(
        self,
        loop: Loop,
        address: str,
        namespace: str,
        log: Log,
        busy: Callable[[], bool] = lambda: False,
        settle: Callable[[], Operation[None]] | None = None,
        directory: str = "",
    ) -> None:
        self._loop = loop
        self._busy = busy
        self._settle = settle
        self._backlog = Backlog(directory)
        self._address = address
        self._namespace = namespace
        self._log = log
        self._queue: list[bytes] = []
        self._dropped = 0
        self._more = Outcome()
        self._idle = Outcome()
        self._idle.set()
        self._socket: _socket.socket | None = None
        self._protocol = ClientConnection()
        self._sender = spawn(loop, self._send_all()) if address else None

    def publish(self, event: Message) -> None:
        """Queue `event`, stamped with the time of now. Never waits and never fails."""
        if not self._address:
            return
        envelope = Envelope(timestamp(time.time_ns()), self._namespace, TOPICS[type(event)], pack(event))
        self._enqueue(encode(ForwardRequest(envelope)))
        if self._idle.done:
            self._idle = Outcome()
        if not self._more.done:
            self._more.set()

    def _enqueue(self, event: bytes) -> None:
        """In order: once there is a backlog, everything new goes behind it."""
        if self._backlog.count or len(self._queue) >= MAX_QUEUED:
            if self._backlog.append(event):
                return
            self._dropped += 1
            if self._dropped == 1:
                self._log.write(ERROR, "too many events wait for containerd: some are dropped from now on")
            if self._backlog.count:
                return
            self._queue.pop(0)
        self._queue.append(event)

    def sent(self) -> Outcome:
        """Set when there is nothing left to send."""
        return self._idle

    def _send_all(self) -> Generator[Any, Any, None]:
        while True:
            while self._queue or self._fetch():
                first = self._queue[0]
                if self._settle is not None:
                    yield from self._settle()
                yield from self._deliver(first)
                if self._queue and self._queue[0] is first:  # else it was dropped meanwhile
                    del self._queue[0]
            if self._dropped:
                self._log.write(WARNING, f"{self._dropped} events were dropped: containerd did not take them")
                self._dropped = 0
            if not self._idle.done:
                self._idle.set()
            self._more = Outcome()
            yield self._more
            yield from self._give_way()

    def _fetch(self) -> bool:
        """Go on with what waits on disk; True if there was something."""
        if not self._backlog.count:
            return False
        try:
            self._queue += self._backlog.take()
        except OSError as error:
            self._log.write(ERROR, f"{self._backlog.count} events are lost: {describe(error)}")
            self._backlog.close()
        return bool(self._queue)

    def _give_way(self) -> Generator[Any, Any, None]:
        for _ in range(COURTESIES):
            yield Sleep(COURTESY_S)
            if not self._busy():
                return

    def _deliver(self, event: bytes) -> Generator[Any, Any, None]:
        """Send until taken; give up only where containerd answers and says no, time and again."""
        delay_s, refusals = FIRST_DELAY_S, 0
        while True:
            try:
                return (yield from self._forward(event))
            except RpcError as error:
                refusals += 1
                if refusals >= MAX_REFUSALS:
                    self._log.write(ERROR, f"event refused: {error}")
                    return
            except (OSError, ProtocolError) as error:  # TimeoutError is an OSError
                self._disconnect()
                self._log.write("debug", f"event not sent: {status_of(error).message}")
            yield Sleep(delay_s)
            delay_s = min(delay_s * 2, MAX_DELAY_S)

    def _forward(self, event: bytes) -> Generator[Any, Any, None]:
        peer = self._socket or self._connect()
        stream_id, request = self._protocol.call(
            SERVICE, "Forward", event, int(ANSWER_TIMEOUT_S * 1e9), ((NAMESPACE, self._namespace),)
        )
        while request:
            try:
                request = request[peer.send(request) :]
            except BlockingIOError:
                yield Writable(peer.fileno(), ANSWER_TIMEOUT_S)
        while True:
            yield Readable(peer.fileno(), ANSWER_TIMEOUT_S)
            data = peer.recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError("containerd closed the connection")
            for answer in self._protocol.receive(data):
                if isinstance(answer, Answer) and answer.stream_id == stream_id:
                    answer.result()
                    return

    def _connect(self) -> _socket.socket:
        """A unix socket connects at once or not at all: nothing to wait for."""
        peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        peer.setblocking(False)
        try:
            peer.connect(socket_address(self._address))
        except OSError:
            peer.close()
            raise
        self._socket, self._protocol = peer, ClientConnection()
        return peer

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Close the connection; what is queued is lost."""
        if self._sender is not None:
            self._sender.cancel()
        self._queue.clear()
        self._backlog.close()
        self._disconnect()
