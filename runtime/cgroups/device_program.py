"""A device policy as a program of type BPF_PROG_TYPE_CGROUP_DEVICE, assembled here, instruction by instruction.

The kernel runs it on every open and mknod of a device in the cgroup (Linux 4.15) with a struct
bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }, where access_type is access << 16 | type;
returning 1 allows, 0 refuses. Pure: bytes out, nothing is loaded.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups.devices import DeviceKey, DevicePolicy

# include/uapi/linux/bpf.h, bpf_common.h
LDX_W = 0x61  # dst = *(u32 *)(src + offset)
ALU64_RSH_K = 0x77
ALU64_AND_K = 0x57
ALU64_MOV_X = 0xBF
ALU64_MOV_K = 0xB7
JMP32_JNE_K = 0x56  # Linux 5.1: compares 32 bits, so that a number from 2³¹ on is not extended by its sign
JMP_JEQ_K = 0x15
JMP_JNE_K = 0x55
EXIT = 0x95

# enum bpf_cgroup_dev_ctx
_TYPE_NUMBERS = {"b": 1, "c": 2}
_ACCESS_BITS = {"m": 1, "r": 2, "w": 4}
_ALL_ACCESS = 7

_INSTRUCTION = struct.Struct("<BBhi")
_RESULT, _CONTEXT, _TYPE, _ACCESS, _MAJOR, _MINOR, _SCRATCH = range(7)


def instruction(code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One struct bpf_insn; a `value` of 32 bits without sign is taken as the same bits with one."""
    if value >= 1 << 31:
        value -= 1 << 32
    return _INSTRUCTION.pack(code, of << 4 | to, offset, value)


def device_program(policy: DevicePolicy) -> bytes:
    """The instructions that decide as `policy` does."""
    program = [
        instruction(LDX_W, _TYPE, _CONTEXT, 0),
        instruction(ALU64_MOV_X, _ACCESS, _TYPE),
        instruction(ALU64_AND_K, _TYPE, value=0xFFFF),
        instruction(ALU64_RSH_K, _ACCESS, value=16),
        instruction(LDX_W, _MAJOR, _CONTEXT, 4),
        instruction(LDX_W, _MINOR, _CONTEXT, 8),
    ]
    for key, access in policy.exceptions:
        program += _exception(key, access, allow=not policy.allow_by_default)
    program += _answer(policy.allow_by_default)
    return b"".join(program)


def _exception(key: DeviceKey, access: str, *, allow: bool) -> list[bytes]:
    """If the request matches, answer; else go on behind the last of these instructions."""
    mask = 0
    for letter in access:
        mask |= _ACCESS_BITS[letter]
    body = [*_access_test(mask, allow=allow), *_number_tests(key), *_answer(allow)]
    tests = [(JMP_JNE_K, _TYPE, _TYPE_NUMBERS[key.type]), *body]
    code = []
    for position, step in enumerate(tests):
        if isinstance(step, bytes):
            code.append(step)
        else:
            jump, register, value = step
            code.append(instruction(jump, register, offset=len(tests) - position - 1, value=value))
    return code


def _access_test(mask: int, *, allow: bool) -> list[bytes | tuple[int, int, int]]:
    """To allow, all that is requested must be in `mask`; to refuse, some of it."""
    if mask == _ALL_ACCESS:
        return []
    copy = instruction(ALU64_MOV_X, _SCRATCH, _ACCESS)
    if allow:
        return [copy, instruction(ALU64_AND_K, _SCRATCH, value=_ALL_ACCESS & ~mask), (JMP_JNE_K, _SCRATCH, 0)]
    return [copy, instruction(ALU64_AND_K, _SCRATCH, value=mask), (JMP_JEQ_K, _SCRATCH, 0)]


def _number_tests(key: DeviceKey) -> list[bytes | tuple[int, int, int]]:
    tests: list[bytes | tuple[int, int, int]] = []
    if key.major is not None:
        tests.append((JMP32_JNE_K, _MAJOR, key.major))
    if key.minor is not None:
        tests.append((JMP32_JNE_K, _MINOR, key.minor))
    return tests


def _answer(allow: bool) -> list[bytes]:
    return [instruction(ALU64_MOV_K, _RESULT, value=int(allow)), instruction(EXIT)]
