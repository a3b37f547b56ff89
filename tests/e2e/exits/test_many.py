"""Exit codes by the thousand: each right, each told once. CI does a slice; `make soak` does `MANOR_EXITS` of them."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter

from shim import journal
from tests.e2e.exits.conftest import LIMIT_S, journal_directory
from tests.e2e.shim.door import Calls, Door

EXITS = int(os.environ.get("MANOR_EXITS", "200"))
SEED = int(os.environ.get("MANOR_SEED", "1"))
CLIENTS = 4


def test_every_exit_code_is_right_and_told_once(door: Door) -> None:
    """Most run /bin/true; by chance some end with another code or by a signal."""
    door.run("c1", ["sleep", "1000000"])
    wrong: list[str] = []

    def client(number: int) -> None:
        try:
            run(number)
        except Exception as error:
            wrong.append(f"client {number}: {error!r}")

    def run(number: int) -> None:
        chance = random.Random(SEED * CLIENTS + number)
        calls = lines[number]
        for serial in range(EXITS // CLIENTS):
            exec_id = f"e{number}-{serial}"
            wanted, args = 0, ["/bin/true"]
            if chance.random() < 0.05:
                wanted = chance.randrange(1, 256)
                args = ["sh", "-c", f"exit {wanted}"]
            elif chance.random() < 0.02:
                wanted, args = 128 + 15, ["sh", "-c", "kill $$"]
            calls.exec("c1", exec_id, args)
            seen = calls.wait("c1", exec_id)
            deleted = calls.delete("c1", exec_id)
            if (seen, deleted.exit_status) != (wanted, wanted):
                wrong.append(f"{exec_id}: {wanted}, but {seen} by Wait, {deleted.exit_status} by Delete")

    lines = [Calls(door.address) for _ in range(CLIENTS)]
    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for line in lines:
        line.client.close()
    assert wrong == []
    told = [f"exit e{number}-{serial}" for number in range(CLIENTS) for serial in range(EXITS // CLIENTS)]
    wait_for_events(door, len(told))
    counted = Counter(door.events.topics())
    assert [topic for topic in told if counted[topic] != 1] == []
    assert os.stat(f"{journal_directory(door.run_dir)}/{journal.FILE}").st_size <= 2 * journal.COMPACT_BYTES
    assert door.zombies() == []
    door.end("c1")


def wait_for_events(door: Door, wanted: int) -> None:
    """They come one at a time, and on a busy machine long after the last exec: wait as long as they come at all."""
    seen, deadline = 0, time.monotonic() + LIMIT_S
    while (now := told_so_far(door)) < wanted and time.monotonic() < deadline:
        if now > seen:
            seen, deadline = now, time.monotonic() + LIMIT_S
        time.sleep(0.1)


def told_so_far(door: Door) -> int:
    """How many exits the events service has been told of."""
    return sum(topic == "/tasks/exit" for topic, _value in list(door.events.seen))
