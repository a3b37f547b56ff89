"""Init's side of the start gate: it waits for whoever starts the container, and lets tenants in meanwhile.

Who comes says what for. START: the connection is the conversation from now on, and its end before Start is the end of
init. ENTER: the answer is the container's namespaces, for a tenant of who is not root. A namespace is entered through
/proc or a pidfd by who may trace the process that is in it; a stage is not dumpable, and its memory belongs to the user
namespace that its interpreter was executed in, where such a user has no privileges. Descriptors are given by init
itself, to who can open the gate's name: its owner. So it need not become traceable, for nobody.
"""

from __future__ import annotations

import _signal
import _socket
import os

from runtime.errors import ManorError
from runtime.linux.fds import OwnedFd, close_all
from runtime.namespaces import KINDS
from runtime.stages.channel import Channel
from runtime.stages.messages import Knock, Namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    # A namespace: its CLONE_NEW* flag, and the descriptor that it can be entered by.
    Door = tuple[int, OwnedFd]

START, ENTER = "start", "enter"

ENDING_SIGNALS = (
    *(_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGUSR2),
    *(_signal.SIGALRM, _signal.SIGTERM),
)


def open_doors(kinds: int) -> tuple[Door, ...]:
    """Our own namespaces of `kinds`, the user namespace first: it gives the right to enter the others. OSError.

    To be called while /proc is still the host's.
    """
    doors: list[Door] = []
    try:
        for kind, file in KINDS.values():
            if kinds & kind:
                doors.append((kind, OwnedFd(os.open(f"/proc/self/ns/{file}", os.O_RDONLY | os.O_CLOEXEC))))
    except BaseException:
        close_doors(doors)
        raise
    return tuple(doors)


def close_doors(doors: Iterable[Door]) -> None:
    """Close every one of `doors`."""
    close_all(fd for _kind, fd in doors)


def await_start(gate: OwnedFd, doors: tuple[Door, ...]) -> OwnedFd:
    """Wait for whoever starts this container; the connection to it. `gate` and `doors` are closed then.

    There is no time limit: a created container may stay one for ever. Signals that end a process end this one
    meanwhile, so that it can be stopped: as the first process of a PID namespace it is spared all that it has no
    handler for.
    """
    for number in ENDING_SIGNALS:
        _signal.signal(number, lambda caught, _frame: os._exit(128 + caught))
    before = _signal.pthread_sigmask(_signal.SIG_UNBLOCK, ENDING_SIGNALS)
    while (starter := _admit(_accept(gate), doors)) is None:
        continue
    _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
    for number in ENDING_SIGNALS:
        _signal.signal(number, _signal.SIG_DFL)
    gate.close()
    close_doors(doors)
    return starter


def _accept(gate: OwnedFd) -> OwnedFd:
    listening = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, gate.fileno())
    try:
        number, _peer = listening._accept()  # type: ignore[attr-defined]  # noqa: SLF001
    finally:
        listening.detach()
    return OwnedFd(number)


def _admit(caller: OwnedFd, doors: tuple[Door, ...]) -> OwnedFd | None:
    """`caller`, if it is to start us; else it is answered and closed. Who goes away or talks nonsense is let be."""
    channel = Channel(caller, "who came to the start gate")
    try:
        purpose = channel.expect(Knock).purpose
        if purpose == START:
            return caller
        if purpose == ENTER:
            kinds = " ".join(str(kind) for kind, _fd in doors)
            channel.send(Namespaces(kinds), [fd.fileno() for _kind, fd in doors])
    except (OSError, ManorError):
        pass
    channel.close()
    return None
