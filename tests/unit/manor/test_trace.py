"""`manor trace`: what it reads and how it draws it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manor import trace
from manor.__main__ import main
from manor.trace import Span


def line(*spans: dict[str, object]) -> str:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}) + "\n"


def raw(
    name: str, start_ms: int, end_ms: int, identity: str = "a", parent: str = "", of: str = "t"
) -> dict[str, object]:
    return {
        "traceId": of,
        "spanId": identity,
        "parentSpanId": parent,
        "name": name,
        "startTimeUnixNano": str(start_ms * 1_000_000),
        "endTimeUnixNano": str(end_ms * 1_000_000),
        "attributes": [{"key": "container.id", "value": {"stringValue": f"id-of-{of}"}}],
    }


def test_spans_are_read_from_every_request_of_the_file() -> None:
    spans = list(trace.parse([line(raw("one", 0, 1)), line(raw("two", 1, 2), raw("three", 2, 3))]))
    assert [span.name for span in spans] == ["one", "two", "three"]
    assert spans[0].attributes == (("container.id", "id-of-t"),)


def test_a_line_that_was_cut_short_is_passed_over() -> None:
    assert [span.name for span in trace.parse(['{"resourceSpans": [{', line(raw("whole", 0, 1))])] == [
        "whole"
    ]


def test_children_follow_their_parent_in_order_of_start() -> None:
    spans = list(
        trace.parse(
            [
                line(
                    raw("late", 5, 6, "c", "a"),
                    raw("early", 1, 2, "b", "a"),
                    raw("root", 0, 9),
                    raw("deep", 1, 2, "d", "b"),
                )
            ]
        )
    )
    assert [(depth, span.name) for depth, span in trace.tree(spans)] == [
        (0, "root"),
        (1, "early"),
        (2, "deep"),
        (1, "late"),
    ]


def test_a_span_whose_parent_is_elsewhere_is_a_root() -> None:
    spans = list(trace.parse([line(raw("orphan", 0, 1, "b", "not-in-the-file"))]))
    assert trace.tree(spans) == [(0, spans[0])]


def test_bars_begin_where_their_span_begins_and_are_as_long_as_it() -> None:
    spans = [Span("t", "a", "", "whole", 0, 40_000_000), Span("t", "b", "a", "half", 20_000_000, 40_000_000)]
    whole, half = trace.waterfall(spans)
    assert whole.count("█") == trace.WIDTH
    assert half.count("█") == trace.WIDTH // 2
    assert half.index("█") - whole.index("█") == trace.WIDTH // 2
    assert half.endswith("20.00 ms")


def test_the_last_trace_about_a_text_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "spans.jsonl"
    file.write_text(line(raw("old", 0, 1, of="x")) + line(raw("new", 5, 6, of="y")), encoding="utf-8")
    assert main(["trace", "--file", str(file)]) == 0
    assert "new" in capsys.readouterr().out
    assert main(["trace", "--file", str(file), "id-of-x"]) == 0
    assert "old" in capsys.readouterr().out


def test_nothing_to_show_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--file", str(tmp_path / "absent")]) == 1
    assert "No such file" in capsys.readouterr().err
    file = tmp_path / "spans.jsonl"
    file.write_text("", encoding="utf-8")
    assert main(["trace", "--file", str(file)]) == 1
    assert capsys.readouterr().err == f"manor trace: {file} has no trace yet\n"
    file.write_text(line(raw("old", 0, 1, of="x")), encoding="utf-8")
    assert main(["trace", "--file", str(file), "y"]) == 1
    assert capsys.readouterr().err == f"manor trace: nothing about 'y' in {file}\n"


def test_an_unknown_verb_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dance"]) == 2
    assert "demo" in capsys.readouterr().err
