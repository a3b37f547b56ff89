"""Orphans by the hundred, and a watch over the process that they are left to."""

from __future__ import annotations

import os
import signal
import time

from tests.e2e.shim.door import Door
from tests.harness.beside import Beside
from tests.harness.processes import children, is_zombie
from tests.harness.waiting import eventually

CONTAINER = "c1"
LIMIT_S = 120
LOOK_EVERY_S = 0.02
# Forked by a child that ends at once, in either order: what lives until it is killed, and what ends by itself.
SCRIPT = "i=0; while [ $i -lt {count} ]; do (sleep 1000000 &); (true &); i=$((i+1)); done"


class Watch(Beside):
    """While it is open: how many zombies a process has had at once, and for how long the same one at most."""

    def __init__(self, reaper: int) -> None:
        super().__init__()
        self.most = 0
        self.oldest_s = 0.0
        self.looks = 0
        self._reaper = reaper
        self._since: dict[int, float] = {}

    def _run(self) -> None:
        while not self._end.wait(LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        """A zombie is as old as the time between its first and its last sight."""
        self.looks += 1
        begin = time.monotonic()
        zombies = [pid for pid in children(self._reaper) if is_zombie(pid)]
        self._since = {pid: self._since.get(pid, begin) for pid in zombies}
        self.most = max(self.most, len(zombies))
        self.oldest_s = max([self.oldest_s, *(begin - since for since in self._since.values())])


class Reaping:
    """A running container, and the process that its orphans are left to."""

    def __init__(self, door: Door, reaper: int) -> None:
        self.door = door
        self.reaper = reaper
        self._own = children(reaper)
        self._serial = 0

    def orphans(self) -> list[int]:
        """Those that the reaper has now, ended or not."""
        return [pid for pid in children(self.reaper) if pid not in self._own]

    def round(self, count: int) -> None:
        """Have `count` orphans: half of them end by themselves, the others at once when all are there."""
        self._serial += 1
        exec_id = f"e{self._serial}"
        half = count // 2
        self.door.exec(CONTAINER, exec_id, ["sh", "-c", SCRIPT.format(count=half)])
        assert self.door.wait(CONTAINER, exec_id) == 0
        self.door.delete(CONTAINER, exec_id)
        eventually(lambda: len(self.orphans()) == half, LIMIT_S)
        for pid in self.orphans():
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: self.orphans() == [], LIMIT_S)
