"""Conversions from v1's numbers to v2's."""

from __future__ import annotations

import math

import pytest

from runtime.cgroups.plan_v2 import weight_of_blkio, weight_of_shares


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (1 << 20, 10_000), (512, 59), (2048, 174)],
)
def test_weight_of_shares_keeps_range_and_default(shares: int, weight: int) -> None:
    assert weight_of_shares(shares) == weight


def test_weight_of_shares_is_the_published_formula() -> None:
    for shares in range(3, 262_144, 7):
        log = math.log2(shares)
        expected = math.ceil(math.pow(10, (log * log + 125 * log) / 612.0 - 7.0 / 34.0))
        assert weight_of_shares(shares) == expected, shares


@pytest.mark.parametrize(("blkio", "weight"), [(10, 1), (1000, 10_000), (100, 910), (500, 4950)])
def test_weight_of_blkio_maps_one_range_on_the_other(blkio: int, weight: int) -> None:
    assert weight_of_blkio(blkio) == weight
