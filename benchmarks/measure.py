"""Samples taken in turns, and what is said of them. It does not know what is measured.

Two runtimes on one machine share its weather, so they take turns in short blocks, and each round begins with the
other one (A B, B A, A B …): a slow minute then meets both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Block = Callable[[int], list[float]]


def in_turns(blocks: Mapping[str, Block], rounds: int, per_round: int) -> dict[str, list[float]]:
    """Call every block `rounds` times for `per_round` samples; the order turns round with each round."""
    samples: dict[str, list[float]] = {name: [] for name in blocks}
    names = list(blocks)
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            samples[name] += blocks[name](per_round)
    return samples


def percentile(samples: Sequence[float], percent: int) -> float:
    """The value below which `percent` of the samples lie, between two of them if need be."""
    if len(samples) == 1:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]


@dataclass(frozen=True)
class Row:
    """One work, Manor beside one peer. Lower is better in every unit used here."""

    work: str
    unit: str
    peer: str
    manor: float | None
    peer_value: float
    p90: float | None
    peer_p90: float
    runs: int
    metric: str = "p50"
    p99: float | None = None
    peer_p99: float | None = None

    @property
    def ratio(self) -> float | None:
        """Manor's median by the peer's."""
        return None if self.manor is None or not self.peer_value else self.manor / self.peer_value

    def as_json(self) -> dict[str, object]:
        """The row as benchmarks/latest.json has it."""

        def rounded(value: float | None) -> float | None:
            return None if value is None else round(value, 4)

        return {
            "work": self.work,
            "metric": self.metric,
            "unit": self.unit,
            "peer": self.peer,
            "manor": rounded(self.manor),
            "peer_value": rounded(self.peer_value),
            "ratio": rounded(self.ratio),
            "runs": self.runs,
            "p90": rounded(self.p90),
            "peer_p90": rounded(self.peer_p90),
            "p99": rounded(self.p99),
            "peer_p99": rounded(self.peer_p99),
        }


def rows(work: str, unit: str, samples: Mapping[str, Sequence[float]]) -> list[Row]:
    """One row for each peer that has samples; Manor's side is empty if it has none."""
    own = samples.get("manor") or None
    return [
        Row(
            work=work,
            unit=unit,
            peer=peer,
            manor=None if own is None else percentile(own, 50),
            peer_value=percentile(values, 50),
            p90=None if own is None else percentile(own, 90),
            peer_p90=percentile(values, 90),
            runs=min(len(values), len(own)) if own else len(values),
            p99=None if own is None else percentile(own, 99),
            peer_p99=percentile(values, 99),
        )
        for peer, values in samples.items()
        if peer != "manor" and values
    ]
