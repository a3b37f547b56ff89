"""How long the tests of each directory took, set-up and clean-up included, at the end of a run.

Its hooks are imported by a conftest.py, which has them for all tests below it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from operator import itemgetter

import pytest

_seconds: defaultdict[str, float] = defaultdict(float)
_tests: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up, by the directory of the test's file."""
    directory = report.nodeid.partition("::")[0].rpartition("/")[0]
    _seconds[directory] += report.duration
    _tests[directory] += report.when == "setup"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line each, the longest first."""
    terminalreporter.section("seconds of each directory")
    for directory, seconds in sorted(_seconds.items(), key=itemgetter(1), reverse=True):
        terminalreporter.line(f"{seconds:8.1f}s {_tests[directory]:5} tests  {directory}")
