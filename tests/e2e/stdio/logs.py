"""Container logs as a test reads them, however many files they were moved into."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from shim.api import logs
from shim.api.task import StateRequest
from shim.api.types import Empty
from tests.e2e.shim.door import Door

LINE = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([PF]) ([^\n]*)\n", re.DOTALL)


def entries(path: Path) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Stream, tag and content of each line; AssertionError for one that is none."""
    with path.open("rb") as file:
        for line in file:
            match = LINE.fullmatch(line)
            assert match is not None, line[:200]
            yield match[1], match[2], match[3]


def text_of(*paths: Path) -> dict[str, bytes]:
    """What each stream said, its parts put together again."""
    said = {b"stdout": bytearray(), b"stderr": bytearray()}
    for path in paths:
        for stream, tag, content in entries(path):
            said[stream] += content if tag == b"P" else content + b"\n"
    return {stream.decode(): bytes(data) for stream, data in said.items()}


def reopen(door: Door, container_id: str, exec_id: str = "") -> None:
    """Ask a shim to go on in a new file."""
    request = StateRequest(container_id, exec_id)
    door.client.request(logs.SERVICE, "Reopen", request, Empty, 60)
