"""Container logs: real writers behind real pipes, with this test as their shim and as the process."""

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

from runtime.linux.fds import OwnedFd
from shim import sinks
from shim.console import open_console
from shim.loop import Loop
from shim.sinks import SinkError
from shim.stdio import PipeIo, Streams, open_pipes
from shim.tasks import spawn
from shim.ttrpc.status import RpcError
from tests.unit.shim.log_io import LIMIT_S, OWNER, Heard, children, end, lines, opened, turn_until_there
from tests.unit.shim.loops import drive, settle, turn_until
from tests.unit.shim.stdio_peer import Child

pytestmark = pytest.mark.usefixtures("nothing_is_left")


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


@pytest.mark.parametrize(
    ("what", "why"), [("killed", "the writer has gone"), ("closed", "the log is closed")]
)
def test_a_reopen_is_answered_when_its_log_ends_meanwhile(
    loop: Loop, tmp_path: Path, what: str, why: str
) -> None:
    io, child = opened(loop, f"cri-log://{tmp_path}/0.log")
    (writer,) = children()
    os.kill(writer, signal.SIGSTOP)
    results: list[Exception | None] = []
    spawn(loop, io.reopen(), lambda _value, failure: results.append(failure))
    settle(loop)
    assert not results
    if what == "killed":
        os.kill(writer, signal.SIGKILL)
    else:
        io.close()
        os.kill(writer, signal.SIGCONT)
    turn_until(loop, lambda: results, LIMIT_S)
    assert isinstance(results[0], SinkError)
    assert str(results[0]).endswith(why)
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
