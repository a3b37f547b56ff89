"""The blocking client against a server on a real socket."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from shim.api.codec import decode, encode
from shim.api.task import SERVICE_V2, ConnectRequest, ConnectResponse, StateRequest, WaitRequest, WaitResponse
from shim.api.ttrpc import Status
from shim.ttrpc.client import Client, socket_address
from shim.ttrpc.connection import NAMESPACE, Call, ServerConnection
from shim.ttrpc.status import NOT_FOUND, RpcError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Handler = Callable[[ServerConnection, Call], bytes]


def handle(server: ServerConnection, call: Call) -> bytes:
    """A little Task service: Wait is answered when the next call comes, and Pids never is."""
    if call.method == "Connect":
        request = decode(ConnectRequest, call.payload)
        answer = ConnectResponse(call.timeout_ns // 10**9, len(request.id), call.header(NAMESPACE))
        return server.respond(call.stream_id, encode(answer))
    if call.method in ("Wait", "Pids"):
        return b""
    waiting = [stream for stream in sorted(server._streams) if stream != call.stream_id]
    late = b"".join(server.respond(stream, encode(WaitResponse(137))) for stream in waiting)
    return server.fail(call.stream_id, Status(NOT_FOUND, "no such container")) + late


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """The address of a server that serves one connection at a time, and closes it on a call of Shutdown."""
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            server = ServerConnection()
            with connected:
                while data := connected.recv(5):  # in small pieces, as a slow peer would
                    calls = [event for event in server.receive(data) if isinstance(event, Call)]
                    if any(call.method == "Shutdown" for call in calls):
                        break
                    for call in calls:
                        connected.sendall(handle(server, call))

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"unix://{path}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
    assert not thread.is_alive()


def test_a_call_takes_and_gives_messages(address: str) -> None:
    with Client(address) as client:
        answer = client.request(
            SERVICE_V2, "Connect", ConnectRequest("abc"), ConnectResponse, 7, metadata=[(NAMESPACE, "k8s.io")]
        )
    assert answer == ConnectResponse(7, 3, "k8s.io")


def test_a_failure_is_an_rpc_error_and_the_connection_stays(address: str) -> None:
    with Client(address) as client:
        with pytest.raises(RpcError, match="NotFound: no such container") as caught:
            client.request(SERVICE_V2, "State", StateRequest("a"), ConnectResponse)
        assert caught.value.code == NOT_FOUND
        client.request(SERVICE_V2, "Connect", ConnectRequest("a"), ConnectResponse)


def test_a_call_can_be_finished_after_others(address: str) -> None:
    with Client(address) as client:
        waiting = client.begin(SERVICE_V2, "Wait", encode(WaitRequest("a")))
        with pytest.raises(RpcError):
            client.request(SERVICE_V2, "State", StateRequest("a"), ConnectResponse)
        assert decode(WaitResponse, client.finish(waiting)) == WaitResponse(137)


def test_a_call_without_an_answer_times_out_and_the_connection_stays(address: str) -> None:
    with Client(address) as client:
        with pytest.raises(TimeoutError, match="no answer on stream 1"):
            client.call(SERVICE_V2, "Pids", b"", timeout_s=0.05)
        client.request(SERVICE_V2, "Connect", ConnectRequest("a"), ConnectResponse)


def test_a_server_that_goes_away_is_a_connection_error(address: str) -> None:
    with (
        Client(address) as client,
        pytest.raises(ConnectionError, match="closed before the answer on stream 1"),
    ):
        client.call(SERVICE_V2, "Shutdown", b"")


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=f"connect: No such file or directory: 'unix://{tmp_path}/none'"
    ):
        Client(f"unix://{tmp_path}/none")


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("unix:///run/s", "/run/s"),
        ("/run/s", "/run/s"),
        ("/containerd-shim/abc.sock", "/containerd-shim/abc.sock"),
        ("containerd-shim-abc", "\0containerd-shim-abc"),
    ],
)
def test_addresses_without_a_path_are_abstract(address: str, name: str) -> None:
    assert socket_address(address) == name
