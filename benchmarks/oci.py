"""The commands themselves, each a process of its own: `manor-oci` beside runc and crun, where it is installed.

What is timed is the whole command, from its start until it has ended, as a shell or containerd's own shim for runc
has to wait for it. Nothing of Manor stays between two of them: every one is a cold start.

crun refuses a hybrid machine, and Debian's also configs of a newer specification: where it takes part, all of them
run where the v2 hierarchy is not mounted, and on a config that it takes.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Row
from benchmarks.works import timed
from runtime.cgroups.layout import HYBRID, detect_layout
from runtime.linux import mount
from runtime.linux.constants import CLONE_NEWNS
from runtime.linux.process import setns, unshare
from tests.harness import instances, tools, venv
from tests.harness.bundles import Bundle
from tests.harness.paths import VENV

PARENT = "manor-bench-oci"  # of the cgroups made here
PAYLOAD = ["true"]
CRUN = "crun"
OCI_VERSION = "1.0.2"  # crun 1.8 knows no version after 1.1


@dataclass(frozen=True)
class Command:
    """One runtime's program, with a root directory and a bundle of its own, and a container that sleeps in it."""

    name: str
    program: Path
    directory: Path

    @property
    def sleeper(self) -> str:
        """The id of the container for execs."""
        return f"{self.name}-sleeper"

    def __call__(self, *arguments: str, bundle: str = "payload") -> None:
        """Run the command to its end. RuntimeError with what it said when it fails."""
        with tempfile.TemporaryFile() as said:  # no pipe: what is left running would keep it open
            done = subprocess.run(
                [self.program, "--root", self.directory / "state", *arguments],
                cwd=self.directory / bundle,
                env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                check=False,
            )
            if done.returncode != 0:
                said.seek(0)
                raise RuntimeError(f"{self.name}: {said.read().decode(errors='replace').strip()[-200:]}")

    def prepare(self) -> None:
        """Make the bundles, and start what execs go to."""
        for name, args in (("payload", PAYLOAD), ("sleeper", ["sleep", "100000"])):
            (self.directory / name).mkdir(parents=True)
            bundle = Bundle(self.directory / name, args, f"/{PARENT}/{os.getpid()}-{self.name}-{name}")
            bundle.config["ociVersion"] = OCI_VERSION
            bundle.write()
        self("run", "--detach", self.sleeper, bundle="sleeper")

    def close(self) -> None:
        """End it."""
        self("delete", "--force", self.sleeper)


def run_once(command: Command, count: int) -> list[float]:
    """`run`: a container made, started, waited for and deleted."""
    return [timed(lambda: command("run", f"{command.name}-run")) for _ in range(count)]


def exec_once(command: Command, count: int) -> list[float]:
    """`exec` in a container that runs."""
    return [timed(lambda: command("exec", command.sleeper, *PAYLOAD)) for _ in range(count)]


WORKS: dict[str, Callable[[Command, int], list[float]]] = {"run.oci": run_once, "exec.oci": exec_once}


@contextmanager
def without_v2(say: Callable[[str], None]) -> Iterator[None]:
    """Be in a mount namespace of our own without the v2 hierarchy, if this machine has it beside v1."""
    layout = detect_layout()
    if layout.mode != HYBRID or layout.unified is None:
        yield
        return
    place = layout.unified.mountpoint
    say(f"{', '.join(WORKS)}: all without {place}, which crun refuses")
    directory = Path.cwd()
    with open("/proc/self/ns/mnt", "rb") as before:
        unshare(CLONE_NEWNS)
        try:
            mount.mount("", "/", None, mount.MS_REC | mount.MS_PRIVATE)
            mount.umount2(place, mount.MNT_DETACH)
            yield
        finally:
            setns(before.fileno(), CLONE_NEWNS)  # changes directory, too
            os.chdir(directory)


@contextmanager
def commands(say: Callable[[str], None]) -> Iterator[list[Command]]:
    """Every runtime that can run a container here, ready. What cannot is said."""
    venv.write_commands(VENV / "bin" / "python")
    programs = {"manor": VENV / "bin" / "manor-oci", "runc": tools.program(tools.RUNC_1, "runc")}
    if crun := shutil.which(CRUN):
        programs[CRUN] = Path(crun)
    ready: list[Command] = []
    with tempfile.TemporaryDirectory(prefix="manor-bench-") as directory:
        os.chmod(directory, 0o711)  # a container's root has to pass through
        try:
            for name, program in programs.items():
                command = Command(name, program, Path(directory) / name)
                try:
                    command.prepare()
                except RuntimeError as error:
                    say(f"left out: {error}")
                else:
                    ready.append(command)
            yield ready
        finally:
            for command in ready:
                command.close()
            for top in instances.hierarchies():
                with suppress(OSError):  # not there, or somebody else is measuring
                    (top / PARENT).rmdir()


def measure_commands(names: list[str], quick: bool, say: Callable[[str], None]) -> list[Row]:
    """The works of `names` that are here, all runtimes in turns."""
    wanted = [name for name in WORKS if name in names]
    if not wanted:
        return []
    found: list[Row] = []
    with without_v2(say) if shutil.which(CRUN) else nullcontext(), commands(say) as ready:
        for name in wanted:
            blocks = {command.name: functools.partial(WORKS[name], command) for command in ready}
            for block in blocks.values():
                block(2)
            found += measure.rows(name, "ms", measure.in_turns(blocks, 3 if quick else 10, 5))
            say(name)
    return found
