"""Execs by the thousand in one container, up to 64 at once: no exit code and no byte is lost, and nothing adds up.

CI does a slice; `make soak` does `MANOR_EXECS` of them, mixed by `MANOR_SEED`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from cri.client import Client
from shim.api import task
from shim.api.types import Any
from tests.e2e.conftest import Node
from tests.e2e.execs.lane import CONTAINER, LIMIT_S, Lane, Noise, size
from tests.e2e.shim.door import Door
from tests.harness import measured
from tests.harness.crictl import Crictl
from tests.harness.instances import hierarchies
from tests.harness.processes import children, memory_kb
from tests.harness.waiting import eventually

EXECS = int(os.environ.get("MANOR_EXECS", "250"))
CRI_EXECS = min(EXECS // 10, 2000)
SEED = int(os.environ.get("MANOR_SEED", "1"))
# How many at once, and what part of all execs that is for.
WIDTHS = ((1, 0.1), (8, 0.4), (64, 0.5))
# Execs after which a shim has met all that it will meet, half of them as on a machine that has no time for it, nor, for
# half of these, for what it starts. A slice has fewer, and its memory is not judged.
WARM_UP = 5000
GROWTH_KB = 256
PAUSE_S = 0.05
LITTLE_CPU_US = 10_000  # of a CPU's 100,000


def test_no_exec_loses_a_byte_or_its_exit_code_and_nothing_adds_up(door: Door) -> None:
    bundle = door.bundle(CONTAINER, ["sleep", "1000000"])
    noise = Noise(SEED, bundle.rootfs)
    door.start(CONTAINER)
    init = door.create(CONTAINER)
    door.ask("Start", task.StartRequest(CONTAINER))
    shim = door.shim_pid()
    warm_up = WARM_UP if EXECS > 2 * WARM_UP else 64
    lanes = [Lane(door, noise, f"e{number}", SEED * 1000 + number) for number in range(WIDTHS[-1][0])]
    try:
        run(lanes, warm_up // 2)
        with stopped_often(shim):
            run(lanes, warm_up // 4)
            give_cpu(door, LITTLE_CPU_US)
            run(lanes, warm_up // 4)
            give_cpu(door, -1)
        quiet(door, init, lanes)
        before = {**memory_kb(shim), "descriptors": door.shim_fds()}
        rates = {}
        for width, part in WIDTHS:
            start = time.monotonic()
            count = run(lanes[:width], int((EXECS - warm_up) * part))
            rates[str(width)] = round(count / (time.monotonic() - start), 1)
        quiet(door, init, lanes)
        after = {**memory_kb(shim), "descriptors": door.shim_fds()}
    finally:
        for lane in lanes:
            lane.close()
    told = [f"exit {lane.name}-{serial + 1}" for lane in lanes for serial in range(lane.serial)]
    measured.note(
        "many execs",
        seed=SEED,
        execs=len(told),
        wrong=len(wrong(lanes)),
        bytes=sum(lane.moved for lane in lanes),
        per_second_by_width=rates,
        after_warm_up=before,
        at_the_end=after,
    )
    counted = Counter(door.events.topics())
    assert [topic for topic in told if counted[topic] != 1] == []
    assert after["descriptors"] <= before["descriptors"]
    if warm_up == WARM_UP:
        grown = {name: after[name] - before[name] for name in after}
        assert max(grown.values()) <= GROWTH_KB, grown
    assert len(os.listdir(f"/proc/{shim}/task")) == 1
    door.end(CONTAINER)
    assert (door.cgroups(), door.mounts(), door.zombies()) == ([], [], [])


def run(lanes: list[Lane], count: int) -> int:
    """Run `count` execs, a lane each at once; how many that were."""
    share = -(-count // len(lanes))
    threads = [threading.Thread(target=lane.run, args=(share,)) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return share * len(lanes)


def wrong(lanes: list[Lane]) -> list[str]:
    """What was not as it should be, so far."""
    return [line for lane in lanes for line in lane.wrong]


def give_cpu(door: Door, quota_us: int) -> None:
    """Let the container, with all its execs, have so much of 100 ms; -1 for what it likes."""
    resources = json.dumps({"cpu": {"quota": quota_us, "period": 100_000}}).encode()
    door.ask("Update", task.UpdateTaskRequest(CONTAINER, Any("resources", resources)))


@contextmanager
def stopped_often(pid: int) -> Iterator[None]:
    """Let it have every other 50 ms: what has come by the end of the pause is there at once, as under a heavy load."""
    over = threading.Event()

    def stop_and_go() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            try:
                over.wait(PAUSE_S)
            finally:
                os.kill(pid, signal.SIGCONT)
            over.wait(PAUSE_S)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def quiet(door: Door, init: int, lanes: list[Lane]) -> None:
    """Wait until nothing is left of the execs: no process, no cgroup, no event that is still to be told."""
    assert wrong(lanes) == []
    shim = door.shim_pid()
    eventually(lambda: children(shim) == [init], LIMIT_S)
    eventually(lambda: cgroups_below(door) == [], LIMIT_S)
    wanted, seen, deadline = sum(lane.serial for lane in lanes), 0, time.monotonic() + LIMIT_S
    while (now := sum(topic == "/tasks/exit" for topic, _value in list(door.events.seen))) < wanted:
        assert now > seen or time.monotonic() < deadline, f"{now} exits of {wanted} were told"
        if now > seen:
            seen, deadline = now, time.monotonic() + LIMIT_S
        time.sleep(0.5)


def cgroups_below(door: Door) -> list[str]:
    """Cgroups within the container's, of which there are none without execs."""
    found = []
    for top in hierarchies():
        for path in (top / door.cgroup_parent / CONTAINER).rglob("*"):
            if path.is_dir():
                found.append(str(path))
    return found


@pytest.mark.versions("2.3")
def test_execs_through_the_cri_come_whole(node: Node, crictl: Crictl, container: str) -> None:
    """As a kubelet asks for them, eight at once; an answer has both streams and the exit code."""
    chance = random.Random(SEED)
    wanted = [(size(chance), size(chance), chance.randrange(256)) for _ in range(CRI_EXECS)]

    def ask(out: int, err: int, code: int) -> tuple[bytes, bytes, int]:
        script = (
            f"head -c {out} /dev/zero | tr '\\0' o; head -c {err} /dev/zero | tr '\\0' e >&2; exit {code}"
        )
        answer = cri.exec_sync(container, ["sh", "-c", script], LIMIT_S)
        return answer.stdout, answer.stderr, answer.exit_code

    with Client(f"unix://{node.containerd.socket}") as cri, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda each: ask(*each), wanted))
    lost = [
        each
        for each, answer in zip(wanted, answers, strict=True)
        if answer != (b"o" * each[0], b"e" * each[1], each[2])
    ]
    assert lost == []
