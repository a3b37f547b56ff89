"""bpf(2), as far as device programs on a cgroup need it: load, attach with replacement, query, detach.

What a program says is decided in `runtime/cgroups/device_program.py`.
"""

from __future__ import annotations

import struct

from runtime.linux import constants as c
from runtime.linux.fds import OwnedFd
from runtime.linux.ffi import Array, addressof, c_char, c_uint, create_string_buffer
from runtime.linux.libc import syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    Buffer = Array[c_char]

# include/uapi/linux/bpf.h: enum bpf_cmd, bpf_prog_type, bpf_attach_type, flags
BPF_PROG_LOAD = 5
BPF_PROG_ATTACH = 8
BPF_PROG_DETACH = 9
BPF_PROG_GET_FD_BY_ID = 13
BPF_OBJ_GET_INFO_BY_FD = 15
BPF_PROG_QUERY = 16
BPF_PROG_TYPE_CGROUP_DEVICE = 15  # Linux 4.15
BPF_CGROUP_DEVICE = 6
BPF_F_ALLOW_MULTI = 2
BPF_F_REPLACE = 4  # Linux 5.6
_BPF_OBJ_NAME_LEN = 16

_SYS_bpf = c.syscall_number("bpf")
_INSTRUCTION_SIZE = 8
_MOST_PROGRAMS = 64  # BPF_CGROUP_MAX_PROGS
_LOG_SIZE = 16_384
_INFO_SIZE = 128
_INFO_NAME_OFFSET = 64  # of `name` in struct bpf_prog_info


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """The system call: its result, and `attributes` as the kernel left them."""
    buffer = create_string_buffer(attributes, len(attributes))
    result = syscall("bpf", _SYS_bpf, c_uint(command), buffer, c_uint(len(attributes)))
    return result, buffer.raw


def prog_load_cgroup_device(program: bytes, name: str) -> OwnedFd:
    """BPF_PROG_LOAD of a BPF_PROG_TYPE_CGROUP_DEVICE `program`; the fd is close-on-exec by itself.

    OSError: EPERM without CAP_BPF and CAP_NET_ADMIN (or CAP_SYS_ADMIN), EINVAL or EACCES with the verifier's
    words when it refuses the program.
    """
    code = create_string_buffer(program, len(program))
    license_text = create_string_buffer(b"Apache-2.0")
    try:
        return OwnedFd(_load(code, license_text, name, None))
    except OSError as error:
        log = create_string_buffer(_LOG_SIZE)
        try:
            return OwnedFd(_load(code, license_text, name, log))
        except OSError:
            said = log.value.decode("ascii", "replace").strip().rpartition("\n")[2]
            raise OSError(error.errno, f"{error.strerror}{': ' if said else ''}{said}") from error


def _load(code: Buffer, license_text: Buffer, name: str, log: Buffer | None) -> int:
    attributes = struct.pack(
        "<IIQQIIQII16sI",
        BPF_PROG_TYPE_CGROUP_DEVICE,
        len(code) // _INSTRUCTION_SIZE,
        addressof(code),
        addressof(license_text),
        1 if log is not None else 0,
        len(log) if log is not None else 0,
        addressof(log) if log is not None else 0,
        0,  # kern_version
        0,  # prog_flags
        name.encode()[: _BPF_OBJ_NAME_LEN - 1],
        0,  # prog_ifindex
    )
    return _bpf(BPF_PROG_LOAD, attributes)[0]


def prog_attach(cgroup: int, program: int, kind: int, replace: int = -1) -> None:
    """BPF_PROG_ATTACH of `program` to the directory `cgroup`, beside others; with `replace` (Linux 5.6) in the
    place of that one, with no moment between. OSError.
    """
    flags = BPF_F_ALLOW_MULTI if replace < 0 else BPF_F_ALLOW_MULTI | BPF_F_REPLACE
    _bpf(BPF_PROG_ATTACH, struct.pack("<IIIII", cgroup, program, kind, flags, max(replace, 0)))


def prog_detach(cgroup: int, program: int, kind: int) -> None:
    """BPF_PROG_DETACH; OSError (ENOENT) if it is not attached there."""
    _bpf(BPF_PROG_DETACH, struct.pack("<III", cgroup, program, kind))


def prog_query(cgroup: int, kind: int) -> tuple[int, ...]:
    """BPF_PROG_QUERY: the ids of the programs attached to `cgroup` itself, not to its parents. OSError."""
    ids = create_string_buffer(4 * _MOST_PROGRAMS)
    attributes = struct.pack("<IIIIQII", cgroup, kind, 0, 0, addressof(ids), _MOST_PROGRAMS, 0)
    _result, answer = _bpf(BPF_PROG_QUERY, attributes)
    (count,) = struct.unpack_from("<I", answer, 24)
    return struct.unpack_from(f"<{count}I", ids)


def prog_get_fd_by_id(program_id: int) -> OwnedFd:
    """BPF_PROG_GET_FD_BY_ID; OSError (ENOENT) if that program is gone, EPERM without CAP_SYS_ADMIN."""
    return OwnedFd(_bpf(BPF_PROG_GET_FD_BY_ID, struct.pack("<III", program_id, 0, 0))[0])


def prog_name(program: int) -> str:
    """The name that the loaded `program` was given (Linux 4.15)."""
    info = create_string_buffer(_INFO_SIZE)
    _bpf(BPF_OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", program, _INFO_SIZE, addressof(info)))
    name: bytes = info.raw[_INFO_NAME_OFFSET : _INFO_NAME_OFFSET + _BPF_OBJ_NAME_LEN]
    return name.partition(b"\0")[0].decode("ascii", "replace")
