"""How samples are taken and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import measure, report
from benchmarks.measure import Row


def test_runtimes_take_turns_and_the_order_turns_round() -> None:
    calls: list[str] = []

    def block(name: str) -> measure.Block:
        def take(count: int) -> list[float]:
            calls.append(name)
            return [1.0] * count

        return take

    samples = measure.in_turns({"a": block("a"), "b": block("b")}, rounds=3, per_round=2)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in samples.items()} == {"a": 6, "b": 6}


@pytest.mark.parametrize(
    ("samples", "percent", "expected"),
    [([7.0], 50, 7.0), ([1.0, 3.0], 50, 2.0), ([float(n) for n in range(101)], 90, 90.0)],
)
def test_percentiles(samples: list[float], percent: int, expected: float) -> None:
    assert measure.percentile(samples, percent) == pytest.approx(expected)


def test_there_is_one_row_for_each_peer_and_the_ratio_is_of_medians() -> None:
    rows = measure.rows(
        "exec.shim", "ms", {"runc": [10.0, 20.0, 60.0], "manor": [4.0, 5.0, 9.0], "crun": [5.0]}
    )
    assert [(row.peer, row.ratio, row.runs) for row in rows] == [("runc", 0.25, 3), ("crun", 1.0, 1)]


def test_without_manor_a_row_has_the_peers_side_only() -> None:
    (row,) = measure.rows("exec.shim", "ms", {"runc": [10.0]})
    assert row.manor is None
    assert row.ratio is None


def test_the_list_has_the_keys_that_others_read(tmp_path: Path) -> None:
    path = tmp_path / "latest.json"
    report.write(measure.rows("pod.start", "ms", {"runc": [10.0, 10.0], "manor": [5.0, 5.0]}), path)
    assert json.loads(path.read_text(encoding="ascii")) == [
        {
            "work": "pod.start",
            "metric": "p50",
            "unit": "ms",
            "peer": "runc",
            "manor": 5.0,
            "peer_value": 10.0,
            "ratio": 0.5,
            "runs": 2,
            "p90": 5.0,
            "peer_p90": 10.0,
            "p99": 5.0,
            "peer_p99": 10.0,
        }
    ]


def test_the_table_is_aligned_and_says_what_is_missing() -> None:
    rows = [
        Row("exec.shim", "ms", "runc", 4.0, 16.0, 5.0, 20.0, 100),
        Row("pss.pod.100", "MB", "crun", None, 4.5, None, 4.5, 1),
    ]
    lines = report.table(rows)
    assert "0.250" in lines[2]
    assert " - " in lines[3]
    assert len({line.index("runc") if "runc" in line else line.index("crun") for line in lines[2:]}) == 1
