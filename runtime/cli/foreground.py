"""Waiting for a process in the foreground: its streams or its terminal, our signals, its end.

A process in the foreground gets pipes of ours instead of our own descriptors: with those it could reopen the
file behind them for more than it was opened for, or change the settings of our terminal. Signals that come
before the process runs wait, and reach it as soon as it does.
"""

from __future__ import annotations

import _signal
import os

from runtime.cli.relays import Relay, step_all
from runtime.cli.terminal import HostTerminal, leave_newlines
from runtime.errors import InvalidState
from runtime.linux.fds import OwnedFd, pipe
from runtime.stages.plan import Stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from runtime.cli.notify import Proxy

# Signals that are ours: the kernel's about our own faults, what tells of children, what cannot be caught, those of
# a reader that has gone, and of a terminal that others have in the foreground.
_OWN = frozenset(
    (
        *(
            _signal.SIGKILL,
            _signal.SIGSTOP,
            _signal.SIGCHLD,
            _signal.SIGURG,
            _signal.SIGPIPE,
            _signal.SIGWINCH,
        ),
        *(_signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL),
        *(21, 22),  # SIGTTIN and SIGTTOU, which the type stubs do not know
        *(32, 33),  # glibc's
    )
)
FORWARDED = tuple(number for number in range(1, _signal.NSIG) if number not in _OWN)
_HELD_BACK = (*FORWARDED, _signal.SIGCHLD, _signal.SIGWINCH)
_LAST_WORDS_MS = 50  # what a terminal that others keep open may still have to say
_WALL = 0x40000000  # waitpid(2): siblings have no exit signal


def hold_signals_back() -> None:
    """Let what comes from now on wait until `Foreground.wait` can forward it."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _HELD_BACK)


class Foreground:
    """The streams between us and one process, and the wait for it. Made before the process is."""

    __slots__ = ("_console", "_host", "_near", "_outputs", "_pid", "_pidfd", "_relays", "_statuses", "far")

    def __init__(self, terminal: bool, owner: tuple[int, int]) -> None:
        self._host: HostTerminal | None = HostTerminal.find() if terminal else None
        self._console: OwnedFd | None = None
        self._pid, self._pidfd = 0, -1
        self._statuses: dict[int, int] = {}
        self._relays: list[Relay] = []
        self._outputs: list[Relay] = []
        self.far: tuple[OwnedFd, ...] = ()
        self._near: tuple[OwnedFd, ...] = ()
        if not terminal:
            pipes = [pipe() for _stream in range(3)]
            self.far = (pipes[0][0], pipes[1][1], pipes[2][1])
            self._near = (pipes[0][1], pipes[1][0], pipes[2][0])
            if owner != (0, 0):
                for fd in self.far:
                    os.fchown(fd.fileno(), *owner)

    def stdio(self) -> Stdio:
        """What the process gets; with a terminal nothing."""
        return Stdio(*(fd.fileno() for fd in self.far)) if self.far else Stdio()

    def attach(self, console: OwnedFd | None) -> None:
        """The process has been made: take the near ends, or its terminal, and let the far ones go."""
        for fd in self.far:
            fd.close()
        if self._host is None:
            stdin, stdout, stderr = self._near
            self._outputs = [Relay(stdout, 1), Relay(stderr, 2)]
            self._relays = [Relay(0, stdin), *self._outputs]
            return
        if console is None:
            raise InvalidState("the process has no terminal to hand over")
        leave_newlines(console)
        self._console = console
        self._outputs = [Relay(console, 1)]
        self._relays = [Relay(0, OwnedFd(os.dup(console.fileno()))), *self._outputs]
        self._host.pass_size_to(console.fileno())
        self._host.make_raw()

    def wait(self, pid: int, pidfd: int, proxy: Proxy | None = None) -> int:
        """Copy and forward until `pid`, a child of ours, has ended; its exit code, 128 + N for signal N.

        Until it is ready, what it tells `proxy` is passed on as well. The service manager has to watch us then: the
        process ends before us, whatever happens.
        """
        self._pid, self._pidfd = pid, pidfd
        for number in FORWARDED:
            _signal.signal(number, self._forward)
        _signal.signal(_signal.SIGWINCH, self._resize)
        _signal.signal(_signal.SIGCHLD, self._reap)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _HELD_BACK)
        while pidfd not in (ready := step_all(self._relays, self._watched(proxy))):
            if proxy is not None and proxy.fileno() in ready and proxy.pass_on(os.getpid()):
                proxy = None
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        self._reap(0, None)
        if pid not in self._statuses:  # ended, but held by who traces it: nobody may make us wait for that
            raise InvalidState(f"process {pid} has ended, and its exit status is kept from us by a tracer")
        code = os.waitstatus_to_exitcode(self._statuses[pid])
        return code if code >= 0 else 128 - code

    def _watched(self, proxy: Proxy | None) -> tuple[int, ...]:
        return (self._pidfd,) if proxy is None else (self._pidfd, proxy.fileno())

    def drain(self) -> None:
        """After the process has ended: pass on what it, and what it started, has still to say."""
        self._reap(0, None)  # killed with their container, meanwhile
        patience = _LAST_WORDS_MS if self._host is not None else None
        while any(not relay.ended for relay in self._outputs):
            if not step_all(self._outputs, timeout_ms=patience):
                break

    def close(self) -> None:
        """Put our terminal back and close everything."""
        if self._host is not None:
            self._host.restore()
        for relay in self._relays:
            relay.close()
        for fd in (*self.far, *self._near):
            fd.close()

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        try:
            _signal.pidfd_send_signal(self._pidfd, number)
        except OSError:
            pass  # it has ended

    def _resize(self, _number: int, _frame: FrameType | None) -> None:
        if self._host is not None and self._console is not None and not self._console.closed:
            self._host.pass_size_to(self._console.fileno())

    def _reap(self, _number: int, _frame: FrameType | None) -> None:
        """Collect every child that has ended: what we adopt as a subreaper, too."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | _WALL)
            except ChildProcessError:
                return
            if not pid:
                return
            self._statuses[pid] = status
