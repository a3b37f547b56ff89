"""Lines in the log fifo, and that nothing about it can hold a shim up."""

from __future__ import annotations

import os
import re
from pathlib import Path

from shim.log import DEBUG, ERROR, Log


def test_a_line_reads_as_containerds_own(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    Log(str(path), "io.containerd.manor.v2").write(ERROR, 'a "quoted"\nthing')
    assert re.fullmatch(
        r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z" level=error msg="a \\"quoted\\"\\nthing"'
        r" runtime=io\.containerd\.manor\.v2\n",
        path.read_text(),
    )


def test_debug_lines_come_only_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    Log(str(path), "x").write(DEBUG, "hidden")
    assert path.read_text() == ""
    Log(str(path), "x", debugging=True).write(DEBUG, "shown")
    assert "shown" in path.read_text()


def test_a_fifo_that_is_gone_unread_or_full_costs_lines_and_no_time(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(str(path), "x")
    log.write(ERROR, "gone")
    os.mkfifo(path)
    log.write(ERROR, "unread")
    reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    for _ in range(200):
        log.write(ERROR, "x" * 3000)
    assert os.read(reader, 100).startswith(b"time=")
    os.close(reader)


def test_a_line_is_short_enough_to_be_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    Log(str(path), "x").write(ERROR, "ä" * 10_000)
    assert path.stat().st_size == 4096
    assert path.read_bytes().endswith(b"\n")


def test_a_bug_is_told_with_the_functions_it_passed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()

    def inner() -> None:
        raise KeyError("it")

    def outer() -> None:
        inner()

    try:
        outer()
    except KeyError as error:
        Log(str(path), "x").bug(error)
    text = path.read_text()
    assert "unexpected KeyError: 'it'" in text
    assert re.search(r"outer:\d+ > .*inner:\d+", text)
