"""Logs: real writers and programs behind real pipes, with this test as their shim and as the process."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.errors import ManorError
from runtime.linux.constants import WALL
from runtime.linux.fds import close_all, send_with_fds, socketpair
from runtime.stages.channel import Channel
from runtime.stages.clone import Step, clone_stage
from shim import sinks
from shim.destinations import FILE, Destination
from shim.loop import Loop
from shim.sinks import MOST_WRITERS, SinkError
from shim.stdio import Streams, open_pipes
from shim.writer import FINISH, Target, Writer
from tests.harness.processes import descriptors
from tests.unit.shim.log_io import LIMIT_S, OWNER, Heard, children, end, lines, opened, turn_until_there
from tests.unit.shim.loops import drive, settle, turn_until
from tests.unit.shim.stdio_peer import Child, Client, fifo, fill, interrupted_after

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


def kill(writer: int) -> None:
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, WALL)


def test_writers_that_are_killed_again_and_again_are_given_up(loop: Loop, tmp_path: Path) -> None:
    heard = Heard()
    log = f"file://{tmp_path}/log"
    io = drive(loop, open_pipes(loop, Streams(stdout=log), OWNER, heard), LIMIT_S)
    child = Child(io)
    io.attach(None)

    def kill_one() -> None:
        before = len(heard.lines)
        assert not io.drained.done
        (writer,) = children()
        kill(writer)
        turn_until(loop, lambda: len(heard.lines) > before, LIMIT_S)

    for _ in range(MOST_WRITERS):
        kill_one()
    assert heard.lines[-1].endswith(f"{MOST_WRITERS} writers were killed: given up")
    assert io.drained.done
    assert children() == []
    with pytest.raises(BrokenPipeError):
        os.write(child.stdout, b"for nobody")
    child.close()
    io.close()


def test_a_writer_that_cannot_be_followed_by_another_ends_the_log(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> tuple[int, int]:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    heard = Heard()
    io = drive(loop, open_pipes(loop, Streams(stdout=f"file://{tmp_path}/log"), OWNER, heard), LIMIT_S)
    child = Child(io)
    io.attach(None)
    monkeypatch.setattr(sinks, "clone_stage", refuse)
    (writer,) = children()
    kill(writer)
    turn_until(loop, lambda: io.drained.done, LIMIT_S)
    assert "Resource temporarily unavailable" in heard.lines[-1]
    child.close()
    io.close()


def test_a_writer_that_is_killed_while_it_finishes_is_followed_by_one_that_does(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody in the background has the pipe: it would go on for as long as that does."""
    monkeypatch.setattr("shim.stdio.DRAIN_AFTER_EXIT_S", 0.02)
    path = tmp_path / "log"
    io, child = opened(loop, f"file://{path}")
    (writer,) = children()
    os.kill(writer, signal.SIGSTOP)
    sent = fill(loop, child.stdout)  # more than is read at once
    io.process_ended()
    settle(loop, 0.1)
    kill(writer)
    turn_until(loop, lambda: io.drained.done, LIMIT_S)
    assert path.read_bytes() == sent
    child.close()
    io.close()


def test_closing_ends_the_writer_although_somebody_in_the_background_has_its_pipe(
    loop: Loop, tmp_path: Path
) -> None:
    io, child = opened(loop, f"file://{tmp_path}/log")
    os.write(child.stdout, b"said")
    io.close()
    turn_until(loop, nobody_runs, LIMIT_S)
    assert (tmp_path / "log").read_bytes() == b"said"
    child.close()


def test_a_file_that_takes_its_time_to_be_opened_stops_neither_the_loop_nor_the_client(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server that does not answer, say."""
    gate, opens = os.pipe()

    def wait(_destination: Destination) -> Target:
        os.close(opens)
        os.read(gate, 1)
        os._exit(0)

    monkeypatch.setattr(sinks, "Target", wait)
    monkeypatch.setattr(sinks, "clone_stage", keeping(gate, opens))
    monkeypatch.setattr(sinks, "OPEN_TIMEOUT_S", 0.05)
    with (
        interrupted_after(LIMIT_S),
        pytest.raises(SinkError, match=r"open stdout .*/log: not done within 0.05 s"),
    ):
        opened(loop, f"file://{tmp_path}/log")
    os.close(gate)
    os.close(opens)


def keeping(*fds: int) -> Callable[..., tuple[int, int]]:
    """A clone_stage whose child has `fds`, too."""

    def clone(
        name: str, run: Callable[[Step], None], report: Channel, kept: tuple[int, ...]
    ) -> tuple[int, int]:
        return clone_stage(name, run, report, (*kept, *fds))

    return clone


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
        before = descriptors()
        try:
            with descriptors_left(count):
                io = drive(loop, open_pipes(loop, streams, OWNER), LIMIT_S)
        except (ManorError, OSError):
            refused += 1
            turn_until(loop, nobody_runs, LIMIT_S)
            assert not descriptors() - before
        else:
            child = Child(io)
            io.attach(None)
            end(loop, io, child)
            break
    assert refused > 2
    assert refused < 39
    if client is not None:
        client.close()
