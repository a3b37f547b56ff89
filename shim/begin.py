"""From a launcher's child to a warden's process: leave everything behind and execute the interpreter anew.

Runs once for each warden (and for a shim that has to do without one), in the child that the launcher
forks, and loads as little as that takes. What then runs is `go_on`, and from there `shim/warden.py`.
"""

from __future__ import annotations

import _signal
import os
import sys

from runtime.errors import ManorError, describe
from runtime.linux import image, process, title
from runtime.linux.fds import OwnedFd, send_with_fds
from runtime.stages import seal
from shim.fingerprint import code_version
from shim.launcher import REFUSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

KEEPS = ("MANOR_", "OTEL_")  # of the environment of whoever started it; requests bring their own

_PROGRAM = """
import sys
sys.path.append(sys.argv[1])
from runtime.linux import image
image.begin()
from shim.begin import go_on
go_on(sys.argv[2:])
"""
_FLAGS = ("-ISBOO", "-X", "utf8")  # OO: docstrings are 0.3 MB, in every shim
_ROOM_FOR_TITLE = 1024  # only where it cannot be moved: `runtime/linux/title.py`


def check(code: str, version: str) -> None:
    """See to it that a warden which goes by `version`, its launcher's, has that code: ManorError if the directory
    `code` holds another by now. Its name would outlive an upgrade that is half done, and serve others after it is
    taken back. A launcher that was not installed has no version, and takes what there is.
    """
    if version and version.partition(" ")[0] != code_version(code):
        raise ManorError(f"the code in {code} is not what this launcher was written for: install again")


def begin(channel: int, code: str, *arguments: str) -> NoReturn:
    """Execute a warden with `channel`, a connection to the launcher, and the `arguments` of `shim.warden.main`.

    `code` is the directory of our packages. Where nothing can be executed we go on as what we are.
    """
    _detach(channel)
    command = [sys.executable, *_FLAGS, "-c", _PROGRAM, code, str(channel), *arguments]
    if not title.movable():
        command.append(" " * _ROOM_FOR_TITLE)
    environ = {name: value for name, value in os.environ.items() if name.startswith(KEEPS)}
    os.set_inheritable(channel, True)
    try:
        seal.execute(command, environ | image.ENVIRONMENT)
    except OSError:
        go_on(command[command.index(code) + 1 :])


def _detach(channel: int) -> None:
    """Be nobody's child in particular: containerd waits for the end of 1 and 2, and leaks others (251 was seen)."""
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    process.close_all_but((channel,))
    os.chdir("/")
    os.umask(0o077)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def go_on(arguments: list[str]) -> NoReturn:
    """In the new process: be what `arguments` say, with `shim.warden.main`. What is in the way the launcher is told."""
    channel = OwnedFd(int(arguments[0]))
    try:
        os.set_inheritable(channel.fileno(), False)
        # Imported by name, so that code which cannot be imported is an error that somebody hears of.
        __import__("shim.warden")
        sys.modules["shim.warden"].main(channel, *arguments[1:])
    except BaseException as failure:
        last_words(channel, failure)
    os._exit(1)


def last_words(channel: OwnedFd, failure: BaseException) -> None:
    """Tell the launcher why there is nobody to serve it."""
    if channel.closed:
        return
    try:
        send_with_fds(channel.fileno(), REFUSED + describe(failure).encode(errors="replace"))
    except OSError:
        pass  # nobody listens, and there is no other way to be heard
