"""What tests of logs share: a process whose output goes to one, with the test as its shim."""

from __future__ import annotations

import re
from pathlib import Path

from shim.log import Log
from shim.logger import Owner
from shim.loop import Loop
from shim.stdio import PipeIo, Streams, open_pipes
from tests.unit.shim.loops import drive, turn_until
from tests.unit.shim.stdio_peer import Child

LINE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([PF]) (.*)\n", re.DOTALL)
OWNER = Owner("c1", "here")
LIMIT_S = 30.0


class Heard(Log):
    """What a shim would have logged."""

    def __init__(self) -> None:
        super().__init__("", "")
        self.lines: list[str] = []

    def write(self, level: str, message: str) -> None:
        """Note it."""
        self.lines.append(f"{level} {message}")


def children() -> list[int]:
    """The writers and programs that run."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def opened(loop: Loop, uri: str, stderr: str = "") -> tuple[PipeIo, Child]:
    """An io whose process has its ends."""
    io = drive(loop, open_pipes(loop, Streams(stdout=uri, stderr=stderr or uri), OWNER), LIMIT_S)
    child = Child(io)
    io.attach(None)
    return io, child


def end(loop: Loop, io: PipeIo, child: Child) -> None:
    """The process ends; all is written then."""
    child.close()
    turn_until(loop, lambda: io.drained.done, LIMIT_S)
    io.close()


def lines(path: Path) -> list[tuple[str, str, bytes]]:
    """Stream, tag and content of each line of a container log."""
    found = []
    for line in path.read_bytes().splitlines(keepends=True):
        match = LINE.fullmatch(line)
        assert match is not None, line
        found.append((match[1].decode(), match[2].decode(), match[3]))
    return found


def turn_until_there(loop: Loop, path: Path, text: bytes) -> None:
    """Until a file has `text` in it."""
    turn_until(loop, lambda: path.exists() and text in path.read_bytes(), LIMIT_S)
