"""What goes before a seccomp filter: ENOSYS for system calls that are newer than its profile.

A default of EPERM, or of death, would break every program whose C library tries a new call first and an
old one after ENOSYS. So numbers above the highest that the profile names are answered here, for each
architecture; the rest goes on to the filter. Like runc's stub, so that a profile means the same with both.
Pure: numbers in, BPF out.
"""

from __future__ import annotations

import errno
import struct

_64BIT, _LE = 0x80000000, 0x40000000  # linux/audit.h
X86_64 = 62 | _64BIT | _LE
X32 = 62 | _LE  # libseccomp's token; to the kernel it is X86_64 with a bit set in the call's number
_X32_BIT = 1 << 30
_S390 = (22, 22 | _64BIT)

_INSTRUCTION = struct.Struct("HBBI")  # struct sock_filter: code, jump if true, jump if false, operand
_LOAD, _JUMP, _EQUAL, _GREATER, _BITS, _RETURN = 0x20, 0x05, 0x15, 0x25, 0x45, 0x06
_NR, _ARCH = 0, 4  # offsets in struct seccomp_data
_RETURN_ENOSYS = (_RETURN, 0, 0, 0x00050000 | errno.ENOSYS)

TYPE_CHECKING = False
if TYPE_CHECKING:
    Instruction = tuple[int, int, int, int]


def enosys_prologue(last: dict[int, int]) -> bytes:
    """The instructions to put before a filter; `last` has the highest known call by architecture.

    load arch
    for each architecture:  unless arch is this one, go on with the next
                            load nr; if nr > last, return ENOSYS; else go to the filter
    the filter
    """
    sections = [(audit, [(_LOAD, 0, 0, _NR), *checks]) for audit, checks in _checks(last).items()]
    remaining = sum(len(body) + 2 for _, body in sections)
    program: list[Instruction] = [(_LOAD, 0, 0, _ARCH)]
    for audit, body in sections:
        remaining -= len(body) + 2
        program += [(_EQUAL, 0, len(body) + 1, audit), *body, (_JUMP, 0, 0, remaining)]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def _checks(last: dict[int, int]) -> dict[int, list[Instruction]]:
    checks: dict[int, list[Instruction]] = {}
    for architecture, number in last.items():
        above: list[Instruction] = [(_GREATER, 0, 1, number), _RETURN_ENOSYS]
        if architecture == X86_64:
            above.insert(0, (_BITS, 2, 0, _X32_BIT))  # x32's numbers are all above ours
        elif architecture in _S390:
            # Call 0 carries numbers too large for the instruction, and stays 0 for those the kernel has not.
            above = [(_EQUAL, 0, 1, 0), _RETURN_ENOSYS, *above]
        audit = X86_64 if architecture == X32 else architecture
        checks.setdefault(audit, []).extend(above)
    return checks
