"""Logs that a shim has written: files, container logs and programs, of containers and execs."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest

from shim.api import task
from tests.e2e.shim.door import Calls, Door
from tests.e2e.stdio.conftest import start, writers
from tests.e2e.stdio.logs import entries, reopen, text_of
from tests.harness.paths import scratch_dir
from tests.harness.waiting import eventually


def test_a_container_log_is_complete_when_the_container_is_deleted(running: Door, tmp_path: Path) -> None:
    path = tmp_path / "pods" / "main" / "0.log"
    start(running, "c2", ["sh", "-c", "echo out; echo err >&2; printf rest"], f"cri-log://{path}")
    assert running.wait("c2") == 0
    running.delete("c2")
    found = sorted(entries(path))
    assert found == [(b"stderr", b"F", b"err"), (b"stdout", b"F", b"out"), (b"stdout", b"P", b"rest")]


def test_a_plain_file_gets_both_streams_as_they_are(running: Door, tmp_path: Path) -> None:
    path = tmp_path / "new" / "log"
    start(running, "c3", ["sh", "-c", "printf out; printf err >&2"], f"file://{path}")
    assert running.wait("c3") == 0
    running.delete("c3")
    assert sorted((path.read_bytes()[:3], path.read_bytes()[3:])) == [b"err", b"out"]


def test_a_log_of_a_terminal_has_its_size_and_one_stream(running: Door, tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    uri = f"cri-log://{path}"
    script = (
        "until [ \"$(stty size)\" = '43 132' ]; do sleep 0.05; done 2> /dev/null; stty size; echo err >&2"
    )
    start(running, "c4", ["sh", "-c", script], uri, stderr="", terminal=True)
    running.ask("ResizePty", task.ResizePtyRequest("c4", "", 132, 43))
    assert running.wait("c4") == 0
    running.delete("c4")
    assert list(entries(path)) == [(b"stdout", b"F", b"43 132"), (b"stdout", b"F", b"err")]


def test_a_log_is_reopened_by_a_call_and_only_then(running: Door, tmp_path: Path) -> None:
    path, moved = tmp_path / "0.log", tmp_path / "0.log.1"
    script = "echo one; while read line; do echo $line; done"
    start(running, "c5", ["sh", "-c", script], f"cri-log://{path}", **pipe_in(tmp_path))
    writer = os.open(tmp_path / "in", os.O_WRONLY)
    eventually(lambda: b" one\n" in path.read_bytes())
    path.rename(moved)
    os.write(writer, b"two\n")
    eventually(lambda: b" two\n" in moved.read_bytes())
    assert not path.exists()
    reopen(running, "c5")
    assert path.exists()
    os.write(writer, b"three\n")
    running.ask("CloseIO", task.CloseIORequest("c5", stdin=True))
    os.close(writer)
    assert running.wait("c5") == 0
    eventually(lambda: not writers(running))
    with pytest.raises(Exception, match="the log is closed"):
        reopen(running, "c5")
    running.delete("c5")
    assert text_of(moved)["stdout"] == b"one\ntwo\n"
    assert text_of(path)["stdout"] == b"three\n"


def pipe_in(directory: Path) -> dict[str, str]:
    """A fifo as stdin."""
    os.mkfifo(directory / "in")
    return {"stdin": str(directory / "in")}


def test_a_log_that_cannot_be_opened_fails_create_and_exec_and_leaves_nothing(
    running: Door, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    uri = f"cri-log://{tmp_path}/file/0.log"
    running.bundle("bad", ["sleep", "1000"])
    with pytest.raises(Exception, match="open stdout .*/file/0.log: "):
        running.create("bad", stdout=uri, stderr=uri)
    running.add_exec("c1", "e1", ["true"], stdout=uri)
    with pytest.raises(Exception, match="open stdout .*/file/0.log: "):
        running.ask("Start", task.StartRequest("c1", "e1"))
    running.delete("c1", "e1")


def test_a_stuck_disk_stops_the_container_and_nobody_else(running: Door, tmp_path: Path) -> None:
    path = tmp_path / "log"
    running.exec("c1", "e1", ["busybox", "seq", "1", "100000"], stdout=f"file://{path}")
    (writer,) = writers(running)
    os.kill(writer, signal.SIGSTOP)
    running.exec("c1", "e2", ["sh", "-c", "exit 3"])
    assert running.wait("c1", "e2") == 3
    running.delete("c1", "e2")
    os.kill(writer, signal.SIGCONT)
    assert running.wait("c1", "e1") == 0
    running.delete("c1", "e1")
    assert path.read_bytes() == b"".join(b"%d\n" % number for number in range(1, 100_001))


def test_what_a_container_said_is_written_when_its_shim_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    with tempfile.TemporaryDirectory(prefix="manor-door-", dir=scratch_dir()) as directory:
        door = Door(Path(directory))
        try:
            start(door, "c1", ["sh", "-c", "echo said; sleep 1000"], f"cri-log://{path}")
            eventually(lambda: path.stat().st_size)
            (writer,) = writers(door)
            os.kill(writer, signal.SIGSTOP)
            door.exec("c1", "e1", ["sh", "-c", "echo last words > /proc/1/fd/1"])
            assert door.wait("c1", "e1") == 0
            shim = door.shim_pid()
            os.kill(shim, signal.SIGKILL)
            eventually(lambda: not Path(f"/proc/{shim}").exists())
            os.kill(writer, signal.SIGCONT)
            done = door.launch("delete", "c1")
            assert done.returncode == 0, done.stderr
            eventually(lambda: not writers(door), "a writer is left")
        finally:
            door.close()
    assert text_of(path)["stdout"] == b"said\nlast words\n"


def test_a_background_process_keeps_nobody_waiting_though_the_exec_is_not_deleted(
    running: Door, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = tmp_path / "log"
    script = "touch /stay; echo said; while [ -e /stay ]; do sleep 0.05; done &"
    running.exec("c1", "e1", ["sh", "-c", script], stdout=str(path))
    running.exec("c1", "e2", ["sh", "-c", script], stdout=f"cri-log://{log}")
    assert (running.wait("c1", "e1"), running.wait("c1", "e2")) == (0, 0)
    os.set_blocking(reader, True)
    said = b""
    while data := os.read(reader, 100):
        said += data
    os.close(reader)
    assert said == b"said\n"
    eventually(lambda: not writers(running))
    assert text_of(log)["stdout"] == b"said\n"
    running.exec("c1", "e3", ["rm", "/stay"])
    assert running.wait("c1", "e3") == 0
    for exec_id in ("e1", "e2", "e3"):
        running.delete("c1", exec_id)


def test_a_reader_that_comes_back_late_gets_everything_before_the_end(running: Door, tmp_path: Path) -> None:
    path = tmp_path / "out"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    running.exec("c1", "e1", ["busybox", "seq", "1", "12000"], stdout=str(path))  # more than a pipe holds
    assert running.wait("c1", "e1") == 0
    time.sleep(2.5)  # longer than what is left behind may go on
    received = b""
    calls = Calls(running.address)  # Delete waits for the reader, who is this thread
    deleting = threading.Thread(target=calls.delete, args=("c1", "e1"), daemon=True)
    deleting.start()
    os.set_blocking(reader, True)
    while data := os.read(reader, 4096):
        received += data
    os.close(reader)
    deleting.join(60)
    calls.client.close()
    assert received == b"".join(b"%d\n" % number for number in range(1, 12_001))
    assert not deleting.is_alive()


PROGRAM = """#!/bin/sh
echo ready >&5
exec 5>&-
echo $CONTAINER_NAMESPACE $CONTAINER_ID "$@" > $2.who
cat <&4 > $2.err &
cat <&3 > $2.out
wait
"""


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
def test_a_program_takes_the_output_of_a_container_and_of_an_exec(
    running: Door, tmp_path: Path, scheme: str
) -> None:
    program = tmp_path / "logger"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    uri = f"{scheme}://{program}?to={tmp_path}/x&level=high"
    running.exec("c1", "e1", ["sh", "-c", "echo out; echo err >&2"], stdout=uri, stderr=uri)
    assert running.wait("c1", "e1") == 0
    running.delete("c1", "e1")
    assert (tmp_path / "x.who").read_text() == f"test e1 to {tmp_path}/x level high\n"
    assert (tmp_path / "x.out").read_text() == "out\n"
    assert (tmp_path / "x.err").read_text() == "err\n"


def test_a_program_that_is_not_ready_fails_the_start(running: Door, tmp_path: Path) -> None:
    running.add_exec("c1", "e1", ["true"], stdout="binary-v2:///bin/false")
    with pytest.raises(Exception, match="logger /bin/false: it did not say that it is ready"):
        running.ask("Start", task.StartRequest("c1", "e1"))
    running.delete("c1", "e1")
