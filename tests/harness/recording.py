"""A daemon for a launcher: the shim's own, with a note of which code runs in it. For `tests/harness/hot_code.py` alone.

Each shim appends `MODULE QUALIFIED_NAME` to the file `code-PID` in the run directory when it runs something for the
first time, from the fork on. Its children run the same code, and are not meant.
"""

from __future__ import annotations

import os
import sys
from types import CodeType, FrameType
from typing import Any

from shim.daemon import run

__all__ = ["prepare", "run"]


def prepare() -> None:
    """What a warden calls before its first fork."""
    warden, directory = os.getpid(), os.getcwd()
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event != "call" or code in seen or os.getppid() != warden:
            return
        seen.add(code)
        file = os.open(f"{directory}/code-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(file, f"{frame.f_globals['__name__']} {code.co_qualname}\n".encode())
        os.close(file)

    sys.setprofile(note)
