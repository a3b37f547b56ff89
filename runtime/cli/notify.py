"""sd_notify(3) for a container: what it tells a socket of ours goes on to the one in our NOTIFY_SOCKET.

    service manager  <- READY=1, MAINPID=<init, as the host sees it>, BARRIER=1 -  manor-oci
                                                                                     ^ READY=1
    /run/notify/notify.sock in the container = <root>/<id>/notify/notify.sock -------+

The directory is bound into the container read-only, so that the socket can be made in it later, by `start`.
"""

from __future__ import annotations

import _socket
import os
import select

from runtime.cli import logs
from runtime.errors import InvalidState
from runtime.linux.fds import OwnedFd, pipe, send_with_fds
from runtime.record import replace
from runtime.spec.model import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec.model import Spec

VARIABLE = "NOTIFY_SOCKET"
DIRECTORY = "notify"
_SOCKET = "notify.sock"
_INSIDE = "/run/notify"
_MOUNT_OPTIONS = ("bind", "nosuid", "noexec", "nodev", "ro")
_MAX_MESSAGE = 4096
_READY = b"READY="
_BARRIER_TIMEOUT_MS = 30_000


class Proxy:
    """Between one container and the service manager at `host`, the value of NOTIFY_SOCKET."""

    __slots__ = ("_barrier", "_directory", "_host", "_socket")

    def __init__(self, host: str, directory: str) -> None:
        self._host = host
        self._directory = f"{directory}/{DIRECTORY}"
        self._socket: _socket.socket | None = None
        self._barrier: OwnedFd | None = None

    @classmethod
    def for_container(cls, directory: str) -> Proxy | None:
        """The proxy for the container whose state is in `directory`; None where nobody wants to be told."""
        host = os.environ.get(VARIABLE, "")
        return cls(host, directory) if host else None

    def prepare(self, spec: Spec) -> Spec:
        """`spec` with the directory mounted and the variable set."""
        mount = Mount(destination=_INSIDE, source=self._directory, options=_MOUNT_OPTIONS)
        process = replace(spec.process, env=(*spec.process.env, f"{VARIABLE}={_INSIDE}/{_SOCKET}"))
        return replace(spec, mounts=(*spec.mounts, mount), process=process)

    def listen(self) -> None:
        """Make the socket. OSError, InvalidState for a container that was created without one."""
        made = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with OwnedFd(os.open(self._directory, flags)) as place:
                # Whatever user the program becomes. By the socket: its name may be another thing's by now.
                os.fchmod(made.fileno(), 0o777)
                before = os.umask(0)
                try:
                    made.bind(f"/proc/self/fd/{place.fileno()}/{_SOCKET}")
                finally:
                    os.umask(before)
        except FileNotFoundError:
            made.close()
            raise InvalidState(f"the container was created without {VARIABLE}") from None
        except BaseException:
            made.close()
            raise
        self._socket = made

    def fileno(self) -> int:
        """The socket, to wait for."""
        assert self._socket is not None
        return self._socket.fileno()

    def close(self) -> None:
        """Hear no more."""
        if self._socket is not None:
            self._socket.close()

    def await_ready(self, pid: int, pidfd: int) -> None:
        """Wait until the container is ready, or has ended, and tell; then until that has been heard."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self.fileno() in ready:
                if self.pass_on(pid):
                    return self._await_barrier()
            elif ready:
                return None

    def pass_on(self, pid: int) -> bool:
        """Read one message; True if it said that the container is ready. The manager is told so, with `pid`."""
        assert self._socket is not None
        message = self._socket.recv(_MAX_MESSAGE)
        ready = next((line for line in message.split(b"\n") if line.startswith(_READY)), None)
        if ready is None:
            return False
        try:
            self._barrier = _tell(self._host, ready, pid)
        except OSError as error:
            logs.warn(f"{VARIABLE}: {self._host}: {logs.explain(error)}")
        return True

    def _await_barrier(self) -> None:
        if self._barrier is None:
            return
        poll = select.poll()
        poll.register(self._barrier.fileno(), select.POLLIN)
        if not poll.poll(_BARRIER_TIMEOUT_MS):
            logs.warn(f"{VARIABLE}: no answer to BARRIER=1 within 30 s")


def _tell(host: str, ready: bytes, pid: int) -> OwnedFd:
    """READY and MAINPID; the end of the pipe that is given back says that both were heard (sd_notify_barrier(3))."""
    manager = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        manager.connect("\0" + host[1:] if host.startswith("@") else host)
        manager.send(ready + b"\n")
        manager.send(b"MAINPID=%d\n" % pid)
        near, far = pipe()
        with far:
            send_with_fds(manager.fileno(), b"BARRIER=1", (far.fileno(),))
    finally:
        manager.close()
    return near
