"""One client of a shim that runs exec after exec, each of them different and known: what it writes, and how it ends.

The bytes are those of files in the container's root, `/noise-N`, so that every one of them can be compared. A lane
has a connection of its own, as each of containerd's containers has, and fifos of its own for each exec.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from shim.api import task
from tests.e2e.shim.door import Calls, Door

CONTAINER = "c1"
NOISES = 8
NOISE_BYTES = 1 << 20
LETTERS = "letters"  # for terminals, which change what is not printable
PIPE_BYTES = 64 * 1024
LIMIT_S = 120

WRITE, ECHO, TERMINAL = "write", "echo", "terminal"


@dataclass(frozen=True)
class Wanted:
    """An exec and what it must come to."""

    kind: str
    args: list[str]
    stdin: bytes
    stdout: bytes
    stderr: bytes
    code: int


class Noise:
    """What is written: by the container from its files, and by us when we compare."""

    def __init__(self, seed: int, rootfs: Path) -> None:
        chance = random.Random(seed)
        self.blocks = [chance.randbytes(NOISE_BYTES) for _ in range(NOISES)]
        self.letters = bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz", k=PIPE_BYTES * 2))
        for number, block in enumerate(self.blocks):
            (rootfs / f"noise-{number}").write_bytes(block)
        (rootfs / LETTERS).write_bytes(self.letters)

    def an_exec(self, chance: random.Random) -> Wanted:
        """One of those that there are, by chance."""
        code = chance.choice((0, 0, 1, 126, 127, 128, 137, 255, chance.randrange(256)))
        kind = chance.choices((WRITE, ECHO, TERMINAL), (85, 10, 5))[0]
        if kind == WRITE:
            numbers = [chance.randrange(NOISES) for _ in range(2)]
            out, err = (self.blocks[number][: size(chance)] for number in numbers)
            first, second = (
                (f"head -c {len(data)} /noise-{number}{to}")
                for data, number, to in ((out, numbers[0], ""), (err, numbers[1], " >&2"))
            )
            script = f"{first}; {second}" if chance.random() < 0.5 else f"{second}; {first}"
            return Wanted(kind, ["sh", "-c", f"{script}; exit {code}"], b"", out, err, code)
        if kind == ECHO:
            data = chance.choice(self.blocks)[: size(chance)]
            return Wanted(kind, ["sh", "-c", f"cat; exit {code}"], data, data, b"", code)
        word = b"%x" % chance.getrandbits(64)
        text = self.letters[: size(chance) % len(self.letters)]
        script = f"read word; echo was $word; head -c {len(text)} /{LETTERS}; exit {code}"
        # The terminal itself says what was typed, before whoever reads it can.
        output = word + b"\r\nwas " + word + b"\r\n" + text
        return Wanted(kind, ["sh", "-c", script], word + b"\n", output, b"", code)


def size(chance: random.Random) -> int:
    """How much: often nothing, mostly little, sometimes more than a pipe takes."""
    kind = chance.random()
    if kind < 0.25:
        return 0
    if kind < 0.85:
        return chance.randrange(1, 4096)
    if kind < 0.95:
        return chance.choice((4096, PIPE_BYTES - 1, PIPE_BYTES, PIPE_BYTES + 1))
    return chance.randrange(PIPE_BYTES, 4 * PIPE_BYTES)


class Lane:
    """See above. `wrong` is what was not as it should be, in words."""

    def __init__(self, door: Door, noise: Noise, name: str, seed: int) -> None:
        self.name = name
        self.wrong: list[str] = []
        self.moved = 0
        self.seconds: list[float] = []
        self.serial = 0
        self._noise = noise
        self._chance = random.Random(seed)
        self._calls = Calls(door.address)
        self._directory = door.directory / f"lane-{name}"
        self._directory.mkdir()

    def close(self) -> None:
        """End the connection."""
        self._calls.client.close()
        shutil.rmtree(self._directory)

    def run(self, count: int) -> None:
        """Run that many, one after the other; a failure of the lane itself is one more thing that is wrong."""
        try:
            for _ in range(count):
                self.one(self._noise.an_exec(self._chance))
        except Exception as error:
            self.wrong.append(f"lane {self.name}, exec {self.serial}: {error!r}")

    def one(self, wanted: Wanted) -> None:
        """Run one exec, and compare."""
        self.serial += 1
        exec_id = f"{self.name}-{self.serial}"
        begin = time.monotonic()
        streams = self._make_fifos(wanted)
        try:
            out, err = self._talk(exec_id, wanted, streams)
            code = self._calls.wait(CONTAINER, exec_id)
            deleted = self._calls.delete(CONTAINER, exec_id)
        finally:
            for path in streams.values():
                os.unlink(path)
        self.seconds.append(time.monotonic() - begin)
        self.moved += len(out) + len(err)
        for what, got, right in (("stdout", out, wanted.stdout), ("stderr", err, wanted.stderr)):
            if got != right:
                self.wrong.append(f"{exec_id} ({wanted.kind}): {what} {difference(got, right)}")
        if (code, deleted.exit_status) != (wanted.code, wanted.code):
            self.wrong.append(
                f"{exec_id}: {wanted.code}, but {code} by Wait, {deleted.exit_status} by Delete"
            )

    def _make_fifos(self, wanted: Wanted) -> dict[str, str]:
        names = ["stdout"] + ["stderr"] * (wanted.kind != TERMINAL) + ["stdin"] * (wanted.kind != WRITE)
        paths = {name: str(self._directory / f"{self.serial}-{name}") for name in names}
        for path in paths.values():
            os.mkfifo(path)
        return paths

    def _talk(self, exec_id: str, wanted: Wanted, streams: dict[str, str]) -> tuple[bytes, bytes]:
        """Start it, and pass everything in both directions until its outputs end."""
        readers: dict[int, bytearray] = {}
        fds = {}
        writer = -1
        try:
            for name in ("stdout", "stderr"):
                if name in streams:
                    fds[name] = os.open(streams[name], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                    readers[fds[name]] = bytearray()
            said = {name: readers[fd] for name, fd in fds.items()}
            terminal = wanted.kind == TERMINAL
            self._calls.exec(CONTAINER, exec_id, wanted.args, terminal=terminal, **streams)
            if "stdin" in streams:
                writer = os.open(streams["stdin"], os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            writer = self._pass(exec_id, readers, writer, wanted)
        finally:
            for fd in (*fds.values(), writer):
                if fd >= 0:
                    os.close(fd)
        return bytes(said["stdout"]), bytes(said.get("stderr", b""))

    def _pass(self, exec_id: str, readers: dict[int, bytearray], writer: int, wanted: Wanted) -> int:
        """All is open on the other side. Returns the writer if it is still open: a terminal's stays so."""
        left = wanted.stdin
        open_readers = set(readers)
        poll = select.poll()
        for fd in readers:
            poll.register(fd, select.POLLIN)
        if writer >= 0:
            poll.register(writer, select.POLLOUT)
        while open_readers:
            ready = poll.poll(LIMIT_S * 1000)
            if not ready:
                raise TimeoutError(f"{exec_id} ({wanted.kind}) neither writes nor ends")
            for fd, _events in ready:
                if fd == writer:
                    left = left[os.write(writer, left) :] if left else left
                    if not left:
                        poll.unregister(writer)
                        if wanted.kind == ECHO:
                            self._calls.ask("CloseIO", task.CloseIORequest(CONTAINER, exec_id, stdin=True))
                            os.close(writer)
                            writer = -1
                elif data := os.read(fd, 1 << 18):
                    readers[fd] += data
                else:
                    poll.unregister(fd)
                    open_readers.remove(fd)
        return writer


def difference(got: bytes, right: bytes) -> str:
    """What is different, in a line."""
    at = next((at for at, pair in enumerate(zip(got, right, strict=False)) if pair[0] != pair[1]), -1)
    return f"has {len(got)} bytes, not {len(right)}; the first that differs is {at}"
