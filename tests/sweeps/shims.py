"""The sweep of the shims: a shim dies, and its pod with it; how its containers ended is told, all others live on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cri.api import api_pb2 as api
from cri.client import CriError
from shim import journal
from shim.delete import EXIT_NOTE
from tests.harness import leaks
from tests.harness.handlers import is_manor
from tests.harness.waiting import eventually
from tests.sweeps import subjects
from tests.sweeps.load import LISTS_LIMIT_S, Steady, wait_for_exit, wait_for_lists
from tests.sweeps.marks import Underway, children, wait_for_child, wait_for_stage, warden_of
from tests.sweeps.subjects import Subject
from tests.sweeps.sweep import Sweep
from tests.sweeps.world import LIMIT_S, MAPPED, World, lives

KILLED = 137
TASKS = (
    "tasks"  # in the place of a handler: a pod of containers by `ctr`, whose logs have writers of their own
)
AFTER = "lists after a shim's death"


@dataclass
class Victim:
    """A pod whose shim will be killed."""

    handler: str
    name: str
    pod: str = ""  # the id of its group
    message: api.PodSandboxConfig | None = None
    shim: int = 0
    running: list[Subject] = field(default_factory=list)
    ended: list[Subject] = field(default_factory=list)  # before: their code is known to everybody
    created: list[Subject] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)  # what is to be told of those that ran

    def everything(self) -> list[Subject]:
        """All of its containers that have ever run."""
        return [*self.running, *self.ended]


class Heard:
    """What containerd tells everybody, by `ctr events`."""

    def __init__(self, world: World) -> None:
        self._path = world.directory / "events"
        words = [str(world.node.binaries.ctr), "-a", str(world.node.socket), "-n", "k8s.io", "events"]
        with open(self._path, "wb") as output:
            self._process = subprocess.Popen(
                words, env=world.node.environment(), stdout=output, stderr=subprocess.DEVNULL
            )
        eventually(
            # It does not say when it listens: something is sent until it comes.
            lambda: (world.ctr("namespaces", "label", "k8s.io", "seen=yes"), self._path.stat().st_size)[1],
            limit_s=LIMIT_S,
        )

    def exits(self) -> dict[str, list[int]]:
        """The codes of inits by container, as often as they were told."""
        found: dict[str, list[int]] = {}
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            if " /tasks/exit " in line and line.endswith("}"):
                told = json.loads(line[line.index("{") :])
                if told["id"] == told["container_id"]:
                    found.setdefault(told["id"], []).append(told.get("exit_status", 0))
        return found

    def close(self) -> None:
        """Listen no more."""
        self._process.terminate()
        self._process.wait()


class ShimSweep(Sweep):
    """Each round makes a pod, kills its shim at a mark, and looks at what is told and what is left."""

    name = "shim"
    # What of the pod is under way when its shim is killed.
    marks: tuple[str, ...] = (
        *("random", "0:CREATE", "exec 1:INTER", "record", "delete", "random", "created", "exec 2:INIT"),
        *("start", "stop", "0:POD", "forked", "0:LAYERS"),
    )
    reference_marks: tuple[str, ...] = ("random", "start", "delete", "stop")

    def __init__(self, world: World, seed: int, steady: list[Steady]) -> None:
        super().__init__(world, seed, steady)
        self._heard = Heard(world)
        self._underway: list[Underway] = []

    def run(self, kills: int) -> None:
        """All of it."""
        kinds, marks = [*self._world.handlers, TASKS], self.marks
        if not all(map(is_manor, self._world.handlers)):
            kinds, marks = self._world.handlers, self.reference_marks
        if MAPPED not in self._world.kinds_of_pods():
            marks = tuple(mark for mark in marks if mark != "0:LAYERS")
        self._load.start()
        try:
            for number in self._world.rounds(kills):
                mark = marks[number % len(marks)]
                kind = kinds[(number + number // len(marks)) % len(kinds)]
                if mark == "0:POD":
                    kind = self._world.handlers[-1]
                if mark == "0:LAYERS" and kind == TASKS:
                    kind = self._world.handlers[0]
                self._world.report.round = f"shim {number} ({mark}, {kind})"
                try:
                    self._round(kind, mark)
                except Exception as error:
                    self._world.report.is_wrong(f"round: {error!r}")
                    self._world.living -= {name for name in self._world.living if name.startswith("victim")}
                    self._world.remove_pods_of_nobody()
        finally:
            self._load.stop()
            self._heard.close()

    def _round(self, kind: str, mark: str) -> None:
        world = self._world
        if mark in ("0:POD", "forked"):
            self._kill_at_birth(world.handlers[0] if kind == TASKS else kind, mark)
            return
        victim = self._tasks() if kind == TASKS else self._pod(kind, mark)
        self._underway = []
        getattr(self, f"_at_{_method(mark)}")(victim, mark)
        since = time.monotonic()
        world.report.count(f"kills of a shim ({mark})")
        self._read_record(victim)
        for each in self._underway:
            each.join()
        if any(call.error for call in self._underway):
            world.cut_off.update(each.id for each in victim.created)
        wait_for_lists(world, partial(self._wrong_with, victim), since, f"{AFTER} ({kind})")
        self._check_ends(victim)
        self._remove(victim)
        self._check_remains(victim)
        for home in self._steady:
            home.check()
        world.living.discard(victim.name)

    # --- the pod -----------------------------------------------------------------------------------

    def _pod(self, handler: str, mark: str) -> Victim:
        world, chance = self._world, self._chance
        victim = Victim(handler, world.fresh("victim"))
        world.living.add(victim.name)
        pids = MAPPED if mark == "0:LAYERS" else chance.choice(world.kinds_of_pods())
        message = world.pod_message(victim.name, pids)
        victim.pod, victim.message = world.cri.run_pod(message, handler), message
        world.report.count("pods")
        for lifetime in (0, 0, 1):
            made = subjects.create(world, victim.pod, message, chance.randrange(1, 128), lifetime, 5)
            subjects.start(world, made)
            made.identify(world.init_of(made.id))
            (victim.ended if lifetime else victim.running).append(made)
        wait_for_exit(world, victim.ended[0])
        victim.created.append(subjects.create(world, victim.pod, message, chance.randrange(1, 128)))
        if chance.random() < 0.5:
            world.ctr(TASKS, "pause", victim.running[1].id).check_returncode()
        victim.shim = world.shim_of(victim.pod)
        return victim

    def _tasks(self) -> Victim:
        world, chance = self._world, self._chance
        victim = Victim(TASKS, world.fresh("victim"))
        handler = world.handlers[0]
        for lifetime in (0, 0, 1):
            code = chance.randrange(1, 128)
            group = victim.running[0].id if victim.running else ""
            made = subjects.task(world, handler, code, group, lifetime)
            (victim.ended if lifetime else victim.running).append(made)
        first = victim.running[0]
        victim.pod = first.pod
        listed = world.tasks()
        for each in victim.running:
            each.identify(listed[each.id][0])
        eventually(lambda: world.tasks()[victim.ended[0].id][1] == "STOPPED", limit_s=LIMIT_S)
        victim.shim = world.shim_of(first.id)
        return victim

    # --- the marks ---------------------------------------------------------------------------------

    def _kill(self, victim: Victim) -> None:
        os.kill(victim.shim, signal.SIGKILL)

    def _begin(self, call: Callable[[], Any]) -> Underway:
        self._underway.append(Underway(call))
        return self._underway[-1]

    def _exec(self, victim: Victim) -> Underway:
        """One that is under way; in a pod of tasks by `ctr`."""
        target, world = victim.running[0].id, self._world
        if victim.handler == TASKS:
            words = ("tasks", "exec", "--exec-id", world.fresh("e"), target, "sh", "-c", "exit 3")
            return self._begin(lambda: world.ctr(*words))
        return self._begin(lambda: world.cri.exec_sync(target, ["sh", "-c", "exit 3"]))

    def _start(self, victim: Victim) -> Underway:
        """Create and start of one more container."""
        world = self._world
        if victim.handler == TASKS:
            return self._begin(lambda: subjects.task(world, world.handlers[0], 9, victim.pod, may_fail=True))
        return self._begin(lambda: world.cri.start(victim.created[0].id))

    def _at_random(self, victim: Victim, _mark: str) -> None:
        for _ in range(2):
            self._exec(victim)
        time.sleep(self._chance.uniform(0, 0.2))
        self._kill(victim)

    def _at_0_layers(self, victim: Victim, mark: str) -> None:
        self._at_0_create(victim, mark)

    def _at_0_create(self, victim: Victim, mark: str) -> None:
        wait_for_stage(victim.shim, mark, self._start(victim))
        time.sleep(self._chance.uniform(0, 0.01))
        self._kill(victim)

    def _at_created(self, victim: Victim, _mark: str) -> None:
        """Its init waits at the start gate."""
        wait_for_stage(victim.shim, "2:INIT", self._start(victim), without="0:CREATE")
        self._kill(victim)

    def _at_start(self, victim: Victim, _mark: str) -> None:
        self._start(victim)
        time.sleep(self._chance.uniform(0, 0.05))
        self._kill(victim)

    def _at_exec(self, victim: Victim, mark: str) -> None:
        wait_for_stage(victim.shim, mark.split()[1], self._exec(victim))
        self._kill(victim)

    def _at_record(self, victim: Victim, _mark: str) -> None:
        """A container has ended, that is on record, and containerd has not heard."""
        world, ends = self._world, victim.running[0]
        ends.wait_until_it_speaks()
        os.kill(world.node.process.pid, signal.SIGSTOP)
        try:
            os.kill(ends.pid, signal.SIGTERM)
            eventually(lambda: self._on_record(victim, ends.id) is not None, limit_s=LIMIT_S)
            self._kill(victim)
        finally:
            os.kill(world.node.process.pid, signal.SIGCONT)

    def _at_delete(self, victim: Victim, _mark: str) -> None:
        world, target = self._world, victim.running[0].id
        if victim.handler == TASKS:
            self._begin(lambda: world.ctr("tasks", "rm", "-f", target))
        else:
            self._begin(lambda: world.cri.stop(target, 10))
        time.sleep(self._chance.uniform(0, 0.05))
        self._kill(victim)

    def _at_stop(self, victim: Victim, mark: str) -> None:
        world = self._world
        if victim.handler == TASKS:
            self._at_delete(victim, mark)
            return
        self._begin(lambda: world.cri.stop_pod(victim.pod))
        time.sleep(self._chance.uniform(0, 0.1))
        self._kill(victim)

    def _kill_at_birth(self, handler: str, mark: str) -> None:
        """A shim that was just forked, or makes the namespaces of its pod: the pod's start fails, and nothing else."""
        world, name = self._world, self._world.fresh("unborn")
        message = world.pod_message(name, self._chance.choice(world.kinds_of_pods()))
        world.living.add(name)
        self._load.hold()  # its shims are born of the same warden
        try:
            warden = warden_of(world.node.run_dir)
            before = children(warden)
            call = Underway(partial(world.cri.run_pod, message, handler))
            shim = wait_for_child(warden, before, call)
            if mark == "0:POD":
                wait_for_stage(shim, mark, call)
            else:
                time.sleep(self._chance.choice((0, self._chance.uniform(0, 0.02))))
            with contextlib.suppress(ProcessLookupError):
                os.kill(shim, signal.SIGKILL)
                world.report.count(f"kills of a shim ({mark})")
            call.join()
        finally:
            self._load.go_on()
        world.report.note(f"pods that came up although their shim was killed: {mark}", call.error is None)
        for each in world.cri.pods():
            if each.metadata.name == name:
                self._remove_pod(each.id)
        world.living.discard(name)

    # --- what became of it -------------------------------------------------------------------------

    def _on_record(self, victim: Victim, container: str) -> int | None:
        entries = journal.read(os.fspath(self._world.state_directory(victim.pod)))
        found = journal.exit_of_init(entries, container)
        return None if found is None else found.code

    def _read_record(self, victim: Victim) -> None:
        """At once after the death: `delete` takes the journal away when it has read it."""
        entries = journal.read(os.fspath(self._world.state_directory(victim.pod)))
        for each in victim.everything():
            found = journal.exit_of_init(entries, each.id)
            known = each.code if each in victim.ended else KILLED
            victim.codes[each.id] = known if found is None else found.code
            if found is not None:
                self._world.report.count("exits on record when a shim was killed")
                if found.code not in (each.code, KILLED):
                    self._world.report.is_wrong(f"{each.id}: {found} is on record")

    def _wrong_with(self, victim: Victim) -> str:
        world = self._world
        listed = {each.id: each.state for each in world.cri.containers()}
        tasks = world.tasks()
        ready = [each.id for each in world.cri.pods() if each.state == api.SANDBOX_READY]
        if victim.pod in ready:
            return f"pod {victim.pod} is ready"
        for each in victim.everything():
            status = tasks.get(each.id, (0, ""))[1]
            if status not in ("", "STOPPED"):
                return f"{each.id} has ended, but as a task it is {status}"
            if victim.handler != TASKS and listed.get(each.id) != api.CONTAINER_EXITED:
                return f"{each.id} has ended, but the CRI has {listed.get(each.id)}"
            if lives(each.pid, each.start_time):
                return f"{each.id} still runs"
        return ""

    def _check_ends(self, victim: Victim) -> None:
        """The code that each is told of with: to the CRI, in events, in the notes that `delete` leaves."""
        world, report = self._world, self._world.report
        heard = self._heard.exits()
        for each in victim.everything():
            code = victim.codes[each.id]
            if victim.handler != TASKS:
                found = world.cri.container_status(each.id).exit_code
                report.note(
                    f"CRI: {'137' if code == KILLED else 'another code'} told as {'it is' if found == code else found}"
                )
                if each in victim.ended and found != each.code:
                    report.is_wrong(
                        f"{each.id} had ended with {each.code} before, and is told of with {found}"
                    )
            for told in heard.get(each.id, []):
                report.check(
                    "exit events", told in (code, each.code), f"{each.id} ended with {code}, told: {told}"
                )
            note = self._note(each)
            if note is not None:
                report.check("exit notes", note == code, f"{each.id} ended with {code}, noted: {note}")
            if len(heard.get(each.id, [])) > 1:
                report.note("exits told twice")
            if not heard.get(each.id) and note is None:
                report.note("containers with neither an exit event nor a note")
            subjects.check_log(world, each, killed_shim=True)

    def _note(self, subject: Subject) -> int | None:
        path = self._world.node.bundle(subject.id) / EXIT_NOTE
        try:
            entry = journal.decode(path.read_bytes().strip())
        except OSError:
            return None
        return None if entry is None else entry.code

    def _remove_pod(self, pod: str) -> None:
        """As a kubelet does, again and again: for a moment containerd asks a shim that has gone."""
        deadline = time.monotonic() + LISTS_LIMIT_S
        while True:
            try:
                self._world.cri.stop_pod(pod)
                self._world.cri.remove_pod(pod)
                return
            except CriError:
                self._world.report.note("removals of a pod that had to be tried again")
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def _remove(self, victim: Victim) -> None:
        world = self._world
        if victim.handler != TASKS:
            self._remove_pod(victim.pod)
            return
        victim.created += [call.result for call in self._underway if isinstance(call.result, Subject)]
        for each in (*victim.everything(), *victim.created):
            world.ctr("tasks", "rm", "-f", each.id)
            world.ctr("containers", "rm", each.id)

    def _check_remains(self, victim: Victim) -> None:
        """What Manor has made for it goes by itself, at once."""
        world = self._world

        def left() -> list[Path]:
            ids = {each.id for each in (*victim.everything(), *victim.created)} | {victim.pod}
            cgroups = [path for path in world.node.instance.cgroups() if path.name in ids]
            state = world.state_directory(victim.pod)
            return [*cgroups, *([state] if state.exists() else [])]

        try:
            eventually(lambda: not left(), limit_s=leaks.GRACE_S)
        except AssertionError:
            world.report.is_wrong(
                f"left of {victim.handler} {victim.pod}: {[str(path) for path in left()][:4]}"
            )
        world.report.count("pods without remains")


def _method(mark: str) -> str:
    return mark.split(maxsplit=1)[0].lower().replace(":", "_")
