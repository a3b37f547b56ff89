"""The init of a test run: it adopts and reaps, and ends as its command does."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.harness.paths import CHECKOUT

# Makes an orphan, waits until nothing is left of it, and says who its parent was and who ours is.
_ORPHAN = """
import os, time
read, write = os.pipe()
middle = os.fork()
if middle == 0:
    middle = os.getpid()
    if os.fork() == 0:
        while os.getppid() == middle: time.sleep(0.01)
        os.write(write, f"{os.getpid()} {os.getppid()}".encode())
        os._exit(0)
    os._exit(0)
os.waitpid(middle, 0)
orphan, parent = os.read(read, 100).split()
deadline = time.monotonic() + 60
while os.path.exists(f"/proc/{int(orphan)}"):
    assert time.monotonic() < deadline
    time.sleep(0.01)
print(int(parent) == os.getppid())
"""


def _under_init(program: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tests.harness.init", sys.executable, "-c", program]
    return subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)


def test_who_loses_its_parent_is_adopted_and_reaped() -> None:
    assert _under_init(_ORPHAN).stdout == "True\n"


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", 128 + signal.SIGKILL),
    ],
)
def test_it_ends_as_its_command_does(program: str, code: int) -> None:
    assert _under_init(program).returncode == code
