"""Debian's podman and conmon on a machine of their own, with Manor and with runc as `--runtime`.

The machine is a PID and a mount namespace. Its first process reaps orphans at once, which podman waits for; what
podman and the runtimes write to /run, /etc, /var/lib and their storage is in memory and ends with it. Of the host
it uses the kernel and cgroups below a parent of its own. The image is made here: no registry, no network.
"""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import images, instances, tools
from tests.harness.commands import in_files
from tests.harness.instances import Instance
from tests.harness.paths import VENV

MANOR, RUNC = "manor-oci", "runc"
IMAGE = "localhost/busybox"
GRACE_S = 30.0
HOME = "/mnt"  # of podman and its storage, inside
FIRST = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
os.write(1, b"up\\n")
while True:
    signal.sigwaitinfo({signal.SIGCHLD})
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""
SET_UP = f"""set -e
mount -t tmpfs tmpfs {HOME}
mount -t tmpfs tmpfs /run
for name in etc var/lib; do
    layer={HOME}/layers/$name
    mkdir -p $layer/upper $layer/work
    mount -t overlay -o lowerdir=/$name,upperdir=$layer/upper,workdir=$layer/work overlay /$name
done
mkdir -p /etc/containers
"""
CONTAINERS_CONF = """\
[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
conmon_path = ["{conmon}"]
runtime_supports_json = ["manor-oci", "runc"]
[engine.runtimes]
manor-oci = ["{manor}"]
runc = ["{runc}"]
[network]
network_backend = "cni"
"""
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'  # on signatures, which our image has none of


@dataclass
class Done:
    """What a command left: its exit code and what it wrote."""

    code: int
    stdout: str
    stderr: str


class Machine:
    """The namespaces, and what containers have left in them."""

    def __init__(self, instance: Instance) -> None:
        self.cgroup_parent = instance.cgroup_parent
        self._environment = instance.environment()
        self._unshare = subprocess.Popen(
            [
                "unshare",
                "--pid",
                "--mount",
                "--mount-proc",
                "--fork",
                "--kill-child",
                sys.executable,
                "-Ssc",
                FIRST,
            ],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._unshare.stdout is not None
        assert self._unshare.stdout.readline() == b"up\n"
        children = f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children"
        self.pid = int(Path(children).read_text())
        self._pids = os.readlink(f"/proc/{self.pid}/ns/pid")
        subprocess.run(self.words("sh", "-c", SET_UP), check=True, stdin=subprocess.DEVNULL)
        conf = CONTAINERS_CONF.format(
            conmon=tools.debian_program("conmon"),
            manor=VENV / "bin" / MANOR,
            runc=tools.program(tools.RUNC_1, RUNC),
        )
        self.path("/etc/containers/containers.conf").write_text(conf)
        self.path("/etc/containers/policy.json").write_text(POLICY)

    def path(self, inside: str) -> Path:
        """Our path to one of the machine's."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def words(self, *words: str) -> list[str]:
        """A command line that runs `words` there."""
        return ["nsenter", "--target", str(self.pid), "--pid", "--mount", "--wd=/", *words]

    def environment(self) -> dict[str, str]:
        return {**self._environment, "HOME": HOME, "TMPDIR": HOME, "TERM": "xterm"}

    def inventory(self) -> set[str]:
        """Everything that a container could leave behind."""
        lines = self.path("/proc/1/mountinfo").read_text().splitlines()
        found = {f"mount {line.split()[4]}" for line in lines} | set(self._processes())
        found.discard(
            f"mount {HOME}/storage/overlay"
        )  # podman's own: the storage driver's for as long as it works
        for top in instances.hierarchies():
            for below in (top / self.cgroup_parent[1:]).glob("libpod-*"):
                found.add(f"cgroup {below}")
        for runtime in (MANOR, RUNC):
            for directory in self.path(f"/run/{runtime}").glob("[!@.]*"):
                found.add(f"state {directory.name} of {runtime}")
        return found

    def _processes(self) -> Iterator[str]:
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and os.readlink(entry / "ns/pid") == self._pids:
                    yield f"process {entry.name} {(entry / 'comm').read_text().strip()}"
            except OSError:
                continue  # ended meanwhile

    def close(self) -> None:
        """End everything there."""
        self._unshare.kill()
        self._unshare.communicate()


class Podman:
    """podman with one `--runtime`."""

    def __init__(self, machine: Machine, runtime: str) -> None:
        self.machine = machine
        self.runtime = runtime

    def words(self, *arguments: str) -> list[str]:
        """A whole command line."""
        own = [f"--root={HOME}/storage", f"--runroot={HOME}/run", f"--tmpdir={HOME}/tmp"]
        own += ["--storage-driver=overlay", "--cgroup-manager=cgroupfs", f"--runtime={self.runtime}"]
        return self.machine.words(str(tools.debian_program("podman")), *own, *arguments)

    def __call__(self, *arguments: str, timeout_s: float = 60) -> Done:
        """Run a command to its end; its output goes to files, as what it leaves running keeps them open."""
        words, environment = self.words(*arguments), self.machine.environment()
        return Done(*in_files(words, limit_s=timeout_s, env=environment))

    def ok(self, *arguments: str) -> str:
        """What it printed, if it succeeded."""
        done = self(*arguments)
        assert done.code == 0, f"podman {arguments} on {self.runtime}: exit code {done.code}: {done.stderr}"
        return done.stdout

    def run(self, *arguments: str) -> Done:
        """`podman run`: options, image, program."""
        return self(*self.run_words(*arguments))

    def run_words(self, *arguments: str) -> list[str]:
        return ["run", *self.options(), *arguments]

    def options(self) -> list[str]:
        """What every container gets: --ulimit=host, as the harness may have less than podman's own limits."""
        return ["--ulimit=host", "--network=none", f"--cgroup-parent={self.machine.cgroup_parent}"]

    def started(self, *options: str, program: tuple[str, ...] = ("sleep", "1000")) -> str:
        """The id of a container that runs in the background."""
        done = self.run("--detach", *options, IMAGE, *program)
        assert done.code == 0, done.stderr
        return done.stdout.strip()

    def status(self, name: str) -> str:
        return self.ok("inspect", "--format={{.State.Status}}", name).strip()

    def memory_limit(self, container: str) -> int:
        """In bytes, by the container's cgroup."""
        names = ("memory/{}/memory.limit_in_bytes", "{}/memory.max")
        below = f"{self.machine.cgroup_parent[1:]}/libpod-{container}"
        found = [instances.CGROUP_ROOT / name.format(below) for name in names]
        return int(next(path for path in found if path.exists()).read_text())

    def on_terminal(self, *arguments: str, rows: int, columns: int) -> tuple[int, str]:
        """Run a command with a terminal for its streams: its exit code and what was on the screen."""
        near, far = pty.openpty()
        try:
            fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
            running = subprocess.Popen(
                self.words(*arguments),
                stdin=far,
                stdout=far,
                stderr=far,
                env=self.machine.environment(),
                start_new_session=True,
            )
            os.close(far)
            seen = b""
            try:
                while data := os.read(near, 65536):
                    seen += data
            except OSError:
                pass  # EIO: nobody has the other side open any more
            return running.wait(30), seen.decode()
        finally:
            os.close(near)


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """The machine, with an image."""
    instance = Instance.create()
    made = Machine(instance)
    try:
        made.path(f"{HOME}/busybox.tar").write_bytes(images.busybox_layer())
        podman = Podman(made, RUNC)
        podman.ok("import", f"{HOME}/busybox.tar", IMAGE)
        yield made
    finally:
        made.close()
        instance.destroy()


@pytest.fixture(params=[MANOR, RUNC])
def podman(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Podman]:
    """podman on the runtime under test; afterwards there is no more than before."""
    before = machine.inventory()
    made = Podman(machine, request.param)
    yield made
    made.ok("rm", "--all", "--force", "--time=0")
    deadline = time.monotonic() + GRACE_S
    while (left := machine.inventory() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"left behind: {sorted(left)}"
