"""`make test`: every part of it in order, how long each took, and one exit code.

A part that fails does not stop the next, so that one run tells everything; without an environment or tools there
is nothing to run and it ends at once. Standard library only, because it makes the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __package__ in (None, ""):  # run as a script, before there is a package path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.harness import tools, venv
from tests.harness.paths import CHECKOUT, VENV

VM = CHECKOUT / "tests" / "vm"


class Part:
    """One part of the whole: its name, how it went, and the summary lines that pytest printed in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.passed = True
        self.seconds = 0.0
        self.summaries: list[str] = []

    def command(self, *arguments: object) -> None:
        """Run a command in the checkout and pass on what it prints; a failure is remembered."""
        running = _begin(arguments)
        print(_told(arguments), flush=True)
        assert running.stdout is not None
        for raw in running.stdout:
            self._line(raw)
        if running.wait() != 0:
            self.passed = False

    def commands(self, together: list[list[object]]) -> None:
        """Run commands side by side, as many as there are CPUs; what each prints comes as one piece."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for words, (code, output) in zip(together, pool.map(_whole, together), strict=True):
                print(_told(words), flush=True)
                for raw in output.splitlines(keepends=True):
                    self._line(raw)
                if code != 0:
                    self.passed = False

    def _line(self, raw: bytes) -> None:
        line = raw.decode(errors="replace")
        print(line, end="", flush=True)
        if " in " in line and any(word in line for word in (" passed", " failed", " error")):
            self.summaries.append(line.strip("= \n"))


def _begin(words: Sequence[object]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [str(word) for word in words],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _whole(words: Sequence[object]) -> tuple[int, bytes]:
    running = _begin(words)
    output, _none = running.communicate()
    return running.returncode, output


def _told(words: Sequence[object]) -> str:
    return f"\n$ {' '.join(map(str, words))}"


def environment(_part: Part) -> None:
    """Make `.venv`."""
    venv.ensure()


def programs(_part: Part) -> None:
    """Install, unpack and build what the machine lacks."""
    tools.ensure()


def lint(part: Part) -> None:
    """Formatting, ruff's rules, types."""
    part.command(VENV / "bin" / "ruff", "format", "--check", "--quiet", ".")
    part.command(VENV / "bin" / "ruff", "check", "--quiet", ".")
    part.command(VENV / "bin" / "mypy", "--no-error-summary")


def unit(part: Part) -> None:
    """The unit tests on every interpreter of the machine."""
    interpreters = venv.unit_environments()
    part.commands([[python, "-m", "pytest", "-q", "tests/unit"] for python in interpreters])


def e2e(part: Part) -> None:
    """The end-to-end tests, which need root."""
    python = VENV / "bin" / "python"
    part.command(
        python, "-m", "tests.harness.init", python, "-m", "pytest", "-q", "tests/e2e", "--durations=15"
    )


def vm(part: Part) -> None:
    """What needs another kernel configuration than this machine's, in a virtual machine."""
    part.command(VM / "run.sh")  # unified
    part.command(VM / "systemd.sh")  # unified, booted with systemd
    part.command(VM / "systemd.sh", "-H")  # hybrid, booted with systemd


PARTS: dict[str, Callable[[Part], None]] = {
    "environment": environment,
    "tools": programs,
    "lint": lint,
    "unit": unit,
    "e2e": e2e,
    "vm": vm,
}
PREPARATION = ("environment", "tools")


def run_part(name: str) -> Part:
    """Run one part and time it."""
    part = Part(name)
    start = time.monotonic()
    try:
        PARTS[name](part)
    except tools.ToolError as error:
        print(f"{name}: {error}", file=sys.stderr)
        part.passed = False
    part.seconds = time.monotonic() - start
    return part


def main(names: list[str]) -> int:
    """Run the named parts, or all. The last lines are what pytest said in each."""
    done: list[Part] = []
    for name in names or PARTS:
        done.append(run_part(name))
        if not done[-1].passed and name in PREPARATION:
            break
    print("\n" + "-" * 40)
    for part in done:
        print(f"{part.name:<12} {'passed' if part.passed else 'FAILED'} {part.seconds:8.1f} s")
    for part in done:
        for summary in part.summaries:
            print(f"{part.name}: {summary}")
    return 0 if all(part.passed for part in done) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
