"""What tests of streams share: a real server on the test's loop, and clients of it that the test plays by hand."""

from __future__ import annotations

import socket
from pathlib import Path

from runtime.linux.fds import OwnedFd
from runtime.record import replace
from shim.api import streaming
from shim.api.codec import decode, encode
from shim.api.message import Message
from shim.api.streaming import Data, StreamInit, WindowUpdate
from shim.api.types import Any, pack, unpack
from shim.exchange import Exchange
from shim.log import Log
from shim.loop import Loop
from shim.server import Server
from shim.stdio import PipeIo, Streams, open_pipes
from shim.ttrpc.connection import Answer, ClientConnection, StreamData
from shim.ttrpc.frames import DATA, NO_DATA, REMOTE_CLOSED, pack_frame
from shim.ttrpc.status import RpcError
from tests.unit.shim.loops import drive, settle, turn_until
from tests.unit.shim.stdio_peer import Child

LIMIT_S = 30.0


class Street:
    """A server with nothing but streams, and who opened some."""

    def __init__(self, loop: Loop, directory: Path) -> None:
        self.loop = loop
        self.path = str(directory / "door")
        self.exchange = Exchange()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen()
        services = {streaming.SERVICE: self.exchange.methods()}
        log = Log(str(directory / "shim.log"), "test")
        self.server = Server(loop, OwnedFd(listener.detach()), services, log)
        self._peers: list[Peer] = []

    def uri(self, stream_id: str) -> str:
        """What a client writes for a stream of its."""
        return f"ttrpc+unix://{self.path}?streaming_id={stream_id}"

    def peer(self, stream_id: str, room: int = 0) -> Peer:
        """A client that has opened a stream and been told that it is known; with `room` it has made that."""
        peer = Peer(self, stream_id)
        self._peers.append(peer)
        turn_until(self.loop, lambda: peer.turn().known, LIMIT_S)
        if room:
            peer.make_room(room)
        return peer

    def close(self) -> None:
        """End it all."""
        for peer in self._peers:
            peer.hang_up()
        settle(self.loop, 0.01)
        self.server.close()


class Peer:
    """One client with one stream, which reads only when it is told to."""

    def __init__(self, street: Street, stream_id: str, first: Message | None = None) -> None:
        self._loop = street.loop
        self.protocol = ClientConnection()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(street.path)
        self.socket.setblocking(False)
        self.known = False
        self.ended = False  # well
        self.failure = ""
        self.lost = False
        self.received = bytearray()
        self.largest = 0  # message
        self.room_at_shim = 0  # of stdin's stream
        self.id, opening = self.protocol.open_stream(streaming.SERVICE, "Stream", client_streams=True)
        self.socket.sendall(opening)
        self.say(first or StreamInit(stream_id))

    def say(self, message: Message) -> None:
        """Send a message."""
        self.say_raw(encode(pack(message)))

    def say_raw(self, payload: bytes) -> None:
        """Send what need not be one."""
        self.socket.sendall(self.protocol.send_data(self.id, payload))

    def make_room(self, size: int) -> None:
        """As a reader."""
        self.say(WindowUpdate(size))

    def write(self, data: bytes) -> None:
        """As a writer, who must have room."""
        self.room_at_shim -= len(data)
        self.say(Data(data))

    def say_all(self) -> None:
        """Close our side, as Go's client does after the other side's end as well."""
        self.socket.sendall(pack_frame(self.id, DATA, REMOTE_CLOSED | NO_DATA, b""))

    def hang_up(self) -> None:
        """As a client that is killed."""
        self.socket.close()

    def turn(self, size: int = 1 << 20) -> Peer:
        """Read what is there, once."""
        if self.socket.fileno() < 0 or self.lost:
            return self
        try:
            data = self.socket.recv(size)
        except BlockingIOError:
            return self
        if not data:
            self.lost = True
        for event in self.protocol.receive(data):
            if isinstance(event, Answer):
                self._take_answer(event)
            else:
                self._take(event)
        return self

    def _take_answer(self, answer: Answer) -> None:
        try:
            answer.result()
        except RpcError as error:
            self.failure = str(error)

    def _take(self, data: StreamData) -> None:
        self.ended |= data.closed
        if data.payload is None:
            return
        message = decode(Any, data.payload)
        if not self.known:
            assert message.type_url == "google.protobuf.Empty"
            self.known = True
        elif message.type_url == Data.NAME:
            piece = unpack(message, Data).data
            self.largest = max(self.largest, len(piece))
            self.received += piece
        else:
            self.room_at_shim += unpack(message, WindowUpdate).update

    def read_until(self, size: int) -> bytes:
        """Read on until that much has come in all."""
        turn_until(self._loop, lambda: len(self.turn().received) >= size, LIMIT_S)
        return bytes(self.received)

    def read_all(self) -> bytes:
        """Read on until the end."""
        turn_until(self._loop, lambda: self.turn().ended, LIMIT_S)
        return bytes(self.received)

    def wait_for_room(self, size: int = 1) -> None:
        """Until so much may be written."""
        turn_until(self._loop, lambda: self.turn().room_at_shim >= size, LIMIT_S)

    def wait_for_failure(self) -> str:
        """What the shim has against it."""
        turn_until(self._loop, lambda: self.turn().failure, LIMIT_S)
        return self.failure


def opened(street: Street, **streams: str) -> tuple[PipeIo, Child]:
    """An io whose process has its ends."""
    wanted = replace(Streams(), **{name: street.uri(stream_id) for name, stream_id in streams.items()})
    io: PipeIo = drive(street.loop, open_pipes(street.loop, wanted, exchange=street.exchange))
    child = Child(io)
    io.attach(None)
    return io, child
