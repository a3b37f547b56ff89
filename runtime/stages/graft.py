"""The seal for a command: a sealed copy takes the place of the interpreter's file while the command runs.

`seal.reexecute` costs a second start of Python, more than all the rest of a command. Where the interpreter is in
a library (`libpython`), the file that we execute holds a few KiB that nobody is at work in: a sealed copy of it is
mapped in its place and becomes our executable. Whoever finds our process in a container, and follows /proc/PID/exe
or is executed from it, is at that copy then (CVE-2019-5736). Everything else that is mapped, libpython too, is
covered as the host's files are in `seal`.
"""

from __future__ import annotations

from runtime.linux.exe import exchange_exe
from runtime.stages.seal import Seal, reexecute, sealed_copy


def ensure_sealed() -> Seal:
    """Seal this process as it is, or, where that cannot be, by executing it anew."""
    try:
        with sealed_copy("/proc/self/exe", "manor-python") as copy:
            exchange_exe(copy.fileno())
    except OSError:
        return reexecute()
    return Seal(True)
