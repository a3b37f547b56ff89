"""Choosing a container's lines from what ps(1) prints."""

from __future__ import annotations

import pytest

from runtime.cli.processes import chosen
from runtime.errors import Unsupported

TABLE = """\
UID        PID  PPID CMD
root         1     0 /sbin/init 12
root        12     1 sleep 7

daemon     123     1 sh -c echo PID 12
"""


def test_the_header_and_the_lines_of_these_pids() -> None:
    assert chosen(TABLE, [12]) == "UID        PID  PPID CMD\nroot        12     1 sleep 7\n"
    assert chosen(TABLE, [123, 1]).splitlines()[1:] == [
        "root         1     0 /sbin/init 12",
        "daemon     123     1 sh -c echo PID 12",
    ]
    assert chosen(TABLE, []) == "UID        PID  PPID CMD\n"


def test_the_column_may_be_anywhere() -> None:
    assert chosen("CMD PID\nsh 7\nls 8\n", [8]) == "CMD PID\nls 8\n"


def test_without_one_nothing_can_be_chosen() -> None:
    with pytest.raises(Unsupported, match="couldn't find PID field in ps output"):
        chosen("PPID CMD\n1 sh\n", [1])
    with pytest.raises(Unsupported, match="unable to parse pid: 'x'"):
        chosen("PID\nx\n", [1])
