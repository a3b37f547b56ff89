"""The table people read and the list programs read; both say the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Row

LATEST = Path(__file__).parent / "latest.json"
HEADER = ("work", "unit", "peer", "manor p50", "peer p50", "ratio", "manor p99", "peer p99", "runs")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def table(rows: Sequence[Row]) -> list[str]:
    """The rows in columns."""
    lines = [
        (
            *(row.work, row.unit, row.peer, _number(row.manor), _number(row.peer_value)),
            *("-" if row.ratio is None else f"{row.ratio:.3f}", _number(row.p99), _number(row.peer_p99)),
            str(row.runs),
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [HEADER, *lines]) for column in range(len(HEADER))]

    def aligned(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [aligned(HEADER), aligned(["-" * width for width in widths]), *(aligned(line) for line in lines)]


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as a JSON list."""
    path.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n", encoding="ascii")
