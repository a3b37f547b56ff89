"""The container process state and the listener on their way to a seccomp agent."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from runtime.seccomp_notify import NotifyError, process_state, send
from runtime.waiting import Readable, Sleep, Writable, run
from tests.unit.runtime.forked import in_child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STATE = {
    "ociVersion": "1.3.0",
    "id": "c1",
    "status": "creating",
    "pid": 7,
    "bundle": "/bundles/ü",
    "annotations": {"a": "b"},
}


def test_the_message_is_the_container_process_state() -> None:
    said = json.loads(process_state(42, "opaque", STATE))
    assert said == {
        "ociVersion": "1.3.0",
        "fds": ["seccompFd"],
        "pid": 42,
        "metadata": "opaque",
        "state": STATE,
    }
    assert "metadata" not in json.loads(process_state(42, "", STATE))


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "agent.sock"))
        listening.listen(1)
        yield listening


def path_of(agent: socket.socket) -> str:
    name: str = agent.getsockname()
    return name


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def taken(agent: socket.socket) -> tuple[bytes, list[int], bytes]:
    """What an agent gets: the first datum and its descriptors, and the rest up to the end."""
    connection, _address = agent.accept()
    with connection:
        data, fds, _flags, _peer = socket.recv_fds(connection, 1 << 20, 8)
        rest = b""
        while True:
            part, more, _flags, _peer = socket.recv_fds(connection, 1 << 16, 8)
            if not part:
                return data, fds, rest
            rest += part
            fds += more


def test_the_agent_gets_the_message_and_the_listener_on_a_connection_of_its_own(agent: socket.socket) -> None:
    before = open_fds()
    with open("/dev/null", "rb") as listener:
        run(send(path_of(agent), b'{"pid":1}', listener.fileno()))
        data, fds, rest = taken(agent)
        assert (data, rest) == (b'{"pid":1}', b"")
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] == ["/dev/null"]
        for fd in fds:
            os.close(fd)
    assert open_fds() == before


def test_a_message_larger_than_the_sockets_buffer_comes_whole_and_the_listener_once(
    agent: socket.socket,
) -> None:
    message = b"x" * (4 << 20)
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.append(taken(agent)))
    reader.start()
    with open("/dev/null", "rb") as listener:
        run(send(path_of(agent), message, listener.fileno()))
    reader.join(60)
    data, fds, rest = got[0]
    assert len(data) + len(rest) == len(message)
    assert len(fds) == 1
    os.close(fds[0])


def test_it_need_not_be_read_for_the_sender_to_go_on(agent: socket.socket) -> None:
    waits = list(send(path_of(agent), b"{}", 0))
    assert waits == []


def test_no_wait_blocks_the_callers_thread(agent: socket.socket) -> None:
    """An agent that accepts nobody, and one that does not read: both are waited for by yielding."""
    full = []
    try:
        while True:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            full.append(client)
            client.setblocking(False)
            client.connect(path_of(agent))
    except BlockingIOError:
        pass
    operation = send(path_of(agent), b"x" * (4 << 20), 0)
    assert isinstance(next(operation), Sleep)
    for _client in full[:-1]:
        agent.accept()[0].close()
    wait = next(operation)
    assert isinstance(wait, Writable)
    assert not isinstance(wait, Readable)
    operation.close()
    for client in full:
        client.close()


def test_an_agent_that_does_not_read_is_given_up(agent: socket.socket) -> None:
    before = open_fds()
    with pytest.raises(NotifyError, match=f"listener to {path_of(agent)}: the agent does not read"):
        run(send(path_of(agent), b"x" * (4 << 20), 0, timeout_s=0.2))
    assert open_fds() == before


def test_an_agent_that_accepts_nobody_is_given_up(agent: socket.socket) -> None:
    clients = []
    while True:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.setblocking(False)
        clients.append(client)
        try:
            client.connect(path_of(agent))
        except BlockingIOError:
            break
    with pytest.raises(NotifyError, match=f"seccomp agent at {path_of(agent)}: it does not accept"):
        run(send(path_of(agent), b"{}", 0, timeout_s=0.1))
    for client in clients:
        client.close()


def test_no_agent_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "nobody.sock", "No such file or directory"),
        (tmp_path / "file", "Connection refused"),
        (tmp_path / ("long" * 40), "File name too long"),
    ):
        with pytest.raises(
            NotifyError, match=f"^failed to connect with seccomp agent at {path}: .*{reason}$"
        ):
            run(send(str(path), b"{}", 0))


def test_an_agent_that_hangs_up_is_an_error_and_no_signal(agent: socket.socket) -> None:
    def work() -> str:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        operation = send(path_of(agent), b"x" * (4 << 20), 0)
        next(operation)
        agent.accept()[0].close()
        try:
            run(operation)
        except NotifyError as error:
            return str(error)
        return "nothing went wrong"

    assert in_child(work) == f"send seccomp listener to {path_of(agent)}: Broken pipe"


def test_a_listener_that_is_none_is_an_error(agent: socket.socket) -> None:
    with pytest.raises(NotifyError, match="Bad file descriptor"):
        run(send(path_of(agent), b"{}", 9999))
