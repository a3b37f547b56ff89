"""crictl as functions: what a kubelet would ask, through the client people debug with.

Every call is one process with a time limit; a refusal is a CrictlError with what crictl printed. Pods and
containers get the instance's cgroup parent and a log directory below its own.
"""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness import tools
from tests.harness.containerd import Containerd
from tests.harness.registry import BUSYBOX
from tests.harness.waiting import eventually

TIMEOUT_S = 60
# What a kubelet asks for every container that is not privileged.
MASKED = [
    *("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
    "/sys/devices/virtual/powercap",
]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
OWN_PID_NAMESPACE = {"network": 0, "pid": 1, "ipc": 0}


@dataclass(frozen=True)
class Result:
    """What a command printed, how it ended, how long it took."""

    stdout: str
    stderr: str
    code: int
    seconds: float

    @property
    def exit_code(self) -> int:
        """How the command in the container ended; crictl itself only tells failure from success."""
        found = re.search(r"(?:exit code|exited with) (\d+)", self.stderr or self.stdout)
        return int(found[1]) if found and self.code != 0 else self.code


class CrictlError(Exception):
    """A command that failed; the text is what it printed."""

    def __init__(self, arguments: tuple[str, ...], result: Result) -> None:
        self.result = result
        super().__init__(
            f"crictl {' '.join(arguments)}: exit {result.code}\n{result.stderr or result.stdout}"
        )


class Crictl:
    """A crictl bound to one containerd."""

    def __init__(self, node: Containerd) -> None:
        self.node = node
        self._directory = node.instance.directory / "crictl"
        self._directory.mkdir(exist_ok=True)
        configuration = self._directory / "crictl.yaml"
        endpoint = f"unix://{node.socket}"
        configuration.write_text(
            f"runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\ntimeout: {TIMEOUT_S}\n",
            encoding="ascii",
        )
        self.command = [str(tools.program(tools.CRICTL_1, "crictl")), "--config", str(configuration)]
        self._serial = 0
        self._pod_files: dict[str, Path] = {}

    # ---- running it ----

    def run(self, *arguments: str, check: bool = True, stdin: bytes | None = None) -> Result:
        """Run one command. CrictlError if it fails and `check` is set."""
        start = time.monotonic()
        done = subprocess.run(
            [*self.command, *arguments],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S + 30,
            check=False,
        )
        result = Result(
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
            done.returncode,
            time.monotonic() - start,
        )
        if check and done.returncode != 0:
            raise CrictlError(arguments, result)
        return result

    def json(self, *arguments: str) -> Any:
        """Run one command with JSON output and parse it."""
        verb, *rest = arguments
        return json.loads(self.run(verb, "-o", "json", *rest).stdout)

    def on_terminal(self, *arguments: str, typed: bytes = b"", size: tuple[int, int] = (24, 80)) -> Result:
        """Run one command with a terminal of `size` (rows, columns) as its stdin, stdout and stderr, and type on it."""
        import fcntl
        import struct
        import termios

        start = time.monotonic()
        master, slave = pty.openpty()
        try:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
            client = subprocess.Popen(
                [*self.command, *arguments], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
            )
            os.close(slave)
            os.write(master, typed)
            output = _drain(master, start + TIMEOUT_S)
            code = client.wait(TIMEOUT_S)
        finally:
            os.close(master)
        return Result(output.decode(errors="replace"), "", code, time.monotonic() - start)

    # ---- pods ----

    def run_pod(self, handler: str, annotations: dict[str, str] | None = None, **linux: Any) -> str:
        """Run a pod sandbox and return its id. `linux` is merged into the sandbox's linux options, deeply."""
        path = self.pod_file(annotations, **linux)
        pod = self.run("runp", "--runtime", handler, str(path)).stdout.strip()
        self.remember(pod, path)
        return pod

    def remember(self, pod: str, path: Path) -> None:
        """Note which configuration a pod was run from: crictl wants it again for each container."""
        self._pod_files[pod] = path

    def pod_file(self, annotations: dict[str, str] | None = None, **linux: Any) -> Path:
        """Write a pod configuration with a name of its own and return its path."""
        self._serial += 1
        name = f"pod-{self._serial}"
        options: dict[str, Any] = {
            "cgroup_parent": self.node.instance.cgroup_parent,
            "security_context": {"namespace_options": OWN_PID_NAMESPACE},
        }
        options = merge(options, linux)
        host_network = options["security_context"]["namespace_options"]["network"] == 2
        configuration = {
            "metadata": {"name": name, "namespace": "manor", "uid": f"{name}-uid", "attempt": 1},
            "hostname": "" if host_network else name,
            "log_directory": str(self._directory / "logs" / name),
            "labels": {"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "manor"},
            "annotations": annotations or {},
            "linux": options,
        }
        return self._write(name, configuration)

    def _write(self, name: str, configuration: object) -> Path:
        path = self._directory / f"{name}.json"
        path.write_text(json.dumps(configuration, indent=1), encoding="utf-8")
        return path

    def stop_pod(self, pod: str) -> None:
        """Stop a pod: its containers end, its network goes."""
        self.run("stopp", pod)

    def remove_pod(self, pod: str) -> None:
        """Remove a stopped pod and its containers."""
        self.run("rmp", pod)

    # ---- containers ----

    def create(self, pod: str, command: list[str], name: str = "main", **more: object) -> str:
        """Create a busybox container in a pod and return its id. `more` is merged into its configuration, deeply."""
        path = self.container_file(pod, command, name, **more)
        return self.run("create", pod, str(path), str(self._pod_files[pod])).stdout.strip()

    def container_file(self, pod: str, command: list[str], name: str = "main", **more: object) -> Path:
        """Write a container configuration and return its path."""
        self._serial += 1
        configuration: dict[str, Any] = {
            "metadata": {"name": name, "attempt": self._serial},
            "image": {"image": BUSYBOX},
            "command": command,
            "log_path": f"{name}.log",
            "labels": {
                "io.kubernetes.pod.name": self._pod_files[pod].stem,
                "io.kubernetes.pod.namespace": "manor",
            },
            "linux": {
                "security_context": {
                    "namespace_options": OWN_PID_NAMESPACE,
                    "masked_paths": MASKED,
                    "readonly_paths": READ_ONLY,
                },
            },
        }
        configuration = merge(configuration, more)
        return self._write(f"container-{self._serial}", configuration)

    def start(self, container: str) -> None:
        """Start a created container."""
        self.run("start", container)

    def run_container(self, pod: str, command: list[str], name: str = "main", **more: object) -> str:
        """Create and start a container."""
        container = self.create(pod, command, name, **more)
        self.start(container)
        return container

    def execute(self, container: str, *command: str, sync: bool = False, check: bool = True) -> Result:
        """Run a command in a container: over a stream as `kubectl exec` does, or as a probe does (`sync`)."""
        return self.run("exec", *(["-s"] if sync else []), container, *command, check=check)

    def status(self, container: str) -> Any:
        """The CRI status of a container."""
        return self.json("inspect", container)["status"]

    def pid(self, container: str) -> int:
        """The host pid of a container's init, which runs its program if it was started.

        runc says so as soon as its own init goes on, which is a moment before that.
        """
        found = self.json("inspect", container)
        pid = int(found["info"]["pid"])
        if found["status"]["state"] == "CONTAINER_RUNNING":
            eventually(lambda: not _is_runc(pid))
        return pid

    def wait_for(self, container: str, state: str, timeout_s: float = 60) -> Any:
        """Wait until a container is in a state ("CONTAINER_EXITED" …) and return its status."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status(container)
            if status["state"] == state:
                return status
            if time.monotonic() > deadline:
                raise TimeoutError(f"container {container} is {status['state']}, not {state}")
            time.sleep(0.05)

    def clean(self) -> None:
        """Stop and remove every pod, whatever state it is in."""
        pods = self.run("pods", "-q", check=False).stdout.split()
        for pod in pods:
            self.run("stopp", pod, check=False)
            self.run("rmp", "-f", pod, check=False)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` with `changes` put over it, dictionary by dictionary."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _drain(master: int, deadline: float) -> bytes:
    """Read a terminal until its other end is gone."""
    output = b""
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 0.5)[0]:
            continue
        try:
            data = os.read(master, 65536)
        except OSError as error:
            if error.errno == errno.EIO:  # how Linux says that no process has the slave open any more
                return output
            raise
        output += data
    raise TimeoutError("the command on the terminal does not end")


def _is_runc(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0].endswith(b"runc") and words[1:2] == [b"init"]
