"""Logs: real writers and programs behind real pipes, with this test as their shim and as the process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import signal
import stat
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import ManorError
from runtime.linux.constants import WALL
from runtime.linux.fds import OwnedFd, close_all, send_with_fds, socketpair
from shim import sinks
from shim.console import open_console
from shim.destinations import FILE, Destination
from shim.log import Log
from shim.loop import Loop
from shim.sinks import SinkError
from shim.stdio import PipeIo, Streams, open_pipes
from shim.tasks import spawn
from shim.ttrpc.status import RpcError
from shim.writer import FINISH, Target, Writer
from tests.unit.shim.log_io import LIMIT_S, OWNER, children, end, lines, opened, turn_until_there
from tests.unit.shim.loops import drive, settle, turn_until
from tests.unit.shim.test_stdio import Child, Client, fifo

pytestmark = pytest.mark.usefixtures("nothing_is_left")


# --- files -------------------------------------------------------------------------------------------


def test_a_file_is_made_with_its_directories_and_takes_both_streams(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "deep/er/log"
    io, child = opened(loop, f"file://{path}")
    os.write(child.stdout, b"out ")
    turn_until_there(loop, path, b"out ")
    os.write(child.stderr, b"err")
    end(loop, io, child)
    assert path.read_bytes() == b"out err"


def test_a_plain_path_of_a_file_is_appended_to(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before ")
    io, child = opened(loop, str(path))
    os.write(child.stdout, b"and after")
    end(loop, io, child)
    assert path.read_bytes() == b"before and after"


@pytest.mark.parametrize("scheme", ["file", "cri-log"])
@pytest.mark.parametrize("reader", [False, True])
def test_what_is_no_file_is_refused_without_waiting(
    loop: Loop, tmp_path: Path, scheme: str, reader: bool
) -> None:
    path = fifo(tmp_path, "out")
    read_end = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if reader else -1
    with pytest.raises(SinkError, match=rf"open stdout {path}: "):
        opened(loop, f"{scheme}://{path}")
    if reader:
        os.close(read_end)


def test_a_directory_that_cannot_be_made_is_an_error_that_says_so(loop: Loop, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SinkError, match=r"open stdout .*/file/log: .*(Not a directory|File exists)"):
        opened(loop, f"file://{tmp_path}/file/log")


def test_a_writer_that_is_stopped_stops_the_process_and_not_the_loop(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "log"
    io, child = opened(loop, f"file://{path}")
    (writer,) = children()
    os.kill(writer, signal.SIGSTOP)
    os.set_blocking(child.stdout, False)
    sent = bytearray()
    while True:
        try:
            block = os.urandom(5000)
            sent += block[: os.write(child.stdout, block)]
        except BlockingIOError:
            break
    settle(loop)
    assert not io.drained.done
    assert io.pending()
    os.kill(writer, signal.SIGCONT)
    end(loop, io, child)
    assert path.read_bytes() == sent


def test_a_writer_that_is_killed_is_followed_by_another(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "log"
    io, child = opened(loop, f"cri-log://{path}")
    os.write(child.stdout, b"first\n")
    turn_until_there(loop, path, b"first")
    (writer,) = children()
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, WALL)
    os.write(child.stdout, b"second\n")
    turn_until_there(loop, path, b"second")
    drive(loop, io.reopen(), LIMIT_S)
    end(loop, io, child)
    assert [content for *_, content in lines(path)] == [b"first", b"second"]


def test_a_writer_outlives_its_shim_and_writes_what_was_said(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "log"
    io = drive(loop, open_pipes(loop, Streams(stdout=f"cri-log://{path}")), LIMIT_S)
    child = Child(io)
    (writer,) = children()
    os.kill(writer, signal.SIGSTOP)
    os.write(child.stdout, b"last\nwords")
    loop_of_the_shim, io_of_the_shim = loop, io
    # A shim that is killed closes what it has and says nothing.
    (sink,) = io_of_the_shim._sinks
    loop_of_the_shim.unwatch(sink._control.fileno())
    sink._control.close()
    io_of_the_shim.close()
    os.kill(writer, signal.SIGCONT)
    child.close()
    os.waitpid(writer, WALL)
    assert lines(path) == [("stdout", "F", b"last"), ("stdout", "P", b"words")]


def test_somebody_in_the_background_ends_with_the_drain(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.stdio.DRAIN_AFTER_EXIT_S", 0.05)
    path = tmp_path / "log"
    io, child = opened(loop, f"cri-log://{path}")
    os.write(child.stdout, b"rest")
    io.process_ended()
    turn_until(loop, lambda: io.drained.done, LIMIT_S)
    with pytest.raises(BrokenPipeError):
        os.write(child.stdout, b"too late")
    assert lines(path) == [("stdout", "P", b"rest")]
    child.close()
    io.close()


def test_a_container_that_reads_its_own_output_does_not_stop_the_writer(tmp_path: Path) -> None:
    """It opens its end of the pipe for reading, and takes what the writer has just been told of."""
    pipes = {number: os.pipe() for number in (1, 2)}
    for _source, write_end in pipes.values():
        os.write(write_end, b"said")
    destination = Destination(FILE, str(tmp_path / "log"))

    class Thief(Target):
        def write(self, data: memoryview) -> int:
            with open(f"/proc/self/fd/{pipes[2][1]}", "rb", buffering=0) as stolen:
                stolen.read(4)
            return super().write(data)

    target = Thief(destination)
    shim, control = socketpair()
    send_with_fds(shim.fileno(), FINISH)
    sources = {number: source for number, (source, _write_end) in pipes.items()}
    Writer(control.fileno(), sources, destination, target).run()
    assert (tmp_path / "log").read_bytes() == b"said"
    close_all((shim, control, target._file))
    for _source, write_end in pipes.values():
        os.close(write_end)


# --- container logs ----------------------------------------------------------------------------------


def test_a_container_log_has_both_streams_in_one_file_of_the_right_mode(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "pod" / "0.log"
    before = os.umask(0o022)
    io, child = opened(loop, f"cri-log://{path}")
    os.umask(before)
    for number in range(20):
        fd, name = (child.stdout, b"out") if number % 2 else (child.stderr, b"err")
        text = b"%b %d\n" % (name, number)
        os.write(fd, text)
        turn_until_there(loop, path, text)
    end(loop, io, child)
    assert [(stream[3:], content.split()[0].decode()) for stream, _tag, content in lines(path)] == [
        ("err", "err"),
        ("out", "out"),
    ] * 10
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_long_lines_come_in_parts(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    io, child = opened(loop, f"cri-log://{path}?max-line-bytes=100")
    os.write(child.stdout, b"x" * 250 + b"\nshort\n")
    end(loop, io, child)
    assert [(tag, len(content)) for _stream, tag, content in lines(path)] == [
        ("P", 100),
        ("P", 100),
        ("F", 50),
        ("F", 5),
    ]


def test_after_a_reopen_nothing_is_written_to_the_file_that_was_moved(loop: Loop, tmp_path: Path) -> None:
    path, moved = tmp_path / "0.log", tmp_path / "0.log.1"
    io, child = opened(loop, f"cri-log://{path}")
    os.write(child.stdout, b"one\n")
    turn_until_there(loop, path, b"one")
    path.rename(moved)
    os.write(child.stdout, b"two\n")
    turn_until_there(loop, moved, b"two")
    assert not path.exists(), "only a reopen may make it"
    drive(loop, io.reopen(), LIMIT_S)
    assert path.exists()
    os.write(child.stdout, b"three\n")
    end(loop, io, child)
    assert [content for *_, content in lines(moved)] == [b"one", b"two"]
    assert [content for *_, content in lines(path)] == [b"three"]


def test_a_reopen_that_fails_says_why_and_the_log_goes_on_in_the_old_file(loop: Loop, tmp_path: Path) -> None:
    path, moved = tmp_path / "0.log", tmp_path / "0.log.1"
    io, child = opened(loop, f"cri-log://{path}")
    path.rename(moved)
    path.mkdir()
    with pytest.raises(SinkError, match=r"reopen stdout .*0\.log: Is a directory"):
        drive(loop, io.reopen(), LIMIT_S)
    path.rmdir()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SinkError, match=r"reopen stdout .*0\.log: Too many levels of symbolic links"):
        drive(loop, io.reopen(), LIMIT_S)
    os.write(child.stdout, b"still here\n")
    end(loop, io, child)
    assert [content for *_, content in lines(moved)] == [b"still here"]
    assert not (tmp_path / "elsewhere").exists()


def test_reopens_that_come_together_are_all_answered(loop: Loop, tmp_path: Path) -> None:
    io, child = opened(loop, f"cri-log://{tmp_path}/0.log")
    results: list[object] = []
    for _ in range(5):
        spawn(loop, io.reopen(), lambda _value, failure: results.append(failure))
    turn_until(loop, lambda: len(results) == 5, LIMIT_S)
    assert results == [None] * 5
    end(loop, io, child)
    with pytest.raises(RpcError, match="the log is closed"):
        drive(loop, io.reopen(), LIMIT_S)


def test_a_reopen_waits_for_a_stuck_writer_no_longer_than_it_may(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "OPEN_TIMEOUT_S", 0.05)
    io, child = opened_patiently(loop, f"cri-log://{tmp_path}/0.log", monkeypatch)
    (writer,) = children()
    os.kill(writer, signal.SIGSTOP)
    for _ in range(2):
        with pytest.raises(SinkError, match="reopen stdout .*0.log: .* 0.05 s"):
            drive(loop, io.reopen(), LIMIT_S)
    os.kill(writer, signal.SIGCONT)
    end(loop, io, child)


def opened_patiently(loop: Loop, uri: str, monkeypatch: pytest.MonkeyPatch) -> tuple[PipeIo, Child]:
    """Opened with the usual time, whatever limit the test has set for what follows."""
    limit_s = sinks.OPEN_TIMEOUT_S
    monkeypatch.setattr(sinks, "OPEN_TIMEOUT_S", LIMIT_S)
    made = opened(loop, uri)
    monkeypatch.setattr(sinks, "OPEN_TIMEOUT_S", limit_s)
    return made


def test_a_log_that_watches_its_path_follows_a_rename_by_itself(loop: Loop, tmp_path: Path) -> None:
    path, moved = tmp_path / "0.log", tmp_path / "0.log.1"
    io, child = opened(loop, f"cri-log://{path}?watch=1")
    os.write(child.stdout, b"one\n")
    turn_until_there(loop, path, b"one")
    path.rename(moved)
    os.write(child.stdout, b"two\n")
    end(loop, io, child)
    assert [content for *_, content in lines(moved)] == [b"one"]
    assert [content for *_, content in lines(path)] == [b"two"]


class Heard(Log):
    """What a shim would have logged."""

    def __init__(self) -> None:
        super().__init__("", "")
        self.lines: list[str] = []

    def write(self, level: str, message: str) -> None:
        """Note it."""
        self.lines.append(f"{level} {message}")


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Whoever is forked in here gets EFBIG for more, as it would get ENOSPC on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_takes_nothing_holds_the_process_up_until_it_is_moved(loop: Loop, tmp_path: Path) -> None:
    path, moved = tmp_path / "0.log", tmp_path / "0.log.1"
    with files_of_at_most(1000):
        io, child = opened(loop, f"cri-log://{path}")
    text = b"".join(b"%d\n" % number for number in range(40))  # too many for one file, not for two
    os.write(child.stdout, text)
    turn_until(loop, lambda: path.stat().st_size > 900, LIMIT_S)
    path.rename(moved)
    drive(loop, io.reopen(), LIMIT_S)
    end(loop, io, child)
    assert b"".join(content + b"\n" for *_, content in lines(moved) + lines(path)) == text


def test_what_could_not_be_written_in_time_is_lost_and_the_log_says_so(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.writer.WRITE_PATIENCE_S", 0.3)
    path, moved, heard = tmp_path / "0.log", tmp_path / "0.log.1", Heard()
    with files_of_at_most(1000):
        io = drive(loop, open_pipes(loop, Streams(stdout=f"cri-log://{path}"), OWNER, heard), LIMIT_S)
    child = Child(io)
    io.attach(None)
    os.write(child.stdout, b"x\n" * 40)
    turn_until(loop, lambda: heard.lines, LIMIT_S)
    assert heard.lines == [f"error output is lost: write {path}: File too large"]
    os.write(child.stdout, b"lost\n" * 40)
    turn_until(loop, lambda: bytes_in(child.stdout) == 0, LIMIT_S)
    path.rename(moved)
    drive(loop, io.reopen(), LIMIT_S)
    os.write(child.stdout, b"found again\n")
    end(loop, io, child)
    assert {line[1:] for line in lines(moved)} == {("F", b"x")}
    gap, again = lines(path)
    assert re.fullmatch(rb"manor: about \d{4} bytes of this log could not be written and are lost", gap[2])
    assert again == ("stdout", "F", b"found again")
    assert len(heard.lines) == 1


def bytes_in(fd: int) -> int:
    """What a pipe holds."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), "little")


def test_without_a_log_there_is_nothing_to_reopen(loop: Loop) -> None:
    io = drive(loop, open_pipes(loop, Streams()))
    with pytest.raises(RpcError, match="there is no log"):
        drive(loop, io.reopen())
    io.close()


def test_a_flood_with_reopens_has_every_line_once_and_in_order(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    io, child = opened(loop, f"cri-log://{path}")
    count = 200_000
    writing = threading.Thread(target=write_numbers, args=(child.stdout, count))
    writing.start()
    parts = 0
    while writing.is_alive():
        path.rename(tmp_path / f"part-{parts:04}")
        parts += 1
        drive(loop, io.reopen(), LIMIT_S)
        settle(loop, 0.01)
    writing.join()
    end(loop, io, child)
    numbers = [
        int(content)
        for part in [*sorted(tmp_path.glob("part-*")), path]
        for _stream, _tag, content in lines(part)
    ]
    assert numbers == list(range(count))
    assert parts > 1


def write_numbers(fd: int, count: int) -> None:
    """A line each."""
    text = b"".join(b"%d\n" % number for number in range(count))
    while text:
        text = text[os.write(fd, text) :]


@pytest.mark.parametrize("log", [True, False])
def test_a_terminals_output_goes_to_a_log(loop: Loop, tmp_path: Path, log: bool) -> None:
    path = tmp_path / "log"
    uri = f"{'cri-log' if log else 'file'}://{path}"
    io = drive(loop, open_console(loop, Streams(stdout=uri, terminal=True)), LIMIT_S)
    master, slave = os.openpty()
    io.attach(OwnedFd(master))
    os.write(slave, b"hello\n")
    os.close(slave)
    turn_until(loop, lambda: io.drained.done, LIMIT_S)
    io.close()
    assert (lines(path) == [("stdout", "F", b"hello")]) if log else (path.read_bytes() == b"hello\r\n")


# --- descriptors that cannot be had ------------------------------------------------------------------


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """So many more can be opened, and no more."""
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    taken = [
        os.open("/dev/null", os.O_RDONLY) for _gap in range(highest - len(os.listdir("/proc/self/fd")) + 2)
    ]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken, default=highest) + 1 + count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)


def nobody_runs() -> bool:
    """Whether all children have ended; they are reaped."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG | WALL)[0]:
            pass
    return not children()


@pytest.mark.parametrize("kind", ["fifo", "cri-log", "file", "binary", "binary-v2"])
def test_streams_that_cannot_be_opened_for_want_of_descriptors_leave_none(
    loop: Loop, tmp_path: Path, kind: str
) -> None:
    """At every count of descriptors that is too few, each an error; `nothing_is_left` looks at the end, too."""
    client: Client | None = None
    if kind == "fifo":
        client = Client(tmp_path, stdin=True)
        streams = client.streams
    else:
        script = tmp_path / "program"
        script.write_text("#!/bin/sh\necho >&5; exec 5>&-; cat <&3 >/dev/null\n")
        script.chmod(0o755)
        path = script if kind.startswith("binary") else tmp_path / "log"
        streams = Streams(stdout=f"{kind}://{path}", stderr=f"{kind}://{path}")
    refused = 0
    for count in range(40):
        before = sorted(os.listdir("/proc/self/fd"))
        try:
            with descriptors_left(count):
                io = drive(loop, open_pipes(loop, streams, OWNER), LIMIT_S)
        except (ManorError, OSError):
            refused += 1
            turn_until(loop, nobody_runs, LIMIT_S)
            assert sorted(os.listdir("/proc/self/fd")) == before
        else:
            child = Child(io)
            io.attach(None)
            end(loop, io, child)
            break
    assert refused > 2
    assert refused < 39
    if client is not None:
        client.close()
