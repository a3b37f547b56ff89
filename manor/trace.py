"""`manor trace`: finished spans as a waterfall, from a file of OTLP JSON lines such as the scribe writes.

One line of the file is one export request (OTLP file exporter format). A trace is drawn with each span below
its parent, in order of start, on one scale of time; spans whose parent is not in the file are roots.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH = 40


@dataclass(frozen=True)
class Span:
    """One finished span; times are nanoseconds since the epoch."""

    trace: str
    id: str
    parent: str
    name: str
    start_ns: int
    end_ns: int
    attributes: tuple[tuple[str, str], ...] = ()

    @property
    def milliseconds(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e6


def _value(value: dict[str, Any]) -> str:
    """An attribute's value as text: OTLP JSON wraps it in an object with one key that names its type."""
    return str(next(iter(value.values()), ""))


def parse(lines: Iterable[str]) -> Iterator[Span]:
    """Read spans from OTLP JSON lines. A line that was cut short by a crash is passed over."""
    for line in lines:
        try:
            request = json.loads(line)
        except json.JSONDecodeError:
            continue
        for resource in request.get("resourceSpans", ()):
            for scope in resource.get("scopeSpans", ()):
                yield from (_span(span) for span in scope.get("spans", ()))


def _span(span: dict[str, Any]) -> Span:
    return Span(
        trace=span["traceId"],
        id=span["spanId"],
        parent=span.get("parentSpanId", ""),
        name=span["name"],
        start_ns=int(span["startTimeUnixNano"]),
        end_ns=int(span["endTimeUnixNano"]),
        attributes=tuple((item["key"], _value(item["value"])) for item in span.get("attributes", ())),
    )


def tree(spans: Sequence[Span]) -> list[tuple[int, Span]]:
    """Spans with their depth, each after its parent, siblings by start."""
    known = {span.id for span in spans}
    children: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.start_ns):
        children.setdefault(span.parent if span.parent in known else "", []).append(span)
    ordered: list[tuple[int, Span]] = []

    def add(parent: str, depth: int) -> None:
        for span in children.get(parent, ()):
            ordered.append((depth, span))
            add(span.id, depth + 1)

    add("", 0)
    return ordered


def waterfall(spans: Sequence[Span]) -> list[str]:
    """Draw the spans of one trace, one line each: name, time since the beginning, bar, duration."""
    begin = min(span.start_ns for span in spans)
    scale = WIDTH / max(max(span.end_ns for span in spans) - begin, 1)
    ordered = tree(spans)
    names = max(2 * depth + len(span.name) for depth, span in ordered)
    lines = []
    for depth, span in ordered:
        before = min(int((span.start_ns - begin) * scale), WIDTH - 1)
        length = max(1, min(round((span.end_ns - span.start_ns) * scale), WIDTH - before))
        bar = f"{' ' * before}{'█' * length}".ljust(WIDTH)
        name = f"{'  ' * depth}{span.name}"
        lines.append(
            f"{name:<{names}}  {(span.start_ns - begin) / 1e6:8.2f}  {bar}  {span.milliseconds:8.2f} ms"
        )
    return lines


def traces(spans: Iterable[Span]) -> dict[str, list[Span]]:
    """Spans by trace, the trace that began first being the first."""
    found: dict[str, list[Span]] = {}
    for span in spans:
        found.setdefault(span.trace, []).append(span)
    return dict(sorted(found.items(), key=lambda item: min(span.start_ns for span in item[1])))


def matching(found: dict[str, list[Span]], text: str) -> list[list[Span]]:
    """The traces in which a span's name, or the value of one of its attributes, contains `text`."""
    return [
        spans
        for spans in found.values()
        if any(text in span.name or any(text in value for _, value in span.attributes) for span in spans)
    ]


def default_file() -> Path:
    """Where the scribe writes on this node if no collector is named."""
    return Path(os.environ.get("MANOR_RUN_DIR", "/run/manor")) / "spans.jsonl"


def main(arguments: Sequence[str]) -> int:
    """Print the last trace of the file, or the last that contains a text. 1 if there is none."""
    parser = argparse.ArgumentParser(prog="manor trace", description="show where the time of a start went")
    parser.add_argument(
        "text", nargs="?", default="", help="part of a container id, a pod's name, a span's name"
    )
    parser.add_argument("--file", type=Path, default=default_file(), help="OTLP JSON lines (%(default)s)")
    parser.add_argument("--all", action="store_true", help="every trace that matches, not only the last")
    asked = parser.parse_args(arguments)
    try:
        with open(asked.file, encoding="utf-8") as lines:
            found = matching(traces(parse(lines)), asked.text)
    except OSError as error:
        print(f"manor trace: {asked.file}: {error.strerror}", file=sys.stderr)
        return 1
    if not found:
        nothing = (
            f"nothing about {asked.text!r} in {asked.file}"
            if asked.text
            else f"{asked.file} has no trace yet"
        )
        print(f"manor trace: {nothing}", file=sys.stderr)
        return 1
    for spans in found if asked.all else found[-1:]:
        print("\n".join(waterfall(spans)), end="\n\n" if asked.all else "\n")
    return 0
