"""Orphans by the thousand: whoever they are left to reaps them, and soon.

CI does a slice; `make soak` does `MANOR_ORPHANS` of them in each kind of pod.
"""

from __future__ import annotations

import os

from tests.e2e.orphans.reaping import Reaping, Watch
from tests.harness import measured
from tests.harness.processes import memory_kb

ORPHANS = int(os.environ.get("MANOR_ORPHANS", "400"))
AT_ONCE = 400
SOAK = ORPHANS >= 10 * AT_ONCE
# For how long the same zombie may be seen. A slice is run beside whatever else a machine does.
OLDEST_S = 1.0 if SOAK else 30.0
GROWTH_KB = 256


def reap(name: str, reaping: Reaping) -> Watch:
    """All of them, in rounds; nothing is left, and the shim has not grown."""
    shim = reaping.door.shim_pid()
    rounds = -(-ORPHANS // AT_ONCE)
    reaping.round(AT_ONCE)  # one more, for what a shim needs the first time
    before = memory_kb(shim)
    with Watch(reaping.reaper) as watch:
        for _ in range(rounds):
            reaping.round(AT_ONCE)
    after = memory_kb(shim)
    measured.note(
        f"orphans {name}",
        orphans=rounds * AT_ONCE,
        oldest_zombie_s=round(watch.oldest_s, 3),
        most_zombies_at_once=watch.most,
        looks=watch.looks,
        shim_before=before,
        shim_after=after,
    )
    assert watch.oldest_s <= OLDEST_S
    assert reaping.door.zombies() == []
    if SOAK:
        assert max(after[kind] - before[kind] for kind in after) <= GROWTH_KB
    return watch


def test_the_shim_reaps_where_the_pid_namespace_is_the_hosts(in_the_hosts_pid_namespace: Reaping) -> None:
    reap("left to the shim", in_the_hosts_pid_namespace)
    in_the_hosts_pid_namespace.door.end("c1")


def test_the_landlord_reaps_where_the_pod_shares_one(in_a_shared_pid_namespace: Reaping) -> None:
    reap("left to the landlord", in_a_shared_pid_namespace)
    in_a_shared_pid_namespace.door.end("c1")


def test_init_reaps_where_the_container_has_its_own(in_a_private_pid_namespace: Reaping) -> None:
    reap("left to init", in_a_private_pid_namespace)
    in_a_private_pid_namespace.door.end("c1")
