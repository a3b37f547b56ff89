"""What goes on while things are killed: threads that use the node as a kubelet does, and what must outlive it all."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cri.api import api_pb2 as api
from cri.client import CriError
from tests.harness.handlers import is_manor
from tests.sweeps import subjects
from tests.sweeps.subjects import Subject
from tests.sweeps.world import Disturbed, World, lives

OOM_BYTES = 24 << 20
EATS = ["/bin/busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "count=1"]
AT_ONCE = 8
EXIT_LIMIT_S = 60.0
# The promise is 5 s on a quiet machine; on a busy one only what hangs is wrong.
LISTS_LIMIT_S = 30.0
PROMISE_S = 5.0


def wait_for_exit(world: World, subject: Subject, reason: str = "", forgotten: bool = False) -> None:
    """A container's exit code, by the CRI. CriError, TimeoutError.

    `forgotten`: containerd was killed meanwhile, and may have taken it from the shim and not written it down.
    """
    status = world.cri.wait_until_exited(subject.id, EXIT_LIMIT_S)
    if forgotten and status.reason == "Unknown":
        world.report.note("exit codes that containerd had taken, and died before it wrote them down")
        return
    world.report.check(
        "exit codes",
        status.exit_code == subject.code,
        f"container {subject.id} ended with {subject.code}, and is told of with {status.exit_code}: {status.reason}",
    )
    if reason and status.reason != reason:
        if forgotten:
            world.report.note("reasons that containerd had taken, and died before it wrote them down")
        else:
            world.report.is_wrong(f"container {subject.id} is told of as {status.reason}, not {reason}")


def wait_for_lists(world: World, wrong: Callable[[], str], since: float, what: str) -> None:
    """Ask until nothing is `wrong` with the lists; how long that took after `since` is kept."""
    while True:
        try:
            text = wrong()
        except (CriError, Disturbed) as error:
            text = str(error)
        taken = time.monotonic() - since
        if not text or taken > LISTS_LIMIT_S:
            break
        time.sleep(0.02)
    world.report.time(what, taken)
    if taken > PROMISE_S:
        world.report.note(f"{what}: later than {PROMISE_S:g} s")
    world.report.check("lists", not text, f"lists are wrong {taken:.1f} s after: {text}")


def execute(world: World, container: str, code: int) -> None:
    """One exec, as a probe is. CriError."""
    found = world.cri.exec_sync(container, ["sh", "-c", f"echo {code}; exit {code}"])
    world.report.check(
        "execs",
        (found.exit_code, found.stdout) == (code, b"%d\n" % code),
        f"an exec in {container} that ends with {code}: {found}",
    )


class Steady:
    """A pod with containers that nothing may disturb."""

    def __init__(self, world: World, handler: str) -> None:
        self._world = world
        self.handler = handler
        self.name = world.fresh("steady")
        world.living.add(self.name)
        self.message = world.pod_message(self.name)
        self.pod = world.cri.run_pod(self.message, handler)
        self.tellers = [self._run(10 + number) for number in range(2)]
        self.paused = self._run(20)
        world.ctr("tasks", "pause", self.paused.id).check_returncode()
        self.tasks = [subjects.task(world, handler if is_manor(handler) else "runc", 30)]
        if not is_manor(handler):
            self.tasks[0].more["scheme"] = "file"
        pids = world.tasks()
        for each in self.tasks:
            each.identify(pids[each.id][0])

    def _run(self, code: int) -> Subject:
        made = subjects.create(self._world, self.pod, self.message, code)
        subjects.start(self._world, made)
        made.identify(self._world.init_of(made.id))
        return made

    def everything(self) -> list[Subject]:
        """All of its containers."""
        return [*self.tellers, self.paused, *self.tasks]

    def check(self) -> None:
        """They are who they were."""
        for each in self.everything():
            alive = lives(each.pid, each.start_time)
            self._world.report.check(
                "containers seen undisturbed", alive, f"{each.id} of {self.name} has ended"
            )

    def end(self) -> None:
        """Their ends are right, too: exit codes and every line. CriError, Disturbed."""
        self.check()
        self._world.ctr("tasks", "resume", self.paused.id)
        for each in (*self.tellers, self.paused):
            self._world.cri.stop(each.id, 10)
            wait_for_exit(self._world, each)
            subjects.check_log(self._world, each)
        for each in self.tasks:
            end_task(self._world, each)
        self._world.cri.stop_pod(self.pod)
        self._world.cri.remove_pod(self.pod)


def end_task(world: World, subject: Subject, kill: bool = True) -> None:
    """Have a task end, and check how it did. Disturbed."""
    if kill:
        world.ctr("tasks", "kill", "-s", "TERM", subject.id)
    deadline = time.monotonic() + EXIT_LIMIT_S
    while world.tasks().get(subject.id, (0, ""))[1] == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.02)
    code = subjects.remove_task(world, subject)
    world.report.check(
        "exit codes",
        code == subject.code,
        f"task {subject.id} ended with {subject.code}, and is told of with {code}",
    )
    subjects.check_log(world, subject)


class Load:
    """Threads that go on until `stop`; what is left to chance in them follows from `seed`."""

    def __init__(self, world: World, seed: int, steady: list[Steady], pods: int = 1) -> None:
        self._world = world
        self._steady = steady
        self._stopping = threading.Event()
        self._may_start = threading.Semaphore(pods)  # pods, side by side
        self._go_on = threading.Event()
        self._go_on.set()
        self._pods = pods
        actors: list[Callable[[random.Random], None]] = [self._pod] * pods
        actors += [self._execs, self._terminal, self._oom]
        self._threads = [
            threading.Thread(target=self._run, args=(actor, random.Random(seed * 100 + number)))
            for number, actor in enumerate(actors)
        ]
        self._pool = ThreadPoolExecutor(AT_ONCE)

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Have all of them finish what they are at."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._pool.shutdown()

    def hold(self) -> None:
        """Have no pod of ours start or run until `go_on`."""
        self._go_on.clear()
        for _ in range(self._pods):
            self._may_start.acquire()

    def go_on(self) -> None:
        """As before `hold`."""
        self._may_start.release(self._pods)
        self._go_on.set()

    def _run(self, actor: Callable[[random.Random], None], chance: random.Random) -> None:
        while not self._stopping.is_set():
            try:
                self._world.wait_until_calm()
                actor(chance)
            except Disturbed:
                self._stopping.wait(0.1)
            except Exception as error:
                self._world.report.is_wrong(f"{actor.__name__}: {error!r}")
                self._stopping.wait(0.5)

    # --- what they do ------------------------------------------------------------------------------

    def _pod(self, chance: random.Random) -> None:
        self._go_on.wait()
        with self._may_start:
            self._one_pod(chance)

    def _one_pod(self, chance: random.Random) -> None:
        """A pod from run to remove."""
        world, name = self._world, self._world.fresh("pod")
        message = world.pod_message(name, chance.choice(world.kinds_of_pods()))
        world.living.add(name)
        try:
            with world.sure(f"pod {name}"):
                pod = world.cri.run_pod(message, chance.choice(world.handlers))
                world.report.count("pods")
                self._containers(chance, pod, message)
                world.cri.stop_pod(pod)
                world.cri.remove_pod(pod)
        finally:
            world.living.discard(name)

    def _containers(self, chance: random.Random, pod: str, message: api.PodSandboxConfig) -> None:
        world = self._world
        code = chance.randrange(256)
        short = subjects.create(world, pod, message, code, chance.randrange(1, 400), 10)
        never = subjects.create(world, pod, message, 0)
        long = subjects.create(world, pod, message, chance.randrange(256), 0, 10)
        for each in (short, long):
            subjects.start(world, each)
        for _ in range(chance.randrange(3)):
            execute(world, long.id, chance.randrange(256))
        if chance.random() < 0.5:
            for verb in ("pause", "resume"):
                world.ctr("tasks", verb, long.id).check_returncode()
        long.wait_until_it_speaks()
        world.cri.stop(long.id, 30)
        for each in (short, long):
            wait_for_exit(world, each, forgotten=world.epoch != each.epoch)
            subjects.check_log(world, each)
            world.cri.remove(each.id)
        world.cri.remove(never.id)

    def _execs(self, chance: random.Random) -> None:
        """Some in a row, and many at once."""
        world = self._world
        target = chance.choice(self._steady).tellers[0].id
        with world.sure(f"execs in {target}"):
            for _ in range(5):
                execute(world, target, chance.randrange(256))
            codes = [chance.randrange(256) for _ in range(AT_ONCE)]
            for each in [self._pool.submit(execute, world, target, code) for code in codes]:
                each.result()
        self._stopping.wait(0.3)

    def _terminal(self, chance: random.Random) -> None:
        world, epoch = self._world, self._world.epoch
        target, code = chance.choice(self._steady).tellers[0].id, chance.randrange(1, 256)
        found = world.crictl.on_terminal("exec", "-it", target, "sh", "-c", f"exit {code}")
        if world.epoch == epoch and epoch % 2 == 0:
            right = f"exit code {code}" in found.stdout or f"exited with {code}" in found.stdout
            world.report.check("execs on a terminal", right, f"{code}, by crictl: {found}")
        self._stopping.wait(1)

    def _oom(self, chance: random.Random) -> None:
        world = self._world
        home = chance.choice(self._steady)
        with world.sure(f"kill for want of memory in {home.name}"):
            eater = subjects.create(world, home.pod, home.message, 137, command=EATS, memory_bytes=OOM_BYTES)
            subjects.start(world, eater)
            wait_for_exit(world, eater, "OOMKilled", forgotten=world.epoch != eater.epoch)
            world.cri.remove(eater.id)
            world.report.count("kills for want of memory")
        self._stopping.wait(1)
