"""What create and run make of their options and of what they were started with."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from runtime.cli import handover, launch
from runtime.cli.arguments import Call, Globals
from runtime.cli.create import VERBS
from runtime.errors import InvalidArgument
from runtime.spec.model import Process


@pytest.mark.parametrize(
    ("pid", "count", "found"),
    [
        ("own", "2", 2),
        ("own", "0", 0),
        ("own", "", 0),
        ("own", "x", 0),
        ("own", "-1", 0),
        ("1", "2", 0),
        ("", "2", 0),
    ],
)
def test_sockets_are_ours_if_they_were_passed_to_our_pid(
    monkeypatch: pytest.MonkeyPatch, pid: str, count: str, found: int
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "own" else pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    assert launch.passed_fds() == found


@pytest.fixture
def number() -> Iterator[int]:
    """The number of an open descriptor that comes through an execve."""
    fd = os.open("/dev/null", os.O_RDONLY)
    high = os.dup2(fd, 200, inheritable=True)
    os.close(fd)
    yield high
    os.close(high)


def test_an_inherited_descriptor_is_preserved(number: int) -> None:
    assert handover.check_preserved(number - 3, 1) == number - 2
    assert handover.check_preserved(5, 0) == 5


def test_one_that_is_not_open_is_named(number: int) -> None:
    with pytest.raises(InvalidArgument, match=r"preserved-fd 1 \(of 2\): descriptor 201 is not open"):
        handover.check_preserved(number - 3, 2)


def test_one_of_ours_is_not_the_callers(number: int) -> None:
    os.set_inheritable(number, False)
    with pytest.raises(InvalidArgument, match=r"preserved-fd 0 \(of 1\): descriptor 200 is not open"):
        handover.check_preserved(number - 3, 1)


@pytest.mark.parametrize(
    ("terminal", "detach", "socket", "told"),
    [
        (False, True, "", ""),
        (False, False, "", ""),
        (True, False, "", ""),
        (True, True, "x", ""),
        (True, True, "", "cannot allocate tty if p will detach without setting console socket"),
        (True, False, "x", "cannot use console socket if p will not detach or allocate tty"),
        (False, True, "x", "cannot use console socket if p will not detach or allocate tty"),
        (False, False, "x", "cannot use console socket if p will not detach or allocate tty"),
    ],
)
def test_a_terminal_must_have_somebody_to_go_to(terminal: bool, detach: bool, socket: str, told: str) -> None:
    call = Call(VERBS["create"], {"console-socket": socket}, [], Globals("/run/x"), program="p")
    process = Process(terminal=terminal)
    if told:
        with pytest.raises(InvalidArgument, match=f"^{told}$"):
            handover.check_terminal(call, process, detach)
    else:
        handover.check_terminal(call, process, detach)
