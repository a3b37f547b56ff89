"""The seal of a command: what executes is a sealed copy, and the command runs on as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

CHECKOUT = Path(__file__).resolve().parents[4]
_TRY = f"""
import sys; sys.path.append({str(CHECKOUT)!r})
import errno, fcntl, os
from runtime.linux import exe
from runtime.stages import seal
try:
    with seal.sealed_copy("/proc/self/exe", "copy") as copy:
        exe.exchange_exe(copy.fileno())
except OSError as error:
    print("not here", error.errno)
"""
_TELL = """
print(os.readlink("/proc/self/exe"))
fd = os.open("/proc/self/exe", os.O_RDONLY)
print(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & seal.SEALS == seal.SEALS)
try:
    os.open("/proc/self/exe", os.O_WRONLY); print("WRITABLE")
except OSError as error:
    print("EPERM" if error.errno in (errno.EPERM, errno.ETXTBSY, errno.EACCES) else error)
print([line for line in open("/proc/self/maps") if line.split()[5:] == [os.path.realpath(sys.executable)]])
sys.stdout.flush()
pid = os.fork()
if not pid:
    print(os.readlink("/proc/self/exe"), flush=True); os._exit(0)
os.waitpid(pid, 0)
import json, re, subprocess
print(json.dumps([1]), re.sub("a", "b", "a"), subprocess.check_output(["echo", "fine"]))
"""


def _run(program: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-ISB", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_process_is_at_the_copy_and_works_on() -> None:
    told = _run(f"{_TRY}else:\n{indent(_TELL, ' ' * 4)}")
    if told[0].startswith("not here"):
        pytest.skip("no right to, or a static build")
    name = "/memfd:copy (deleted)"
    assert told == [name, "True", "EPERM", "[]", name, "[1] b b'fine\\n'"]


def test_where_it_cannot_be_nothing_has_changed() -> None:
    """A copy that cannot be mapped, say; what is not there, or may not be done, is the same."""
    program = _TRY.replace('seal.sealed_copy("/proc/self/exe", "copy")', 'open("/dev/null", "rb")')
    program += "import json; print(json.dumps([1]), os.readlink('/proc/self/exe') == os.path.realpath(sys.executable))"
    told = _run(program)
    assert told[0].startswith("not here")
    assert told[1] == "[1] True"
