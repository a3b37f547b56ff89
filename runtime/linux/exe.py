"""The file that a process executes, exchanged while it runs: prctl(2), PR_SET_MM_MAP.

The kernel lets go of the old file once nothing of it is mapped; so a copy is mapped over each of its mappings
first. This is for programs that are not at work in that file themselves: an interpreter whose code is in a library.
"""

from __future__ import annotations

import errno
import os
import struct

from runtime.linux.ffi import (
    addressof,
    c_int,
    c_long,
    c_size_t,
    c_void_p,
    create_string_buffer,
    memmove,
    string_at,
)
from runtime.linux.libc import function
from runtime.linux.process import prctl

_EXE = "/proc/self/exe"
_READ, _WRITE, _EXECUTE = 1, 2, 4  # mmap(2)
_MAP_PRIVATE, _MAP_FIXED = 2, 0x10
_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
# struct prctl_mm_map: start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end,
# env_start, env_end, auxv, auxv_size (0: as it is), exe_fd
_MM_MAP = struct.Struct("=12QII")
# The same in proc_pid_stat(5), by the numbers of the fields; the break itself is not among them.
_CODE, _DATA, _START_BRK, _STACK, _ARGUMENTS = (26, 27), (45, 46), (47,), (28,), (48, 49, 50, 51)


def exchange_exe(copy: int) -> None:
    """Execute the file behind `copy`, which has the same content, from now on: /proc/PID/exe leads to it.

    Linux 3.18, with CONFIG_CHECKPOINT_RESTORE. OSError: ENOTSUP where the interpreter is in that file, EPERM without
    CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE in our user namespace, EACCES for a file that may not be executed,
    EINVAL for a kernel without the call. All works on after a failure.
    """
    mappings = _mappings(_EXE)
    if any(start <= id(None) < start + length for start, length, _protection, _offset in mappings):
        # A static build: its data would change between being read and being put back.
        raise OSError(errno.ENOTSUP, "the interpreter is in the executable itself")
    mmap = function("mmap", c_long, c_void_p, c_size_t, c_int, c_int, c_int, c_long)
    mprotect = function("mprotect", c_int, c_void_p, c_size_t, c_int)
    for start, length, protection, offset in mappings:
        content = string_at(start, length)
        mmap(start, length, protection, _MAP_PRIVATE | _MAP_FIXED, copy, offset)
        if string_at(start, length) != content:  # relocated, or written to since
            mprotect(start, length, _READ | _WRITE)
            memmove(start, content)
            mprotect(start, length, protection)
    description = create_string_buffer(_describe(copy), _MM_MAP.size)
    prctl(_PR_SET_MM, _PR_SET_MM_MAP, addressof(description), _MM_MAP.size)


def _mappings(path: str) -> list[tuple[int, int, int, int]]:
    """(address, length, protection, offset) of every mapping of the file `path` (proc_pid_maps(5))."""
    status = os.stat(path)
    wanted = [f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", str(status.st_ino)]
    found = []
    for line in _read("/proc/self/maps").splitlines():
        span, flags, offset, *file = line.split(maxsplit=5)[:5]
        if file == wanted:
            start, end = (int(each, 16) for each in span.split("-"))
            letters = ((_READ, "r"), (_WRITE, "w"), (_EXECUTE, "x"))
            protection = sum(bit for bit, letter in letters if letter in flags)
            found.append((start, end - start, protection, int(offset, 16)))
    return found


def _describe(exe: int) -> bytes:
    """What the kernel knows of our memory, with another executable."""
    fields = _read("/proc/self/stat").rpartition(")")[2].split()

    def known(*numbers: int) -> list[int]:
        return [int(fields[number - 3]) for number in numbers]

    now = function("sbrk", c_long, c_long)(0)
    places = (*known(*_CODE), *known(*_DATA), *known(*_START_BRK), now, *known(*_STACK), *known(*_ARGUMENTS))
    return _MM_MAP.pack(*places, 0, 0, exe)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
