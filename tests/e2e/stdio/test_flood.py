"""A flood of output into a container log that is moved away all the time: every line once, in order, tags right.

A slice of it by default; `make soak` runs a gibibyte with another seed each time.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from shim.api import task, types
from shim.ttrpc.status import RpcError
from tests.e2e.shim.door import Door
from tests.e2e.stdio.conftest import writers
from tests.e2e.stdio.logs import entries, reopen

SEED = int(os.environ.get("MANOR_SEED", "7"))
LINE_BYTES = 16 * 1024
HUGE = 16 << 20
REOPEN_EVERY_S = 0.1
LEAST_REOPENS = 3  # an idle machine writes the slice in the time of one
BLOCK = 40 << 20  # of what is repeated on each stream
BYTES = int(os.environ.get("MANOR_LOG_BYTES", str(2 * BLOCK)))


def make_block(chance: random.Random, size: int) -> bytes:
    """Lines of every length that matters, each different, none with a carriage return."""
    noise = bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz 0123456789\t\x00\xff", k=1 << 20))
    lines: list[bytes] = []
    total = 0
    while total < size - HUGE - 32:
        length = chance.randrange(0, 200)
        if not len(lines) % 500:
            length = chance.choice((1000, LINE_BYTES - 10, LINE_BYTES, 3 * LINE_BYTES)) + chance.randrange(
                0, 12
            )
        start = chance.randrange(len(noise) - 64 * 1024)
        lines.append(b"%d " % len(lines) + noise[start : start + length])
        total += len(lines[-1]) + 1
    lines.insert(len(lines) // 2, (noise * 17)[:HUGE])
    return b"\n".join(lines) + b"\n"


class Expected:
    """What a stream has to say, compared with what its log says, without holding either."""

    def __init__(self, block: bytes) -> None:
        self._block = memoryview(block)
        self._at = 0
        self.count = 0

    def take(self, data: bytes) -> None:
        """The next bytes."""
        self.count += len(data)
        while data:
            part = self._block[self._at : self._at + len(data)]
            assert part == data[: len(part)], f"byte {self.count - len(data)} of the stream is another one"
            data = data[len(part) :]
            self._at = (self._at + len(part)) % len(self._block)


def check(paths: list[Path], expected: dict[bytes, Expected]) -> int:
    """Go through the log; the number of its lines."""
    count = 0
    before = dict.fromkeys(expected, 0)  # of the line that is being read
    for path in paths:
        for stream, tag, content in entries(path):
            count += 1
            if tag == b"P":
                assert len(content) == LINE_BYTES
                before[stream] += 1
                expected[stream].take(content)
            else:
                assert len(content) <= LINE_BYTES
                assert content or not before[stream], "a line was cut at its end"
                before[stream] = 0
                expected[stream].take(content + b"\n")
    assert not any(before.values())
    return count


def peak_kb(pid: int) -> int:
    """The most memory of its own that a process has had; 0 once it has gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return int(fields.get("VmHWM", "0").split()[0])


def test_a_flood_of_lines_with_reopens_is_complete_and_in_order(running: Door, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    bundle = running.bundle("flood", [])
    blocks = {}
    for name in ("stdout", "stderr"):
        blocks[name.encode()] = make_block(chance, BLOCK)
        (bundle.path / "rootfs" / name).write_bytes(blocks[name.encode()])
    rounds = max(1, -(-BYTES // (2 * BLOCK)))
    script = f"i=0; while [ $i -lt {rounds} ]; do cat /stdout & cat /stderr >&2; wait; i=$((i+1)); done"
    script += "; until [ -e /end ]; do sleep 0.02; done"
    bundle.config["process"]["args"] = ["sh", "-c", script]
    bundle.write()
    path = tmp_path / "0.log"
    running.create("flood", stdout=f"cri-log://{path}", stderr=f"cri-log://{path}")
    (writer,) = writers(running)
    start = time.monotonic()
    running.ask("Start", task.StartRequest("flood"))
    moved: list[tuple[Path, int]] = []
    high_water_kb = 0
    while running.status("flood") != types.STATUS_STOPPED:
        high_water_kb = peak_kb(writer) or high_water_kb
        old = tmp_path / f"moved-{len(moved):05}"
        path.rename(old)
        try:
            reopen(running, "flood")
        except RpcError:  # all has been written meanwhile
            path = old
            break
        moved.append((old, old.stat().st_size))
        if len(moved) == LEAST_REOPENS:
            (bundle.path / "rootfs/end").touch()
        time.sleep(REOPEN_EVERY_S)
    assert running.wait("flood") == 0
    seconds = time.monotonic() - start
    running.delete("flood")
    expected = {stream: Expected(block) for stream, block in blocks.items()}
    count = check([*(old for old, _size in moved), path], expected)
    for stream, block in blocks.items():
        assert expected[stream].count == rounds * len(block)
    for old, size in moved:
        assert old.stat().st_size == size, "a file was written to after its reopen was answered"
    assert len(moved) >= LEAST_REOPENS
    assert high_water_kb < 40_000
    mb = rounds * sum(len(block) for block in blocks.values()) / 1e6
    print(
        f"{mb:.0f} MB, {count} lines, {len(moved)} reopens in {seconds:.1f} s; writer's peak {high_water_kb} kB"
    )
