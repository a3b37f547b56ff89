"""What we use of the C module below `signal`, whose enums a shim cannot afford."""

from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

NSIG: int
SIG_BLOCK: int
SIG_UNBLOCK: int
SIG_SETMASK: int
SIG_DFL: int
SIG_IGN: int
SIGHUP: int
SIGINT: int
SIGQUIT: int
SIGKILL: int
SIGUSR1: int
SIGUSR2: int
SIGPIPE: int
SIGALRM: int
SIGTERM: int
SIGCHLD: int
SIGCONT: int
SIGSTOP: int
SIGWINCH: int
SIGXFSZ: int
SIGILL: int
SIGFPE: int
SIGBUS: int
SIGSEGV: int
SIGURG: int

Handler = Callable[[int, FrameType | None], Any] | int | None

def signal(signalnum: int, handler: Handler, /) -> Handler: ...
def getsignal(signalnum: int, /) -> Handler: ...
def alarm(seconds: int, /) -> int: ...
def set_wakeup_fd(fd: int, /, *, warn_on_full_buffer: bool = ...) -> int: ...
def pthread_sigmask(how: int, mask: Iterable[int], /) -> set[int]: ...
def pidfd_send_signal(pidfd: int, signalnum: int, siginfo: None = ..., flags: int = ..., /) -> None: ...
def siginterrupt(signalnum: int, flag: bool, /) -> None: ...
def pause() -> None: ...
def strsignal(signalnum: int, /) -> str | None: ...
