"""`manor oci`: the runtime as a command. `manor-oci` is the same, and starts faster."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime import cli


def main(arguments: Sequence[str]) -> int:
    """Become `manor-oci` if it stands beside this program or this Python, else do its work here."""
    for directory in (Path(sys.argv[0]).parent, Path(sys.executable).parent):
        command = directory / cli.PROGRAM
        if os.access(command, os.X_OK):
            os.execv(command, [str(command), *arguments])
    return cli.main(arguments, "manor oci")
