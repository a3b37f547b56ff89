"""What each sweep has: a world, a load beside it, and rounds that are told apart in the report."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod

from tests.sweeps.load import Load, Steady
from tests.sweeps.world import World


class Sweep(ABC):
    """`run` kills so many times; what a round comes to goes into the world's report."""

    name = ""

    def __init__(self, world: World, seed: int, steady: list[Steady]) -> None:
        self._world = world
        self._chance = random.Random(seed)
        self._steady = steady
        self._load = Load(world, seed, steady)

    @abstractmethod
    def run(self, kills: int) -> None:
        """All of it."""
