"""Frames by chance at a shim's socket: each that must be is answered, nothing breaks, nothing stays.

CI throws a few; `make soak` throws `MANOR_FRAMES` of them, by `MANOR_SEED`.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import pytest

from shim.api import task
from shim.ttrpc.status import RpcError
from tests.e2e.ttrpc.abuse import Peer
from tests.e2e.ttrpc.conftest import Attacked
from tests.e2e.ttrpc.fuzz import VICTIM, a_frame

FRAMES = int(os.environ.get("MANOR_FRAMES", "800"))
SEED = int(os.environ.get("MANOR_SEED", "1"))
FRAMES_OF_ONE = 100
PEAK_MB = 64
REST_MB = 8


@pytest.fixture
def victim(shim: Attacked) -> Iterator[Attacked]:
    """The shim, with one more container, which may not be there in the end."""
    shim.door.run(VICTIM, ["sleep", "1000000"])
    yield shim
    with contextlib.suppress(RpcError):  # it was not frozen
        shim.door.ask("Resume", task.ResumeRequest(VICTIM))
    with contextlib.suppress(RpcError):  # it is not there any more, as is looked for when all is over
        shim.door.end(VICTIM)


def throw(peer: Peer, chance: random.Random, polite: bool) -> int:
    """Throw some, in pieces. Whoever is polite reads until all has been answered that must be; how many that was."""
    pending: set[int] = set()
    data = b""
    for serial in range(FRAMES_OF_ONE):
        thrown = a_frame(chance, 4 * serial + 3)
        data += thrown.data
        if thrown.answered:
            pending.add(4 * serial + 3)
    count = len(pending) if polite else 0
    if not polite:
        data = data[: chance.randrange(len(data))]
    while data:
        cut = chance.choice((1, 7, 1000, 100_000))
        if not peer.send(data[:cut]):
            break
        data = data[cut:]
        while polite and peer.has_something():
            pending.discard(peer.stream_of_answer())
    while polite and pending:
        pending.discard(peer.stream_of_answer())
    return count


def test_whatever_is_thrown_at_it_a_shim_answers(attacked: Attacked, victim: Attacked) -> None:
    chance = random.Random(SEED)
    rounds = -(-FRAMES // FRAMES_OF_ONE)
    with attacked.attack("fuzz", PEAK_MB, REST_MB) as told:
        answered = 0
        for _ in range(rounds):
            with Peer(attacked.address) as peer:
                answered += throw(peer, chance, polite=chance.random() < 0.8)
        told.update(seed=SEED, frames=rounds * FRAMES_OF_ONE, answered=answered)
        with Peer(attacked.address) as late:
            assert late.is_served(1)
