"""Running a command to its end without looking again and again whether it has ended.

`Popen.wait` with a timeout sleeps between looks, up to 50 ms: for commands of 30 ms that is most of a test.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def ended(running: subprocess.Popen[Any], limit_s: float = 60) -> int:
    """The code that a process ends with, as soon as it does; TimeoutExpired after `limit_s` seconds."""
    if running.poll() is None:
        pidfd = os.pidfd_open(running.pid)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(limit_s * 1000):
                raise subprocess.TimeoutExpired(running.args, limit_s)
        finally:
            os.close(pidfd)
    return running.wait()


def in_files(
    words: Sequence[str | Path], stdin: bytes | None = None, limit_s: float = 60, **how: Any
) -> tuple[int, str, str]:
    """A command's exit code and outputs, which go to files: what it leaves running may keep them.

    It reads `stdin` from a file, too; without, from /dev/null. One that takes longer than `limit_s` seconds is killed
    and is a TimeoutExpired. `how` is for Popen.
    """
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write(stdin or b"")
        given.seek(0)
        source = subprocess.DEVNULL if stdin is None else given
        with subprocess.Popen(words, stdin=source, stdout=out, stderr=err, **how) as running:
            try:
                code = ended(running, limit_s)
            except BaseException:
                running.kill()
                raise
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return code, texts[0], texts[1]
