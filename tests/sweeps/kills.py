"""The three sweeps: each kills so many times, and checks after each what must hold."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import partial

from cri.api import api_pb2 as api
from tests.harness.waiting import eventually
from tests.sweeps import subjects
from tests.sweeps.load import LISTS_LIMIT_S, Steady, end_task, execute, wait_for_exit, wait_for_lists
from tests.sweeps.marks import Underway, children, wait_for_child, wait_for_warden, warden_of
from tests.sweeps.shims import ShimSweep
from tests.sweeps.subjects import Subject
from tests.sweeps.sweep import Sweep
from tests.sweeps.world import Disturbed, lives

# --- containerd ----------------------------------------------------------------------------------------


class ContainerdSweep(Sweep):
    """containerd dies: containers go on, and those that end meanwhile have the right code and every line."""

    name = "containerd"

    def run(self, kills: int) -> None:
        """All of it."""
        self._load.start()
        try:
            for number in self._world.rounds(kills):
                self._world.report.round = f"containerd {number}"
                try:
                    self._round()
                except Disturbed:
                    pass
                except Exception as error:
                    self._world.report.is_wrong(f"round: {error!r}")
                    if self._world.epoch % 2:
                        self._world.start_containerd()
        finally:
            self._load.stop()
        self._tidy()

    def _round(self) -> None:
        if not self._world.whole_pods:
            self._kill_once()
            return
        self._load.hold()
        try:
            self._kill_once()
        finally:
            self._load.go_on()

    def _kill_once(self) -> None:
        world, chance = self._world, self._chance
        with world.sure("containers that will end"):
            batch = [each for home in self._steady for each in self._batch(home)]
        tasks = [each for each in batch if each.sink]
        for each in batch:
            each.wait_until_it_speaks()
        time.sleep(chance.uniform(0, 0.8))
        by_hand = [each for each in batch if chance.random() < 0.4]
        world.kill_containerd()
        world.report.count("kills of containerd")
        time.sleep(chance.uniform(0, 0.4))
        for each in by_hand:
            if lives(each.pid, each.start_time):
                os.kill(each.pid, signal.SIGTERM)
        time.sleep(chance.uniform(0, 0.6))
        for home in self._steady:
            home.check()
        taken = self._taken(batch)
        world.report.time("containerd answers", world.start_containerd())
        since = time.monotonic()
        wait_for_lists(world, lambda: self._wrong_with(batch), since, "lists after containerd's start")
        for each in batch:
            if each not in tasks:
                wait_for_exit(world, each, forgotten=each.id in taken)
                subjects.check_log(world, each)
                world.cri.remove(each.id)
        for each in tasks:
            end_task(world, each, kill=False)
        for home in self._steady:
            home.check()
            execute(world, home.tellers[0].id, chance.randrange(256))
        world.remove_pods_of_nobody()

    def _batch(self, home: Steady) -> list[Subject]:
        """Containers that will end before, while and after containerd is dead."""
        world, chance = self._world, self._chance
        made = []
        for _ in range(3):
            lifetime = chance.randrange(200, 3500)
            each = subjects.create(world, home.pod, home.message, chance.randrange(256), lifetime, 5)
            made.append(subjects.start(world, each))
            each.identify(world.init_of(each.id))
        one = subjects.task(
            world, home.handler, chance.randrange(256), lifetime_ms=chance.randrange(500, 4000)
        )
        one.identify(world.tasks()[one.id][0])
        one.more |= home.tasks[0].more
        return [*made, one]

    def _taken(self, batch: list[Subject]) -> set[str]:
        """Those whose exit a containerd that is dead now had taken from their shim: if it has not written that down,
        nobody knows it any more.
        """
        world = self._world
        ended = [each for each in batch if not each.sink and not lives(each.pid, each.start_time)]
        taken = {each.id for each in ended if not world.known_to_shim(each.pod, each.id)}
        world.report.count(
            "containers that ended while containerd was dead, or shortly before", len(ended) - len(taken)
        )
        return taken

    def _wrong_with(self, batch: list[Subject]) -> str:
        """What the lists have that is not so."""
        world = self._world
        listed = {each.id: each.state for each in world.cri.containers()}
        tasks = world.tasks()
        everything = [*batch, *(each for home in self._steady for each in home.everything())]
        for each in everything:
            alive = lives(each.pid, each.start_time)
            pid, status = tasks.get(each.id, (0, ""))
            if alive and (pid != each.pid or status not in ("RUNNING", "PAUSED")):
                return (
                    f"{each.id} runs, but as a task it is {status or 'not there'}, pid {pid} for {each.pid}"
                )
            if not alive and status == "RUNNING":
                return f"{each.id} has ended, but as a task it is {status}"
            wanted = api.CONTAINER_RUNNING if alive else api.CONTAINER_EXITED
            if status == "PAUSED":
                wanted = api.CONTAINER_UNKNOWN  # what a containerd that starts calls one that is paused
            if not each.sink and listed.get(each.id) != wanted:
                return f"{each.id} {'runs' if alive else 'has ended'}, but the CRI has {listed.get(each.id)}"
        return ""

    def _tidy(self) -> None:
        deadline = time.monotonic() + LISTS_LIMIT_S
        while (text := self._world.remove_pods_of_nobody()) and time.monotonic() < deadline:
            time.sleep(0.5)
        self._world.report.check("clean-up", not text, f"pods that were cut off can't be removed: {text}")


# --- the warden ----------------------------------------------------------------------------------------


class WardenSweep(Sweep):
    """The warden dies: nobody notices, and every pod that is being started comes up."""

    name = "warden"
    marks = ("random", "fork", "launcher", "starting")

    def run(self, kills: int) -> None:
        """All of it."""
        self._load.start()
        try:
            for number in self._world.rounds(kills):
                mark = self.marks[number % len(self.marks)]
                self._world.report.round = f"warden {number} ({mark})"
                try:
                    self._round(mark)
                except Exception as error:
                    self._world.report.is_wrong(f"round: {error!r}")
        finally:
            self._load.stop()

    def _round(self, mark: str) -> None:
        world, chance = self._world, self._chance
        names = [world.fresh("pod") for _ in range(2)]
        world.living.update(names)
        messages = [world.pod_message(name) for name in names]
        warden = warden_of(world.node.run_dir)
        starts = [
            Underway(partial(world.cri.run_pod, message, chance.choice(world.handlers)))
            for message in messages
        ]
        if chosen := self._choose(mark, warden, starts[0]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(chosen, signal.SIGKILL)
                world.report.count(f"kills of the warden ({mark})")
        for home in self._steady:
            home.check()
            execute(world, home.tellers[0].id, chance.randrange(256))
        for each, message in zip(starts, messages, strict=True):
            each.join()
            world.report.check(
                "pods started while the warden was killed", each.error is None, f"run pod: {each.error}"
            )
            if each.error is None:
                self._use(each.result, message)
        world.living.difference_update(names)

    def _choose(self, mark: str, warden: int, call: Underway) -> int:
        """Whom to kill, when the moment has come; 0 for nobody."""
        node = self._world.node
        if mark == "random":
            time.sleep(self._chance.uniform(0, 0.1))
        elif mark == "launcher":
            wait_for_child(node.process.pid, [], call, b"containerd-shim-manor-v2")
        elif mark == "fork" and warden:
            wait_for_child(warden, children(warden), call)
        elif mark == "starting":
            if warden:
                os.kill(warden, signal.SIGKILL)
                self._world.report.count("kills of the warden (so that another starts)")
                eventually(lambda: warden_of(node.run_dir) != warden)
            # Whoever brings up the next one may be of the load: there is always somebody.
            return wait_for_warden(node.run_dir, Underway(lambda: time.sleep(2)))
        return warden

    def _use(self, pod: str, message: api.PodSandboxConfig) -> None:
        world = self._world
        code = self._chance.randrange(256)
        each = subjects.start(world, subjects.create(world, pod, message, code, 100, 10))
        wait_for_exit(world, each)
        subjects.check_log(world, each)
        world.cri.stop_pod(pod)
        world.cri.remove_pod(pod)


SWEEPS = {each.name: each for each in (ContainerdSweep, WardenSweep, ShimSweep)}
