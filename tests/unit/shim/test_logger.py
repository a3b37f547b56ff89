"""Logs that are programs of the client's: real ones behind real pipes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.linux.fds import OwnedFd
from shim import logger
from shim.console import open_console
from shim.logger import LoggerError
from shim.loop import Loop
from shim.stdio import Streams
from shim.ttrpc.status import RpcError
from tests.unit.shim.log_io import LIMIT_S, OWNER, end, opened
from tests.unit.shim.loops import drive, turn_until

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def program(directory: Path, text: str) -> Path:
    """A shell script."""
    path = directory / "logger"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


COPY = """
%s
{ cat <&3; echo out ended; } >> $2.out &
{ cat <&4; echo err ended; } >> $2.err &
env | grep CONTAINER | sort > $2.env; echo "$@" > $2.args
wait"""


@pytest.mark.parametrize(("scheme", "ready"), [("binary", "exec 5>&-"), ("binary-v2", "echo >&5; exec 5>&-")])
def test_a_program_gets_both_streams_its_arguments_and_whose_they_are(
    loop: Loop, tmp_path: Path, scheme: str, ready: str
) -> None:
    path, base = program(tmp_path, COPY % ready), tmp_path / "x"
    io, child = opened(loop, f"{scheme}://{path}?base={base}&more=a%20b")
    os.write(child.stdout, b"to out\n")
    os.write(child.stderr, b"to err\n")
    end(loop, io, child)
    assert (tmp_path / "x.out").read_text() == "to out\nout ended\n"
    assert (tmp_path / "x.err").read_text() == "to err\nerr ended\n"
    assert (tmp_path / "x.env").read_text() == "CONTAINER_ID=c1\nCONTAINER_NAMESPACE=here\n"
    assert (tmp_path / "x.args").read_text() == f"base {base} more a b\n"


def test_a_program_has_nothing_but_its_descriptors(loop: Loop, tmp_path: Path) -> None:
    path = program(tmp_path, "ls /proc/self/fd > $2; exec 5>&-; cat <&3 > /dev/null")
    io, child = opened(loop, f"binary://{path}?to={tmp_path}/fds")
    end(loop, io, child)
    # The shell's own copy of its script, and the directory that ls reads, come on top.
    assert set((tmp_path / "fds").read_text().split()) - {"0", "1", "2"} <= {"3", "4", "5", "6", "10", "255"}


@pytest.mark.parametrize("text", ["exit 3", "exec 5>&-; sleep 0.1"])
def test_a_program_of_version_2_that_does_not_say_that_it_is_ready_is_refused(
    loop: Loop, tmp_path: Path, text: str
) -> None:
    with pytest.raises(LoggerError, match="it did not say that it is ready"):
        opened(loop, f"binary-v2://{program(tmp_path, text)}")
    turn_until(loop, lambda: not any(loop._watched), LIMIT_S)


def test_a_program_that_is_never_ready_is_ended(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "READY_TIMEOUT_S", 0.3)
    with pytest.raises(LoggerError, match=r"not ready within 0\.3 s"):
        opened(loop, f"binary://{program(tmp_path, 'exec sleep 1000')}")
    turn_until(loop, lambda: not any(loop._watched), LIMIT_S)


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
def test_a_program_that_is_not_there_is_an_error_that_names_it(
    loop: Loop, tmp_path: Path, scheme: str
) -> None:
    with pytest.raises(LoggerError, match=r"start logger .*/none: .*No such file"):
        opened(loop, f"{scheme}://{tmp_path}/none")
    turn_until(loop, lambda: not any(loop._watched), LIMIT_S)


def test_a_program_that_has_gone_breaks_the_process_pipe(loop: Loop, tmp_path: Path) -> None:
    io, child = opened(loop, f"binary://{program(tmp_path, 'exit 0')}")
    turn_until(loop, lambda: io.drained.done, LIMIT_S)
    with pytest.raises(BrokenPipeError):
        os.write(child.stdout, b"for nobody")
    child.close()
    io.close()


def test_a_program_that_somebody_in_the_background_keeps_is_asked_to_end(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.stdio.DRAIN_AFTER_EXIT_S", 0.05)
    text = f"trap 'echo asked > {tmp_path}/asked; exit' TERM; exec 5>&-; while :; do sleep 0.05; done"
    io, child = opened(loop, f"binary://{program(tmp_path, text)}")
    io.process_ended()
    turn_until(loop, lambda: io.drained.done, LIMIT_S)
    assert (tmp_path / "asked").exists()
    child.close()
    io.close()


@pytest.mark.parametrize("deleted", [False, True])
def test_a_program_that_does_not_end_is_made_to(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    monkeypatch.setattr("shim.stdio.DRAIN_AFTER_EXIT_S", 0.05)
    monkeypatch.setattr(logger, "TERMINATION_TIMEOUT_S", 1000 if deleted else 0.3)
    path = program(tmp_path, f"trap 'touch {tmp_path}/asked' TERM; exec 5>&-; while :; do sleep 0.05; done")
    io, child = opened(loop, f"binary://{path}")
    io.process_ended()
    turn_until(loop, (tmp_path / "asked").exists, LIMIT_S)
    child.close()
    if deleted:
        assert io.pending()
        io.close()
    turn_until(loop, lambda: io.drained.done, LIMIT_S)
    io.close()


def test_a_programs_files_are_its_own(loop: Loop, tmp_path: Path) -> None:
    io, child = opened(loop, f"binary://{program(tmp_path, 'exec 5>&-; cat <&3 > /dev/null')}")
    with pytest.raises(RpcError, match="the log is written by"):
        drive(loop, io.reopen())
    end(loop, io, child)


def test_a_terminals_output_goes_to_a_program(loop: Loop, tmp_path: Path) -> None:
    path = program(tmp_path, f"exec 5>&-; cat <&3 > {tmp_path}/out")
    io = drive(loop, open_console(loop, Streams(stdout=f"binary://{path}", terminal=True), OWNER), LIMIT_S)
    master, slave = os.openpty()
    io.attach(OwnedFd(master))
    os.write(slave, b"hello\n")
    os.close(slave)
    turn_until(loop, lambda: io.drained.done, LIMIT_S)
    io.close()
    assert (tmp_path / "out").read_bytes() == b"hello\r\n"
