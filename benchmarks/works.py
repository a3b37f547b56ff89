"""The works: how one sample of each is taken, in ms and lower is better. Setting up and tidying is not timed.

What is timed is named in each function; everything goes through a door that a caller would use: the shim's ttrpc
socket, the CRI, crictl, or the shim's command line. Logs are `logs`'.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from benchmarks.logs import log_lines
from benchmarks.processes import cpu_ms, pss_mb
from benchmarks.stage import PAYLOAD, Side
from shim.api.bootstrap import BootstrapParams, BootstrapResult
from shim.api.codec import CodecError, decode, encode
from tests.harness.task import TaskClient

PACE_S = 0.1
CLIENTS = 16
CHURN_CLIENTS = 4
SIGKILL = 9


@dataclass(frozen=True)
class Work:
    """A work: how a block of samples is taken, and how many rounds and samples are worth while."""

    name: str
    unit: str
    block: Callable[[Side, int], list[float]]
    rounds: int
    per_round: int


def timed(action: Callable[[], object]) -> float:
    """How long an action takes, in ms."""
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1000


# ---- exec ----


def exec_once(side: Side, door: TaskClient, container: str = "") -> float:
    """From asking for the exec until its end is seen: Exec, Wait begun, Start, Wait answered."""
    container = container or side.container
    exec_id = side.fresh("exec")

    def run() -> None:
        door.add_exec(container, exec_id, side.process)
        waiting = door.begin_wait(container, exec_id)
        door.start(container, exec_id)
        if (code := door.finish_wait(waiting)) != 0:
            raise RuntimeError(f"{side.name}: exec ended with {code}")

    taken = timed(run)
    door.delete(container, exec_id)
    return taken


def exec_shim(side: Side, count: int, container: str = "") -> list[float]:
    """Execs back to back by one client."""
    return [exec_once(side, side.door, container) for _ in range(count)]


def exec_and_delete(side: Side, container: str, count: int) -> list[float]:
    """The same with what comes after the exit, until the exec is deleted; one sample, by the number of execs."""
    return [timed(lambda: exec_shim(side, count, container)) / count]


def exec_paced(side: Side, count: int) -> list[float]:
    """Execs ten a second, as probes come: nothing is warm that a quiet node would have let cool."""
    samples = []
    for _ in range(count):
        begin = time.perf_counter()
        samples.append(exec_once(side, side.door))
        time.sleep(max(0.0, PACE_S - (time.perf_counter() - begin)))
    return samples


def exec_by_many(side: Side, count: int) -> list[float]:
    """Sixteen clients at once, `count` execs each; one sample: the time of the whole by the number of execs."""
    samples: list[float] = []
    taken = timed(lambda: samples.extend(_exec_at_once(side, CLIENTS, count)))
    return [taken / len(samples)]


def exec_by_8(side: Side, count: int) -> list[float]:
    """What each of eight clients at once waits for an exec."""
    return _exec_at_once(side, 8, count)


def exec_by_64(side: Side, count: int) -> list[float]:
    """What each of sixty-four clients at once waits for an exec."""
    return _exec_at_once(side, 64, count)


def _exec_at_once(side: Side, clients: int, count: int) -> list[float]:
    """How long each of `count` execs of every client took, in ms."""
    address = side.stage.node.shim_address(side.pod)

    def client() -> list[float]:
        with closing(TaskClient(*address)) as door:
            return [exec_once(side, door) for _ in range(count)]

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client) for _ in range(clients)]
    return [sample for each in running for sample in each.result()]


def exec_crictl(side: Side, count: int) -> list[float]:
    """`crictl exec -s`: the whole command, crictl's own start included."""
    return [
        timed(lambda: side.stage.crictl.execute(side.container, PAYLOAD, sync=True)) for _ in range(count)
    ]


def exec_cpu(side: Side, count: int) -> list[float]:
    """CPU time that an exec costs: shim, runtime and the command, and of Manor also warden and scribe."""
    pids = [*side.shim_pids([side.pod]), *side.staying()]
    before = cpu_ms(pids)
    exec_shim(side, count)
    return [(cpu_ms(pids) - before) / count]


# ---- containers, shims, pods ----


def create_start(side: Side, count: int) -> list[float]:
    """Task Create (the overlay of its root mounted by the shim) and Start of one more container in the pod."""
    samples = []
    for _ in range(count):
        identity = side.fresh("made")
        bundle, mounts = side.bundle(identity)

        begin = time.perf_counter()
        side.door.create(identity, bundle, mounts)
        side.door.start(identity)
        samples.append((time.perf_counter() - begin) * 1000)
        waiting = side.door.begin_wait(identity)
        side.door.kill(identity, SIGKILL)
        side.door.finish_wait(waiting)
        side.door.delete(identity)
        shutil.rmtree(bundle)
    return samples


def launcher(side: Side, count: int) -> list[float]:
    """`containerd-shim-… start`, from its start until its address can be read and it has closed its output."""
    samples = []
    for _ in range(count):
        identity = side.fresh("shim")
        bundle, _ = side.bundle(identity)
        begin = time.perf_counter()
        answer = _start_shim(side, identity, bundle)
        samples.append((time.perf_counter() - begin) * 1000)
        _end_shim(side, identity, answer)
        shutil.rmtree(bundle)
    return samples


def _start_shim(side: Side, identity: str, bundle: Path) -> bytes:
    node = side.stage.node
    program = side.handler.runtime_path or str(node.binaries.containerd.parent / "containerd-shim-runc-v2")
    parameters = BootstrapParams(
        instance_id=identity,
        namespace="k8s.io",
        containerd_ttrpc_address=f"{node.socket}.ttrpc",
        containerd_grpc_address=str(node.socket),
        containerd_binary=str(node.binaries.containerd),
        socket_dir=str(node.instance.directory / "s"),
    )
    flags = [
        "-namespace",
        "k8s.io",
        "-address",
        str(node.socket),
        "-publish-binary",
        str(node.binaries.containerd),
    ]
    done = subprocess.run(
        [program, *flags, "-id", identity, "start"],
        input=encode(parameters),
        env={**node.environment(), "TTRPC_ADDRESS": f"{node.socket}.ttrpc", "GOMAXPROCS": "2"},
        cwd=bundle,
        capture_output=True,
        check=True,
    )
    return done.stdout


def _end_shim(side: Side, identity: str, answer: bytes) -> None:
    """Shut a shim without containers down, and wait until it is gone."""
    try:
        told = decode(BootstrapResult, answer)
        address, version = told.address, told.version
    except CodecError:
        address, version = "", 0
    if not address:
        raise RuntimeError(f"{side.name}: no address in {answer!r}")
    with TaskClient(address, version) as door:
        door.shutdown(identity)
    deadline = time.monotonic() + 5
    while side.shim_pids([identity]):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{side.name}: the shim of {identity} does not end")
        time.sleep(0.005)


def pod_start(side: Side, count: int) -> list[float]:
    """CRI RunPodSandbox, network included."""
    return _pods(side, count)[0]


def pod_stop(side: Side, count: int) -> list[float]:
    """CRI StopPodSandbox and RemovePodSandbox, network included."""
    return _pods(side, count)[1]


def pod_churn(side: Side, count: int) -> list[float]:
    """Pods that come and go, four clients at once; one sample: the time of the whole by the number of pods."""

    def client() -> None:
        for _ in range(count):
            side.remove_pod(side.run_pod())

    def run() -> None:
        with ThreadPoolExecutor(CHURN_CLIENTS) as pool:
            running = [pool.submit(client) for _ in range(CHURN_CLIENTS)]
        for each in running:
            each.result()

    return [timed(run) / (CHURN_CLIENTS * count)]


def _pods(side: Side, count: int) -> tuple[list[float], list[float]]:
    started, stopped = [], []
    for _ in range(count):
        begin = time.perf_counter()
        pod = side.run_pod()
        middle = time.perf_counter()
        side.remove_pod(pod)
        started.append((middle - begin) * 1000)
        stopped.append((time.perf_counter() - middle) * 1000)
    return started, stopped


# ---- memory ----


def memory(side: Side, sizes: list[int], settle_s: float = 2.0) -> dict[int, float]:
    """PSS in MB per pod at each number of pods, one container and three execs in each.

    The warden and the scribe serve all pods of a node: their PSS is divided among them.
    """
    pods: list[str] = []
    found = {}
    try:
        for size in sizes:
            while len(pods) < size:
                pods.append(side.run_pod())
                container = side.run_container(pods[-1])
                for _ in range(3):
                    side.stage.cri.exec_sync(container, [PAYLOAD])
            time.sleep(settle_s)
            shims = side.shim_pids(pods)
            if len(shims) != size:
                raise RuntimeError(f"{side.name}: {len(shims)} shims for {size} pods")
            found[size] = sum(pss_mb(pid) for pid in [*shims, *side.staying()]) / size
    finally:
        for pod in pods:
            side.remove_pod(pod)
    return found


WORKS = [
    Work("exec.shim", "ms", exec_shim, 10, 30),
    Work("exec.shim.paced", "ms", exec_paced, 6, 15),
    Work("exec.shim.8", "ms", exec_by_8, 6, 8),
    Work("exec.shim.16", "ms", exec_by_many, 8, 6),
    Work("exec.shim.64", "ms", exec_by_64, 4, 4),
    Work("exec.crictl", "ms", exec_crictl, 6, 10),
    Work("cpu.exec", "ms", exec_cpu, 5, 40),
    Work("create_start.shim", "ms", create_start, 8, 8),
    Work("log.lines", "ms", log_lines, 4, 3),
    Work("launcher.address", "ms", launcher, 8, 8),
    Work("pod.start", "ms", pod_start, 6, 5),
    Work("pod.stop", "ms", pod_stop, 6, 5),
    Work("churn.pods", "ms", pod_churn, 4, 3),
]
POD_COUNTS = [1, 20, 100, 200]
