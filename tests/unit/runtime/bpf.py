"""An interpreter for seccomp's dialect of BPF, so that a filter's answer can be asked without living under it."""

from __future__ import annotations

import functools
import struct

_INSTRUCTION = struct.Struct("HBBI")
_DATA = struct.Struct("IIQ6Q")  # struct seccomp_data
_WORD = 0xFFFFFFFF

X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
ALLOW, KILL, LOG, TRAP, NOTIFY = 0x7FFF0000, 0, 0x7FFC0000, 0x00030000, 0x7FC00000
KILL_PROCESS = 0x80000000


def returns(number: int) -> int:
    """The answer SECCOMP_RET_ERRNO with this errno."""
    return 0x00050000 | number


def traces(number: int) -> int:
    """The answer SECCOMP_RET_TRACE with this message."""
    return 0x7FF00000 | number


@functools.lru_cache(maxsize=8)
def _decoded(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(_INSTRUCTION.iter_unpack(program))


def verdict(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the filter `program` says to a system call."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = _DATA.pack(number & _WORD, architecture, 0, *padded)
    instructions = _decoded(program)
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, operand = instructions[position]
        position += 1
        if code == 0x06:  # ret k
            return int(operand)
        if code == 0x20:  # ld [k]
            accumulator = struct.unpack_from("I", data, operand)[0]
        elif code == 0x54:  # and k
            accumulator &= operand
        elif code == 0x05:  # ja k
            position += operand
        else:
            met = {
                0x15: accumulator == operand,
                0x25: accumulator > operand,
                0x35: accumulator >= operand,
                0x45: bool(accumulator & operand),
            }[code]
            position += if_true if met else if_false
