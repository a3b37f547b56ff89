"""Names of signals."""

from __future__ import annotations

import signal

import pytest

from runtime.cli.lifecycle import signal_number
from runtime.errors import InvalidArgument


@pytest.mark.parametrize(
    "each", [each for each in signal.Signals if each.name not in ("SIGRTMIN", "SIGRTMAX")]
)
def test_every_name_in_every_way_of_writing_it(each: signal.Signals) -> None:
    bare = each.name.removeprefix("SIG")
    for text in (each.name, bare, bare.lower(), each.name.lower(), each.name.capitalize(), str(int(each))):
        assert signal_number(text) == each


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("IOT", 6), ("CLD", 17), ("POLL", 29), ("STKFLT", 16), ("0", 0), ("-9", -9), ("+9", 9), ("64", 64)),
        *(("RTMIN", signal.SIGRTMIN), ("RTMIN+3", signal.SIGRTMIN + 3), ("sigrtmax-2", signal.SIGRTMAX - 2)),
    ],
)
def test_numbers_other_names_and_realtime_signals(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "SIG",
            "FOO",
            "SIGSIGKILL",
            "9x",
            "0x9",
            "1.5",
            "KILL ",
            "_DFL",
            "SIG_BLOCK",
            "TERM+1",
            "RTMIN+",
        ),
        *("RTMIN+x", "RTMIN-1-1", "_pthread", "ITIMER_REAL", "NSIG", "\uff19", "\u0669"),
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="unknown signal"):
        signal_number(text)
