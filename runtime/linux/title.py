"""What ps and /proc/PID/cmdline show of this process: its argument vector, replaced after the start.

prctl(PR_SET_MM, PR_SET_MM_MAP) (Linux 3.18, CONFIG_CHECKPOINT_RESTORE) points the kernel at a new one;
it needs no privilege, unlike the single PR_SET_MM_ARG_* calls. Where it is not to be had the old argument
area is overwritten, which holds no more than what the process was executed with: see `movable`.
"""

from __future__ import annotations

import os
import struct

from runtime.linux import constants as c
from runtime.linux.ffi import (
    addressof,
    c_int,
    c_long,
    c_size_t,
    c_ssize_t,
    c_uint,
    c_ulong,
    c_void_p,
    create_string_buffer,
    memmove,
    pythonapi,
)
from runtime.linux.libc import function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# struct prctl_mm_map: start_code end_code start_data end_data start_brk brk start_stack arg_start arg_end
# env_start env_end, auxv (kept as it is: NULL), auxv_size, exe_fd (kept: -1).
_MM_MAP = struct.Struct("=11QQIi")
_KEPT = create_string_buffer(_MM_MAP.size)  # so that there is a class of its size

_prctl = function("prctl", c_int, c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_sbrk = pythonapi["sbrk"]  # pythonapi is dlopen(NULL): everything that is loaded
_sbrk.restype = c_void_p
_sbrk.argtypes = (c_ssize_t,)

_mmap = function("mmap", c_long, c_void_p, c_size_t, c_int, c_int, c_int, c_long)
_munmap = function("munmap", c_int, c_void_p, c_size_t)
_PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS = 3, 0x22

_title: tuple[int, int] | None = None  # address and size; the kernel reads it whenever somebody asks


def movable() -> bool:
    """Whether a title of any length can be set: if not, execute with as many bytes of arguments as it shall have."""
    size = c_uint(0)
    try:
        _prctl(c.PR_SET_MM, c.PR_SET_MM_MAP_SIZE, addressof(size), 0, 0)
    except OSError:
        return False
    told: int = size.value
    return told == _MM_MAP.size


def set_title(arguments: Sequence[bytes]) -> None:
    """Show `arguments` as this process's own; cut to the length of the old ones where they cannot be moved."""
    text = b"".join(argument + b"\0" for argument in arguments)
    try:
        _move(text)
    except OSError:
        _overwrite(text)


def _fields() -> list[int]:
    """The numbers of /proc/self/stat from field 3, the state, on; [n - 3] is field n of proc_pid_stat(5)."""
    fd = os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        line = os.read(fd, 4096)
    finally:
        os.close(fd)
    return [0, *map(int, line[line.rindex(b")") + 2 :].split()[1:])]


def _move(text: bytes) -> None:
    global _title
    fields = _fields()
    start_code, end_code, start_stack = fields[26 - 3 : 29 - 3]
    start_data, end_data, start_brk, _arg_start, _arg_end, env_start, env_end = fields[45 - 3 : 52 - 3]
    # Of its own: where the kernel looks for arguments it reads no mapped file, and our memory may be one (`image`).
    start = _mmap(None, len(text), _PROT_READ_WRITE, _MAP_PRIVATE_ANONYMOUS, -1, 0)
    memmove(start, text)
    code = (start_code, end_code, start_data, end_data, start_brk, _sbrk(0), start_stack)
    mm_map = _MM_MAP.pack(*code, start, start + len(text), env_start, env_end, 0, 0, -1)
    buffer = create_string_buffer(mm_map, len(mm_map))
    try:
        _prctl(c.PR_SET_MM, c.PR_SET_MM_MAP, addressof(buffer), _MM_MAP.size, 0)
    except OSError:
        _munmap(start, len(text))
        raise
    if _title is not None:
        _munmap(*_title)
    _title = start, len(text)


def _overwrite(text: bytes) -> None:
    arg_start, arg_end = _fields()[48 - 3 : 50 - 3]
    size = arg_end - arg_start
    if size > 0:
        memmove(arg_start, text[: size - 1].ljust(size, b"\0"))
