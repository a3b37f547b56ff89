"""Seccomp at the door: seccomp(2) to load a filter, and libseccomp to make its program.

libseccomp is opened once, by name, in a process that has all of the host's files; `preload` is for the
warden, so that no shim must. What a profile means is `runtime/seccomp.py`'s business.
"""

from __future__ import annotations

import errno
import os
import struct

from runtime.linux import constants as c
from runtime.linux.ffi import PyDLL, c_char_p, c_int, c_uint, c_ulong, c_void_p, string_at
from runtime.linux.libc import syscall
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

_LIBRARY = "libseccomp.so.2"

# linux/seccomp.h
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_LOG = 1 << 1  # Linux 4.14
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1 << 2  # Linux 4.17
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3  # Linux 5.0
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5  # Linux 5.19
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

# seccomp.h of libseccomp: enum scmp_filter_attr
SCMP_FLTATR_CTL_OPTIMIZE = 8  # libseccomp 2.5

_NR_SCMP_ERROR = -1
_SYS_seccomp = c.syscall_number("seccomp")
_ARGUMENT = struct.Struct("IiQQ")  # struct scmp_arg_cmp: index, operator, two values
_PROGRAM = struct.Struct("HP")  # struct sock_fprog

_FUNCTIONS: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
    ("seccomp_version", c_void_p, ()),
    ("seccomp_init", c_void_p, (c_uint,)),
    ("seccomp_release", None, (c_void_p,)),
    ("seccomp_arch_native", c_uint, ()),
    ("seccomp_arch_add", c_int, (c_void_p, c_uint)),
    ("seccomp_attr_set", c_int, (c_void_p, c_int, c_uint)),
    ("seccomp_syscall_resolve_name_arch", c_int, (c_uint, c_char_p)),
    ("seccomp_rule_add_array", c_int, (c_void_p, c_uint, c_int, c_uint, c_char_p)),
    ("seccomp_export_bpf", c_int, (c_void_p, c_int)),
)
_library: Any = None


class Filter(Record):
    """A compiled filter: BPF `program`, `flags` of seccomp(2), and whether it has a notification listener."""

    program: bytes
    flags: int = 0
    notify: bool = False


def load(compiled: Filter) -> int:
    """seccomp(2): put the calling thread under the filter for good; its listener (close-on-exec), else -1.

    It needs no_new_privs or CAP_SYS_ADMIN (EACCES). EINVAL: a flag this kernel has not, or a program it
    refuses; EBUSY: the thread has a listener already. Everything that follows is under the filter.
    """
    count = len(compiled.program) // 8
    address = c_void_p.from_buffer(c_char_p(compiled.program)).value
    try:
        got = syscall(
            "seccomp",
            _SYS_seccomp,
            c_uint(SECCOMP_SET_MODE_FILTER),
            c_ulong(compiled.flags),
            _PROGRAM.pack(count, address),
        )
    except OSError as error:
        subject = f"filter of {count} instructions, flags {compiled.flags:#x}"
        raise OSError(error.errno, f"seccomp: {os.strerror(error.errno or 0)}", subject) from error
    return got if compiled.flags & SECCOMP_FILTER_FLAG_NEW_LISTENER else -1


# ---- libseccomp --------------------------------------------------------------------------------


def preload() -> Any:
    """Open libseccomp if that has not been done; OSError if the machine has none."""
    global _library
    if _library is None:
        library = PyDLL(_LIBRARY)
        for name, result, arguments in _FUNCTIONS:
            function = getattr(library, name)  # kept by the library; an item would be a new object each time
            function.restype, function.argtypes = result, arguments
        _library = library
    return _library


def library_version() -> tuple[int, int, int]:
    """The version of the libseccomp in use."""
    major, minor, micro = struct.unpack("3I", string_at(preload().seccomp_version(), 12))
    return major, minor, micro


def native_architecture() -> int:
    """The token libseccomp has for the architecture we run on."""
    token: int = preload().seccomp_arch_native()
    return token


def resolve(name: str, architecture: int) -> int | None:
    """The number of system call `name`, None if libseccomp has never heard of it.

    A negative one stands for a call that exists, but not on this architecture.
    """
    number: int = preload().seccomp_syscall_resolve_name_arch(architecture, name.encode())
    return None if number == _NR_SCMP_ERROR else number


class Compiler:
    """One filter in the making (scmp_filter_ctx); a context manager. Its methods raise OSError."""

    __slots__ = ("_context", "_library")

    def __init__(self, default_action: int) -> None:
        self._library = preload()
        self._context = self._library.seccomp_init(default_action)
        if not self._context:
            raise OSError(errno.EINVAL, "seccomp_init: the default action is not supported here")

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_failure: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._library.seccomp_release(self._context)

    def add_architecture(self, token: int) -> None:
        """seccomp_arch_add(3); adding one twice does nothing."""
        if (got := self._library.seccomp_arch_add(self._context, token)) not in (0, -errno.EEXIST):
            raise _failure("seccomp_arch_add", got)

    def optimize(self, level: int) -> None:
        """Attribute CTL_OPTIMIZE: 2 sorts the calls into a binary tree."""
        if got := self._library.seccomp_attr_set(self._context, SCMP_FLTATR_CTL_OPTIMIZE, level):
            raise _failure("seccomp_attr_set", got)

    def add_rule(self, action: int, number: int, arguments: tuple[tuple[int, int, int, int], ...]) -> None:
        """seccomp_rule_add_array(3): `action` for call `number` where all of `arguments` hold.

        Each is (index, operator, value, second value); for a masked comparison the first value is the mask.
        """
        packed = b"".join(_ARGUMENT.pack(*argument) for argument in arguments)
        got = self._library.seccomp_rule_add_array(self._context, action, number, len(arguments), packed)
        if got:
            raise _failure("seccomp_rule_add_array", got)

    def export(self) -> bytes:
        """seccomp_export_bpf(3): the program, eight bytes an instruction, in the machine's byte order."""
        fd = os.memfd_create("seccomp-filter", os.MFD_CLOEXEC)
        try:
            if got := self._library.seccomp_export_bpf(self._context, fd):
                raise _failure("seccomp_export_bpf", got)
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)


def _failure(name: str, got: int) -> OSError:
    return OSError(-got, f"{name}: {os.strerror(-got)}")
