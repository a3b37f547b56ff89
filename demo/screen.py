"""What the demo prints: headings, commands with what they answered, and a table of times. It decides nothing."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LONG_ID = re.compile(r"\b([0-9a-f]{13})[0-9a-f]{51}\b")


def _short(text: str) -> str:
    """Identifiers of 64 digits as their first 13, the way crictl itself shows them."""
    return LONG_ID.sub(r"\1", text)


@dataclass
class Screen:
    """Prints for a person, in colour on a terminal, and remembers how long each step took."""

    colour: bool = field(default_factory=sys.stdout.isatty)
    times: list[tuple[str, float]] = field(default_factory=list)

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def heading(self, text: str) -> None:
        """Begin a chapter."""
        print(f"\n{self._paint(text, '1')}", flush=True)

    def note(self, text: str) -> None:
        """Say something about what is seen."""
        print(self._paint(f"  {text}", "2"), flush=True)

    def command(self, words: list[str]) -> None:
        """Show a command as it would be typed."""
        words = [word.rsplit("/", 1)[-1] if word.endswith(".json") else word for word in words]
        shown = " ".join(f"'{word}'" if re.search(r"[\s;$|&]", word) else word for word in words)
        print(self._paint(f"  $ {_short(shown)}", "36"), flush=True)

    def output(self, text: str) -> None:
        """Show what a command answered, without control characters and with identifiers cut short."""
        for line in CONTROL.sub("", text).replace("\r", "").strip().splitlines():
            print(f"    {_short(line)}".rstrip())
        sys.stdout.flush()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what happens inside, for the table."""
        start = time.monotonic()
        yield
        self.times.append((name, time.monotonic() - start))

    def table(self) -> None:
        """Print how long each step took, with a bar to compare by."""
        width = max(len(name) for name, _ in self.times)
        longest = max(seconds for _, seconds in self.times)
        for name, seconds in self.times:
            bar = "█" * max(1, round(30 * seconds / longest))
            print(f"  {name:<{width}} {seconds * 1000:8.1f} ms  {self._paint(bar, '32')}")
        total = sum(seconds for _, seconds in self.times)
        print(f"  {'together':<{width}} {total * 1000:8.1f} ms", flush=True)
