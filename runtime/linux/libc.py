"""Calling conventions: how a C function or a bare system call is declared and how its failure becomes OSError.

`PyDLL` keeps the GIL during a call. Our processes have one thread, so there is nobody to give it to,
and a child made by clone would otherwise have to take it again.
"""

from __future__ import annotations

import errno
import os

from runtime.linux.ffi import PyDLL, c_long, get_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_libc = PyDLL(None)


def failure(name: str, subject: str | bytes | None = None) -> OSError:
    """The OSError for the errno that the last call left, naming the call and what it was about."""
    number = get_errno()
    text = f"{name}: {os.strerror(number)}"
    return OSError(number, text, subject) if subject is not None else OSError(number, text)


def function(name: str, result: Any, *arguments: Any) -> Callable[..., int]:
    """A libc function that returns −1 and sets errno on failure; EINTR is retried as PEP 475 does.

    _ctypes does not retry by itself. Do not declare close(2) or dup2(2) with this: those must not be repeated.
    """
    raw = _libc[name]
    raw.restype = result
    raw.argtypes = arguments

    def call(*values: Any) -> int:
        while True:
            got: int = raw(*values)
            if got != -1:
                return got
            if get_errno() != errno.EINTR:
                raise failure(name)

    call.__name__ = name
    return call


_syscall = _libc["syscall"]
_syscall.restype = c_long


def syscall(name: str, number: int, *arguments: Any) -> int:
    """The raw system call `number`; OSError naming `name` when it fails. Arguments are ints, bytes or buffers.

    A plain int is passed as a C int: what may need 64 bits must come as c_ulong or a pointer.
    """
    while True:
        got: int = _syscall(c_long(number), *arguments)
        if got != -1:
            return got
        if get_errno() != errno.EINTR:
            raise failure(name)
