"""What was done, how much of it was checked, what was wrong, what is only noted, how long it took."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, defaultdict
from typing import Any


class Report:
    """For any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()
        self.times: defaultdict[str, list[float]] = defaultdict(list)
        self.wrong: list[str] = []
        self.round = ""

    def count(self, what: str, number: int = 1) -> None:
        """So many more have been done, or checked."""
        with self._lock:
            self.counts[what] += number

    def note(self, what: str, number: int = 1) -> None:
        """Something that nobody promised, worth a number."""
        with self._lock:
            self.noted[what] += number

    def time(self, what: str, seconds: float) -> None:
        """How long something took."""
        with self._lock:
            self.times[what].append(seconds)

    def is_wrong(self, text: str) -> None:
        """Something that must not be; said at once, too."""
        with self._lock:
            told = f"{time.monotonic() - self._began:.1f} s, {self.round}: {text}"
            self.wrong.append(told)
            print(f"wrong: {told}", file=sys.stderr, flush=True)

    def check(self, what: str, right: bool, otherwise: str) -> None:
        """One check of the kind `what`."""
        self.count(what)
        if not right:
            self.is_wrong(otherwise)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        with self._lock:
            times = {
                name: {"median_s": round(sorted(each)[len(each) // 2], 3), "most_s": round(max(each), 3)}
                for name, each in sorted(self.times.items())
            }
            return {
                "passed": not self.wrong,
                "seconds": round(time.monotonic() - self._began, 1),
                "done": dict(sorted(self.counts.items())),
                "noted": dict(sorted(self.noted.items())),
                "times": times,
                "wrong": list(self.wrong),
            }
