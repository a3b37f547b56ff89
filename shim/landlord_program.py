"""The program of a pod's first process, which its containers share a PID namespace with: 36 bytes of machine code.

It has to be there, and to reap whoever is orphaned. The kernel does that for a process that ignores SIGCHLD
(wait(2), NOTES), so what is left is to say so and to sleep for ever:

    ignore SIGCHLD (rt_sigaction(2)), then pause(2), over and over

A process of Python's would do the same with a thousand times the memory, and with what a shim knows in it, in sight
of every container that may trace. It takes its signals from outside of its namespace only, which means SIGKILL.
"""

from __future__ import annotations

import os
import struct

from runtime.errors import Unsupported

_SIGCHLD = 17
_SIG_IGN = 1
_KERNEL_SIGACTION = struct.Struct("<4Q")  # the fields sa_handler, sa_flags, sa_restorer and sa_mask

# What an ELF file is made of (elf(5))
_BASE = 0x400000
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_IDENTITY = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
_ET_EXEC, _PT_LOAD, _READ_EXECUTE = 2, 1, 5


def _x86_64() -> tuple[int, bytes]:
    return 62, bytes.fromhex(
        "b80d000000"  # mov  eax, 13: rt_sigaction
        "bf11000000"  # mov  edi, 17: SIGCHLD
        "488d3513000000"  # lea  rsi, [rip + 19]: the action, behind the code
        "31d2"  # xor  edx, edx
        "41ba08000000"  # mov  r10d, 8: the size of a set of signals
        "0f05"  # syscall
        "b822000000"  # mov  eax, 34: pause
        "0f05"  # syscall
        "ebf7"  # jmp  to the mov before it
    )


def _aarch64() -> tuple[int, bytes]:
    def move(register: int, value: int) -> int:
        return 0xD2800000 | value << 5 | register  # movz Xn, #value

    call, pause = 0xD4000001, 6  # svc #0; where the loop begins, in instructions
    code = [
        move(8, 134),  # rt_sigaction
        move(0, _SIGCHLD),
        0,  # adr x1, the action: below
        move(2, 0),
        move(3, 8),
        call,
        move(8, 73),  # ppoll of nothing, for ever: there is no pause
        move(0, 0),
        move(1, 0),
        move(2, 0),
        move(3, 0),
        call,
        0,  # b, back to the loop: below
    ]
    last = len(code) - 1
    code[2] = 0x10000000 | (len(code) - 2) << 5 | 1
    code[last] = 0x14000000 | (pause - last) & 0x3FFFFFF
    return 183, struct.pack(f"<{len(code)}I", *code)


_MACHINES = {"x86_64": _x86_64, "aarch64": _aarch64}


def program(machine: str = "") -> bytes:
    """The whole file, for this machine or another. Unsupported where nobody has written it."""
    machine = machine or os.uname().machine
    if machine not in _MACHINES:
        raise Unsupported(f"containers that share a PID namespace: no landlord for {machine}")
    number, code = _MACHINES[machine]()
    content = code + _KERNEL_SIGACTION.pack(_SIG_IGN, 0, 0, 0)
    start = _HEADER.size + _PROGRAM_HEADER.size
    size = start + len(content)
    header = _HEADER.pack(
        *(_IDENTITY, _ET_EXEC, number, 1, _BASE + start, _HEADER.size, 0, 0),
        *(_HEADER.size, _PROGRAM_HEADER.size, 1, 0, 0, 0),
    )
    segment = _PROGRAM_HEADER.pack(_PT_LOAD, _READ_EXECUTE, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + content
