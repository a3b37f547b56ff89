"""JSON in the layouts of Go's encoding/json."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from runtime.cli.output import compact, indented, say

VALUES: list[Any] = [
    {},
    [],
    {"a": {}},
    {"a": [], "b": [[]]},
    {"a": 1, "b": [1, 2, {"c": None, "d": True}], "é": '"\\\n\u2028'},
    [{"x": 1.5}, "", -1, 2**64 - 1],
    "text",
]


@pytest.mark.parametrize("value", VALUES)
def test_indented_is_what_json_makes_of_it(value: Any) -> None:
    assert indented(value, "  ") == json.dumps(value, indent=2, ensure_ascii=False)
    assert indented(value, "\t") == json.dumps(value, indent="\t", ensure_ascii=False)


@pytest.mark.parametrize("value", VALUES)
def test_compact_has_no_blanks(value: Any) -> None:
    assert compact(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def test_all_of_a_long_text_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    say("x" * 300_000 + "\udcff")
    os.write(1, b"")
    assert len(capfd.readouterr().out) == 300_001
