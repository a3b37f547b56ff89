"""A client's program that takes a process's output: `binary://` and `binary-v2://`.

It gets the read ends of the output's pipes as descriptors 3 and 4, a pipe to say on that it is ready as 5, the query's
names and values as arguments, and CONTAINER_ID and CONTAINER_NAMESPACE as all of its environment. The process does not
start before it is ready: it has closed 5, or, of version 2, written a byte there, so that one that dies is not taken
for ready. The shim keeps none of the read ends: where the program has gone, writing fails (EPIPE), as with
containerd's own shim (pkg/process/io.go). It is asked to end (SIGTERM) when a process that has ended, and had time for
the rest of its output, leaves somebody behind who keeps the pipes open; and made to when that is deleted.
"""

from __future__ import annotations

import _signal
import fcntl
import os

from runtime.errors import ManorError, StageError, describe
from runtime.linux.fds import OwnedFd, close_all, pipe
from runtime.record import Record
from runtime.stages.channel import ChannelClosed, channel_pair
from runtime.stages.clone import clone_stage, unblock_signals
from runtime.waiting import Readable
from shim.destinations import BINARY_V2
from shim.errors import failed_precondition
from shim.loop import EPOLLIN
from shim.tasks import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from runtime.stages.channel import Channel
    from runtime.stages.clone import Step
    from runtime.waiting import Operation
    from shim.destinations import Destination
    from shim.loop import Loop, Timer
    from shim.tasks import Steps

LOGGER = "LOGGER"
READY_TIMEOUT_S = 10.0
# Between SIGTERM and SIGKILL; containerd's own shim gives as much.
TERMINATION_TIMEOUT_S = 12.0
_FIRST_FD = 3
_OUT_OF_THE_WAY = 16


class LoggerError(ManorError):
    """A logging program could not be started, or ended before it was ready; names it."""


class Owner(Record):
    """Whose output it is: the id of a container or exec, and containerd's namespace."""

    id: str
    namespace: str


class Logger:
    """One program and its pipes."""

    def __init__(self, loop: Loop, destination: Destination, numbers: tuple[int, ...]) -> None:
        self._loop = loop
        self._path = destination.path
        self._says_ready = destination.scheme == BINARY_V2
        self._arguments = [destination.path]
        for name, value in destination.parameters:
            self._arguments += (name, value)
        self.drained = Outcome()
        self._numbers = numbers
        self._write_ends: dict[int, OwnedFd] = {}
        self._pidfd = OwnedFd(-1)
        self._kill: Timer | None = None  # set once it has been asked to end

    def open(self, owner: Owner) -> Operation[None]:
        """Start the program and wait until it is ready. LoggerError."""
        given: list[OwnedFd] = []
        try:
            for number in (1, 2):
                given.append(self._read_end(number))
            ready, ready_write_end = pipe()
            given.append(ready_write_end)
            try:
                report = self._spawn(owner, given)
            except BaseException:
                ready.close()
                raise
        except OSError as error:
            raise LoggerError(f"start logger {self._path}: {describe(error)}") from error
        finally:
            close_all(given)
        with ready:
            self._loop.watch(self._pidfd.fileno(), EPOLLIN, self._on_end)
            try:
                yield Readable(report.fileno(), READY_TIMEOUT_S)
                report.receive()
            except ChannelClosed:
                pass  # by execve
            except StageError as error:
                raise LoggerError(f"start logger {self._path}: {error.message}") from None
            except TimeoutError:
                raise LoggerError(
                    f"start logger {self._path}: not done within {READY_TIMEOUT_S:g} s"
                ) from None
            finally:
                report.close()
            yield from self._wait_until_ready(ready)

    def _wait_until_ready(self, ready: OwnedFd) -> Operation[None]:
        try:
            yield Readable(ready.fileno(), READY_TIMEOUT_S)
        except TimeoutError:
            raise LoggerError(f"logger {self._path}: not ready within {READY_TIMEOUT_S:g} s") from None
        if not os.read(ready.fileno(), 1) and self._says_ready:
            raise LoggerError(f"logger {self._path}: it did not say that it is ready")

    def _read_end(self, number: int) -> OwnedFd:
        """What the program reads; a stream that does not come is one that has ended."""
        read_end, write_end = pipe()
        if number in self._numbers:
            self._write_ends[number] = write_end
        else:
            write_end.close()
        return read_end

    def _spawn(self, owner: Owner, owned: Sequence[OwnedFd]) -> Channel:
        near, far = channel_pair("main", LOGGER)
        environment = {"CONTAINER_ID": owner.id, "CONTAINER_NAMESPACE": owner.namespace}
        fds = tuple([fd.fileno() for fd in owned])

        def become(step: Step) -> None:
            step.begin("execve", self._path)
            _become(self._path, self._arguments, environment, fds, far)

        try:
            _pid, pidfd = clone_stage(LOGGER, become, far, fds)
        except OSError as error:
            near.close()
            raise LoggerError(f"start logger {self._path}: {describe(error)}") from error
        finally:
            far.close()
        self._pidfd = OwnedFd(pidfd)
        return near

    def write_end(self, number: int) -> OwnedFd:
        """What stream `number` is to be written into; the caller's from now on."""
        return self._write_ends.pop(number)

    def _on_end(self, _events: int) -> None:
        """It has ended; the reaper takes it."""
        self._loop.unwatch(self._pidfd.fileno())
        self._pidfd.close()
        if self._kill is not None:
            self._kill.cancel()
        if not self.drained.done:
            self.drained.set()

    def reopen(self) -> Steps[None]:
        """A program's files are its own."""
        yield from ()
        raise failed_precondition(f"reopen: the log is written by {self._path}")

    def finish(self) -> None:
        """Ask it to end, once, and make it after a while."""
        if not self._pidfd.closed and self._kill is None:
            self._kill = self._loop.call_later(TERMINATION_TIMEOUT_S, self._end_at_once)
            self._send(_signal.SIGTERM)

    def pending(self) -> bool:
        """True while it runs."""
        return not self._pidfd.closed

    def close(self) -> None:
        """Whoever had time to end has none left; who had none gets it."""
        close_all(self._write_ends.values())
        if self._kill is None:
            self.finish()
        else:
            self._end_at_once()

    def _end_at_once(self) -> None:
        if not self._pidfd.closed:
            self._send(_signal.SIGKILL)

    def _send(self, number: int) -> None:
        try:
            _signal.pidfd_send_signal(self._pidfd.fileno(), number)
        except ProcessLookupError:
            pass


def _become(
    path: str, arguments: list[str], environment: dict[str, str], fds: tuple[int, ...], report: Channel
) -> NoReturn:
    """In the child: the program, with `fds` from 3 on. `report` hears of it only if that fails."""
    os.setsid()
    report.continue_with(OwnedFd(_moved(report.fileno())))
    for number, fd in enumerate([_moved(fd) for fd in fds], _FIRST_FD):
        os.dup2(fd, number, inheritable=True)
    os.chdir("/")
    unblock_signals()
    os.execve(path, arguments, environment)


def _moved(fd: int) -> int:
    """A copy where no descriptor of the program's will be; it goes with execve."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY)
