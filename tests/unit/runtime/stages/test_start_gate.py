"""Init at its start gate: who starts it, who only comes to enter, and who goes away again."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import state
from runtime.errors import InvalidState
from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd
from runtime.operations.gate import knock_to_enter, knock_to_start, make_gate
from runtime.stages.channel import Channel
from runtime.stages.messages import Start
from runtime.stages.start_gate import await_start, close_doors, open_doors
from runtime.waiting import run

DEADLINE_S = 30
KINDS = c.CLONE_NEWUTS | c.CLONE_NEWUSER | c.CLONE_NEWNET


class Init:
    """A process that waits at the gate of `directory`, and then for Start."""

    def __init__(self, directory: Path, kinds: int) -> None:
        self.directory = str(directory)
        gate = make_gate(self.directory)
        self.pid = os.fork()
        if not self.pid:
            os._exit(self._wait(gate, kinds))
        gate.close()

    def _wait(self, gate: OwnedFd, kinds: int) -> int:
        try:
            doors = open_doors(kinds)
            caller = Channel(await_start(gate, doors), "who starts us")
            if not gate.closed or any(not fd.closed for _kind, fd in doors):
                return 3
            caller.expect(Start)
        except BaseException:
            return 1
        return 0

    def call(self) -> socket.socket:
        caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        caller.settimeout(DEADLINE_S)
        caller.connect(f"{self.directory}/{state.GATE}")
        return caller

    def end(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def init(tmp_path: Path) -> Iterator[Init]:
    waiting = Init(tmp_path, KINDS)
    yield waiting
    try:
        os.kill(waiting.pid, signal.SIGKILL)
        waiting.end()
    except (ProcessLookupError, ChildProcessError):
        pass


def start(init: Init) -> int:
    with_init = knock_to_start(init.directory, "c")
    with_init.send(Start())
    code = init.end()
    with_init.close()
    return code


def test_who_starts_it_is_heard_and_the_gate_is_gone(init: Init) -> None:
    assert start(init) == 0
    assert os.listdir(init.directory) == []
    with pytest.raises(InvalidState, match="nobody waits at its start gate"):
        knock_to_start(init.directory, "c")
    assert run(knock_to_enter(init.directory)) == ()


def test_who_comes_to_enter_gets_its_namespaces_the_user_namespace_first(init: Init) -> None:
    for _ in range(3):
        doors = run(knock_to_enter(init.directory))
        assert [kind for kind, _fd in doors] == [c.CLONE_NEWUSER, c.CLONE_NEWNET, c.CLONE_NEWUTS]
        for (_kind, fd), name in zip(doors, ("user", "net", "uts"), strict=True):
            assert os.readlink(f"/proc/self/fd/{fd.fileno()}") == os.readlink(f"/proc/self/ns/{name}")
            assert not os.get_inheritable(fd.fileno())
            fd.close()
    assert os.listdir(init.directory) == [state.GATE]
    assert start(init) == 0


def test_one_that_gives_none_says_so(tmp_path: Path) -> None:
    init = Init(tmp_path, 0)
    assert run(knock_to_enter(init.directory)) == ()
    assert start(init) == 0


@pytest.mark.parametrize(
    "said", [b"", b"\xff\xfe", b"Start", b"Knock\0to nobody", b"Knock", b"Created\0007\0gate", b"x" * 4096]
)
def test_who_goes_away_or_talks_nonsense_is_let_be(init: Init, said: bytes) -> None:
    with init.call() as caller:
        if said:
            caller.send(said)
            assert caller.recv(10) == b"", "it is not answered"
    assert start(init) == 0


def test_whose_start_ends_half_way_ends_it(init: Init) -> None:
    knock_to_start(init.directory, "c").close()
    assert init.end() == 1


def test_a_gate_that_is_closed_meanwhile_lets_nobody_in(tmp_path: Path) -> None:
    gate = make_gate(str(tmp_path))
    entering = knock_to_enter(str(tmp_path))
    next(entering)
    gate.close()
    with pytest.raises(StopIteration) as end:
        next(entering)
    assert end.value.value == ()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it(init: Init, number: int) -> None:
    close_doors(run(knock_to_enter(init.directory)))  # it is there
    os.kill(init.pid, number)
    assert init.end() == 128 + number
