"""Container logs: how long a hundred thousand lines take from their container into the file that the kubelet reads.

Manor's shim writes the file itself (`cri-log://`). With its own shim containerd does, from a fifo. What is timed stands
in the log: from the time of the first line to that of the last, which both writers take when they read it.
"""

from __future__ import annotations

import json
import shutil
import time
from datetime import datetime
from pathlib import Path

from benchmarks.stage import Side
from cri.api import api_pb2 as api
from cri.client import container_config
from tests.harness.registry import BUSYBOX

LINES = 100_000
TEXT = "x" * 99
SCRIPT = f"yes {TEXT} | head -n {LINES} > /lines; echo BEGIN; cat /lines; echo END"
COMMAND = ["sh", "-c", SCRIPT]
LIMIT_S = 120


def log_lines(side: Side, count: int) -> list[float]:
    """In ms, `count` times."""
    one = _by_the_shim if side.name == "manor" else _by_containerd
    return [one(side) for _ in range(count)]


def _by_the_shim(side: Side) -> float:
    identity = side.fresh("logged")
    bundle, mounts = side.bundle(identity)
    configuration = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    configuration["process"]["args"] = COMMAND
    (bundle / "config.json").write_text(json.dumps(configuration), encoding="utf-8")
    log = bundle.parent / f"{identity}.log"
    uri = f"cri-log://{log}"
    side.door.create(identity, bundle, mounts, stdout=uri, stderr=uri)
    side.door.start(identity)
    taken = _read(log)
    side.door.wait(identity)
    side.door.delete(identity)
    shutil.rmtree(bundle)
    log.unlink()
    return taken


def _by_containerd(side: Side) -> float:
    pod = side.stage.pods[side.pod]
    name = side.fresh("logged")
    container = container_config(name, BUSYBOX, COMMAND, log_path=f"{name}.log")
    container.linux.security_context.namespace_options.pid = api.NamespaceMode.Value("CONTAINER")
    identity = side.stage.cri.create(side.pod, container, pod)
    side.stage.cri.start(identity)
    log = Path(pod.log_directory) / f"{name}.log"
    taken = _read(log)
    side.stage.cri.runtime.RemoveContainer(api.RemoveContainerRequest(container_id=identity))
    log.unlink(missing_ok=True)
    return taken


def _read(log: Path) -> float:
    """Wait for the last line, see that all are there, and tell how long they took, in ms."""
    deadline = time.monotonic() + LIMIT_S
    while not (log.exists() and _ends_with(log, b" END\n")):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{log}: its last line does not come")
        time.sleep(0.05)
    lines = log.read_text(encoding="ascii").splitlines()
    texts = [line.split(" ", 3)[3] for line in lines]
    if texts != ["BEGIN", *[TEXT] * LINES, "END"]:
        raise RuntimeError(f"{log}: {len(lines)} lines, or other ones than were said")
    first, last = (datetime.fromisoformat(line.split(" ", 1)[0]) for line in (lines[0], lines[-1]))
    return (last - first).total_seconds() * 1000


def _ends_with(path: Path, text: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(text)))
        return file.read() == text
