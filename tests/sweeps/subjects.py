"""Containers that say numbered lines and end with a code that is known before; and what became of that."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from cri.api import api_pb2 as api
from cri.client import container_config
from tests.harness import instances
from tests.harness.registry import BUSYBOX
from tests.harness.waiting import eventually
from tests.sweeps.world import LIMIT_S, Disturbed, World

ENTRY = re.compile(rb"\S+ stdout ([PF]) ([^\n]*)")
LINE = re.compile(rb"line (\d+) x+")
LINE_BYTES = 99
DRAIN_S = 30.0
LOST_S = 1.0  # for lines that nobody will bring any more


@dataclass
class Subject:
    """One container. `sink`: its log is written by the shim's own writer (`cri-log://`), else by containerd."""

    id: str
    pod: str
    code: int
    log: Path
    count: Path
    sink: bool = False
    pid: int = 0
    start_time: int = 0
    epoch: int = 0  # when it was created: containerd has not been killed since if it is the same
    more: dict[str, str] = field(default_factory=dict)

    def said(self) -> int:
        """How many lines it has written, whole."""
        try:
            return int(self.count.read_text() or 0)
        except FileNotFoundError:
            return 0

    def wait_until_it_speaks(self) -> None:
        """From its first line on it ends with its code when it is told to."""
        eventually(self.said, f"{self.id} does not begin", LIMIT_S)

    def identify(self, pid: int) -> None:
        """Its init, from now on."""
        self.pid = pid
        found = instances.process(pid)
        self.start_time = found.start_time if found is not None else 0


def told(code: int, count: Path, lifetime_ms: int, interval_ms: int) -> list[str]:
    """The command of a container that says lines."""
    return ["/sweep/teller", str(code), str(lifetime_ms), str(interval_ms), f"/sweep/{count.name}"]


def create(
    world: World,
    pod: str,
    message: api.PodSandboxConfig,
    code: int,
    lifetime_ms: int = 0,
    interval_ms: int = 20,
    command: list[str] | None = None,
    memory_bytes: int = 0,
) -> Subject:
    """A container through the CRI, created and not started. CriError."""
    name = world.fresh("c")
    count = world.shared / name
    words = command or told(code, count, lifetime_ms, interval_ms)
    config = container_config(name, BUSYBOX, words, log_path=f"{name}.log")
    config.mounts.append(api.Mount(container_path="/sweep", host_path=str(world.shared)))
    modes = message.linux.security_context.namespace_options
    config.linux.security_context.namespace_options.CopyFrom(modes)
    config.linux.resources.memory_limit_in_bytes = memory_bytes
    epoch = world.epoch
    found = world.cri.create(pod, config, message)
    return Subject(found, pod, code, Path(message.log_directory) / f"{name}.log", count, epoch=epoch)


def start(world: World, subject: Subject) -> Subject:
    """Start it. CriError."""
    world.cri.start(subject.id)
    world.report.count("containers")
    return subject


def task(
    world: World, handler: str, code: int, group: str = "", lifetime_ms: int = 0, may_fail: bool = False
) -> Subject:
    """A container by `ctr run`, whose log its shim sees to; of the pod `group`, or of one of its own. Disturbed.

    That it fails is wrong, unless it `may_fail` or containerd was killed.
    """
    name = world.fresh("t")
    count, log = world.shared / name, world.directory / f"{name}.log"
    scheme = "file" if handler == "runc" else "cri-log"
    words = ["run", "-d", "--runtime", world.runtime_type(handler), "--log-uri", f"{scheme}://{log}"]
    words += ["--cgroup", f"{world.node.instance.cgroup_parent}/{name}"]
    words += ["--mount", f"type=bind,src={world.shared},dst=/sweep,options=rbind:rw"]
    if group:
        words += ["--annotation", f"io.kubernetes.cri.sandbox-id={group}"]
    epoch = world.epoch
    done = world.ctr(*words, BUSYBOX, name, *told(code, count, lifetime_ms, 20))
    if done.returncode != 0:
        if epoch % 2 == 0 and world.epoch == epoch and not may_fail:
            world.report.is_wrong(f"run task {name}: {done.stderr}")
        raise Disturbed(done.stderr)
    world.report.count("containers")
    return Subject(name, group or name, code, log, count, sink=True, epoch=epoch)


def remove_task(world: World, subject: Subject) -> int | None:
    """Delete a task that has ended, and its container; with which code it ended, None if there was no task."""
    done = world.ctr("tasks", "rm", subject.id)
    world.ctr("containers", "rm", subject.id)
    if "not found" in done.stderr:
        return None
    found = re.search(r"non-zero exit code (\d+)", done.stderr)
    return int(found[1]) if found else done.returncode


# --- its log -------------------------------------------------------------------------------------------


def numbers_in(path: Path, plain: bool = False) -> tuple[list[int], int]:
    """The numbers of the lines of a log, in order, and how many are no line of ours."""
    found, torn, text = [], 0, b""
    data = path.read_bytes() if path.exists() else b""
    for line in data.split(b"\n")[:-1]:
        entry = None if plain else ENTRY.fullmatch(line)
        text += line if plain else entry[2] if entry is not None else b""
        if entry is not None and entry[1] == b"P":
            continue
        whole = LINE.fullmatch(text)
        if whole is None or len(text) != LINE_BYTES:
            torn += 1
        else:
            found.append(int(whole[1]))
        text = b""
    return found, torn


def check_log(world: World, subject: Subject, killed_shim: bool = False) -> None:
    """Once the container has ended: every line, once, in order.

    What containerd's own logger had in its hands when it was killed is lost, and noted; so is what was still on its
    way to that logger's fifo when a shim was killed. A sink loses nothing.
    """
    plain = subject.more.get("scheme") == "file"
    excused = not subject.sink and (killed_shim or world.epoch != subject.epoch)
    deadline = time.monotonic() + (LOST_S if excused else DRAIN_S)
    while True:
        numbers, torn = numbers_in(subject.log, plain)
        said = subject.said()
        missing = sorted(set(range(1, said + 1)) - set(numbers))
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    report = world.report
    report.count("lines", said)
    where = f"log of {subject.id}"
    if numbers != sorted(set(numbers)) or (numbers and numbers[-1] > said + 1):
        report.is_wrong(f"{where}: lines twice, out of order or never said, {len(numbers)} of {said}")
    if excused and (missing or torn):
        report.note("lines lost on the way to containerd's logger", len(missing))
        report.note("lines torn by containerd's logger", torn)
        report.note("logs with a line lost or torn by containerd's logger")
        if killed_shim and missing != list(range(missing[0], said + 1)) and missing:
            report.is_wrong(f"{where}: lines {missing[:5]} are missing, and later ones are there")
    elif missing or torn:
        report.is_wrong(f"{where}: {len(missing)} of {said} lines missing ({missing[:5]} …), {torn} torn")
