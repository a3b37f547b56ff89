"""Streams of real processes: complete, in both directions, and ended when they should be."""

from __future__ import annotations

import hashlib
import os
import select
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shim.api import task
from tests.e2e.shim.door import Door
from tests.harness.waiting import eventually


class Client:
    """Fifos as containerd makes them; outputs are collected by threads."""

    def __init__(self, directory: Path, *, stdin: bool = False, terminal: bool = False) -> None:
        directory.mkdir()
        self.streams: dict[str, Any] = {}
        self.data: dict[str, bytes] = {}
        self._threads = []
        for name in ("stdout",) if terminal else ("stdout", "stderr"):
            path = self._fifo(directory, name)
            self.data[name] = b""
            # Opened before the request is made, as containerd does.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            thread = threading.Thread(target=self._collect, args=(fd, name), daemon=True)
            self._threads.append(thread)
        self.stdin_path = self._fifo(directory, "stdin") if stdin else ""
        if terminal:
            self.streams["terminal"] = True

    def _fifo(self, directory: Path, name: str) -> str:
        path = str(directory / name)
        os.mkfifo(path)
        self.streams[name] = path
        return path

    def _collect(self, fd: int, name: str) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while True:
            poll.poll()
            data = os.read(fd, 1 << 20)
            if not data:
                os.close(fd)
                return
            self.data[name] += data

    def begin(self) -> None:
        """The shim has its ends open: read."""
        for thread in self._threads:
            thread.start()

    def wait_for_the_end(self, limit_s: float = 60) -> None:
        deadline = time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), "the stream did not end"

    def open_stdin(self) -> int:
        return os.open(self.stdin_path, os.O_WRONLY)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path / "io")


def run(door: Door, client: Client, args: list[str], **process: object) -> int:
    """Run an exec with the client's streams to its end; its exit status."""
    door.exec("c1", "e1", args, process=process, **client.streams)
    client.begin()
    status = door.wait("c1", "e1")
    door.delete("c1", "e1")
    client.wait_for_the_end()
    return status


def test_both_outputs_and_the_status_arrive(running: Door, client: Client) -> None:
    assert run(running, client, ["sh", "-c", "echo out; echo err >&2; exit 7"]) == 7
    assert (client.data["stdout"], client.data["stderr"]) == (b"out\n", b"err\n")


def test_ten_megabytes_pass_through_whole_in_both_directions(running: Door, tmp_path: Path) -> None:
    client = Client(tmp_path / "io", stdin=True)
    running.exec("c1", "e1", ["cat"], **client.streams)
    client.begin()
    sent = os.urandom(10 << 20)
    writer = client.open_stdin()
    view = memoryview(sent)
    while view:
        view = view[os.write(writer, view[: 1 << 16]) :]
    running.ask("CloseIO", task.CloseIORequest("c1", "e1", stdin=True))
    os.close(writer)
    assert running.wait("c1", "e1") == 0
    running.delete("c1", "e1")
    client.wait_for_the_end()
    assert hashlib.sha256(client.data["stdout"]).digest() == hashlib.sha256(sent).digest()


def test_a_grandchild_in_the_background_does_not_keep_the_client_waiting(
    running: Door, client: Client
) -> None:
    running.exec("c1", "e1", ["sh", "-c", "echo said; sleep 1000 &"], **client.streams)
    client.begin()
    assert running.wait("c1", "e1") == 0
    client.wait_for_the_end()
    assert client.data["stdout"] == b"said\n"
    running.delete("c1", "e1")


@pytest.mark.parametrize("uid", [0, 1000])
def test_a_process_can_open_its_streams_by_name(running: Door, client: Client, uid: int) -> None:
    command = "echo out > /proc/self/fd/1 && echo err > /proc/self/fd/2"
    assert run(running, client, ["sh", "-c", command], user={"uid": uid, "gid": uid}) == 0
    assert (client.data["stdout"], client.data["stderr"]) == (b"out\n", b"err\n")


def test_no_file_of_the_host_is_among_the_descriptors(running: Door, tmp_path: Path) -> None:
    client = Client(tmp_path / "io", stdin=True)
    running.exec(
        "c1", "e1", ["sh", "-c", "for f in /proc/self/fd/*; do readlink $f; done; true"], **client.streams
    )
    client.begin()
    running.ask("CloseIO", task.CloseIORequest("c1", "e1", stdin=True))
    assert running.wait("c1", "e1") == 0
    running.delete("c1", "e1")
    client.wait_for_the_end()
    links = client.data["stdout"].decode().split()
    assert links[:3] == [link for link in links[:3] if link.startswith("pipe:")]
    assert str(tmp_path) not in client.data["stdout"].decode()


def test_a_container_writes_before_anybody_starts_reading(door: Door, client: Client) -> None:
    door.bundle("c1", ["sh", "-c", "echo first; echo last"])
    door.start("c1")
    door.create("c1", **client.streams)
    door.ask("Start", task.StartRequest("c1"))
    assert door.wait("c1") == 0
    client.begin()
    door.delete("c1")
    client.wait_for_the_end()
    assert client.data["stdout"] == b"first\nlast\n"


def test_a_terminal_has_the_size_that_was_asked_for(running: Door, tmp_path: Path) -> None:
    client = Client(tmp_path / "io", terminal=True)
    running.exec("c1", "e1", ["sh", "-c", "sleep 0.3; tty; stty size"], **client.streams)
    client.begin()
    running.ask("ResizePty", task.ResizePtyRequest("c1", "e1", 132, 43))
    assert running.wait("c1", "e1") == 0
    running.delete("c1", "e1")
    client.wait_for_the_end()
    assert client.data["stdout"].split() == [b"/dev/pts/0", b"43", b"132"]


def test_a_terminal_passes_on_keys_that_mean_signals(running: Door, tmp_path: Path) -> None:
    client = Client(tmp_path / "io", stdin=True, terminal=True)
    running.exec(
        "c1",
        "e1",
        ["sh", "-c", "trap 'exit 42' INT; echo ready; while true; do sleep 0.1; done"],
        **client.streams,
    )
    client.begin()
    eventually(lambda: b"ready" in client.data["stdout"])
    writer = client.open_stdin()
    os.write(writer, b"\x03")
    assert running.wait("c1", "e1") == 42
    running.delete("c1", "e1")
    client.wait_for_the_end()
    os.close(writer)


def test_a_terminal_whose_client_is_gone_for_good_is_hung_up(running: Door, tmp_path: Path) -> None:
    client = Client(tmp_path / "io", stdin=True, terminal=True)
    running.exec("c1", "e1", ["sh"], **client.streams)
    client.begin()
    writer = client.open_stdin()
    running.ask("CloseIO", task.CloseIORequest("c1", "e1", stdin=True))
    os.close(writer)
    assert running.wait("c1", "e1") in (0, 129)
    running.delete("c1", "e1")
    client.wait_for_the_end()


def test_the_output_of_a_terminal_is_complete_at_the_end(running: Door, tmp_path: Path) -> None:
    client = Client(tmp_path / "io", terminal=True)
    running.exec(
        "c1",
        "e1",
        ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do cat /etc/passwd /etc/group; done; echo END"],
        **client.streams,
    )
    client.begin()
    assert running.wait("c1", "e1") == 0
    running.delete("c1", "e1")
    client.wait_for_the_end()
    assert client.data["stdout"].endswith(b"END\r\n")
    assert client.data["stdout"].count(b"root:x:0:0") == 9


def test_a_stream_that_cannot_be_opened_fails_the_start_and_is_named(running: Door) -> None:
    eventually(lambda: len(running.events.seen) == 2)  # the connection that brings them has come
    before = running.shim_fds()
    running.add_exec("c1", "e1", ["true"], stdout="/nowhere/fifo")
    with pytest.raises(Exception, match="open stdout /nowhere/fifo: No such file"):
        running.ask("Start", task.StartRequest("c1", "e1"))
    running.delete("c1", "e1")
    assert running.shim_fds() == before


@pytest.mark.parametrize("terminal", [False, True])
def test_a_plain_file_as_stdin_fails_create_and_exec_and_leaves_nothing(
    door: Door, tmp_path: Path, terminal: bool
) -> None:
    (tmp_path / "in").write_text("text")
    streams: dict[str, Any] = {"stdin": str(tmp_path / "in"), "terminal": terminal}
    bundle = door.bundle("c1", ["sleep", "1000"])
    bundle.config["process"]["terminal"] = terminal
    bundle.write()
    door.start("c1")
    with pytest.raises(Exception, match="open stdin .*: not a fifo"):
        door.create("c1", **streams)
    assert (door.cgroups(), door.zombies()) == ([], [])
    door.create("c1", terminal=terminal)
    door.ask("Start", task.StartRequest("c1"))
    eventually(lambda: len(door.events.seen) == 2)  # the connection that brings them has come
    before = door.shim_fds()
    door.add_exec("c1", "e1", ["true"], process={"terminal": terminal}, **streams)
    with pytest.raises(Exception, match="open stdin .*: not a fifo"):
        door.ask("Start", task.StartRequest("c1", "e1"))
    assert len(door.ask("Pids", task.PidsRequest("c1")).processes) == 1
    door.delete("c1", "e1")
    assert door.shim_fds() == before
    door.end("c1")


def test_a_program_that_is_not_there_leaves_its_streams_ended(running: Door, client: Client) -> None:
    running.add_exec("c1", "e1", ["no-such-program"], **client.streams)
    with pytest.raises(Exception, match="no-such-program"):
        running.ask("Start", task.StartRequest("c1", "e1"))
    client.begin()
    client.wait_for_the_end()
    running.delete("c1", "e1")
