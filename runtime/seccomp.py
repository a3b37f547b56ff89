"""Seccomp profiles: from `linux.seccomp` of a config.json to a program the kernel takes, compiled once.

libseccomp makes the program, `seccomp_enosys` what goes before it. Compiled filters are kept in memory
and on disk, so that an exec never compiles. Loading them is `runtime/linux/seccomp.py`'s business.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from runtime.errors import ConfigError, ManorError, Unsupported, describe
from runtime.linux import seccomp as linux
from runtime.linux.seccomp import Filter
from runtime.seccomp_enosys import X32, X86_64, enosys_prologue
from runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec.model import Seccomp, SeccompArgument, SeccompRule

__all__ = ["Filter", "cached", "canonical", "compile_profile", "unknown_syscalls"]

_ERRNO, _TRACE = 0x00050000, 0x7FF00000
_ACTIONS = {  # seccomp.h of libseccomp
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_TRACE": _TRACE,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
# With these a call that the profile does not name gets through: there is nothing to answer in its place.
_PERMISSIVE = ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,  # to put all threads under it; ours is one, and execve ends the others
    "SECCOMP_FILTER_FLAG_LOG": linux.SECCOMP_FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": linux.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": linux.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
}

_64BIT, _LE, _N32 = 0x80000000, 0x40000000, 0x20000000
_ARCHITECTURES = {  # libseccomp's tokens: ELF machine numbers with the audit flags of linux/audit.h
    "SCMP_ARCH_X86": 3 | _LE,
    "SCMP_ARCH_X86_64": X86_64,
    "SCMP_ARCH_X32": X32,
    "SCMP_ARCH_ARM": 40 | _LE,
    "SCMP_ARCH_AARCH64": 183 | _64BIT | _LE,
    "SCMP_ARCH_LOONGARCH64": 258 | _64BIT | _LE,
    "SCMP_ARCH_M68K": 4,
    "SCMP_ARCH_MIPS": 8,
    "SCMP_ARCH_MIPS64": 8 | _64BIT,
    "SCMP_ARCH_MIPS64N32": 8 | _64BIT | _N32,
    "SCMP_ARCH_MIPSEL": 8 | _LE,
    "SCMP_ARCH_MIPSEL64": 8 | _64BIT | _LE,
    "SCMP_ARCH_MIPSEL64N32": 8 | _64BIT | _LE | _N32,
    "SCMP_ARCH_PARISC": 15,
    "SCMP_ARCH_PARISC64": 15 | _64BIT,
    "SCMP_ARCH_PPC": 20,
    "SCMP_ARCH_PPC64": 21 | _64BIT,
    "SCMP_ARCH_PPC64LE": 21 | _64BIT | _LE,
    "SCMP_ARCH_RISCV64": 243 | _64BIT | _LE,
    "SCMP_ARCH_S390": 22,
    "SCMP_ARCH_S390X": 22 | _64BIT,
    "SCMP_ARCH_SH": 42 | _LE,
    "SCMP_ARCH_SHEB": 42,
}

_TREE_FROM = 32  # rules; libseccomp up to 2.5.4 miscompiles a binary tree of none


# ---- compiling ---------------------------------------------------------------------------------


def compile_profile(profile: Seccomp) -> Filter:
    """The filter for `profile`, through libseccomp.

    ConfigError names what the profile has wrong; Unsupported: no libseccomp here, or one too old for it.
    System calls that libseccomp does not know are left out: no kernel of its time has them.
    """
    _open_library()
    default = _action(profile.default_action, profile.default_errno_ret, "linux.seccomp.defaultAction")
    _check_notify(profile)
    flags = _flags(profile)
    architectures = _architectures(profile)
    native = linux.native_architecture()
    try:
        with linux.Compiler(default) as compiler:
            for token in architectures:
                compiler.add_architecture(token)
            if sum(len(rule.names) for rule in profile.syscalls) > _TREE_FROM:
                compiler.optimize(2)
            for index, rule in enumerate(profile.syscalls):
                _add_rule(compiler, rule, f"linux.seccomp.syscalls[{index}]", default, native)
            program = compiler.export()
    except OSError as error:
        version = ".".join(map(str, linux.library_version()))
        raise Unsupported(f"compile seccomp profile: {describe(error)} (libseccomp {version})") from error
    if profile.default_action not in _PERMISSIVE:
        program = enosys_prologue(_last_calls(profile, (native, *architectures))) + program
    if len(program) > 8 * linux.MAX_INSTRUCTIONS:
        message = f"needs {len(program) // 8} instructions, the kernel takes {linux.MAX_INSTRUCTIONS}"
        raise ConfigError("linux.seccomp", message)
    return Filter(program, flags, bool(flags & linux.SECCOMP_FILTER_FLAG_NEW_LISTENER))


def unknown_syscalls(profile: Seccomp) -> tuple[str, ...]:
    """The names in `profile` that libseccomp does not know and that are left out, for a note in the log."""
    _open_library()
    native = linux.native_architecture()
    names = dict.fromkeys(name for rule in profile.syscalls for name in rule.names)
    return tuple([name for name in names if linux.resolve(name, native) is None])


def _open_library() -> None:
    try:
        linux.preload()
    except OSError as error:
        raise Unsupported(
            f"a seccomp profile is asked for, but libseccomp cannot be loaded: {error}"
        ) from error


def _action(name: str, errno_ret: int | None, path: str) -> int:
    if name not in _ACTIONS:
        raise ConfigError(path, f"unknown seccomp action {name!r}")
    action = _ACTIONS[name]
    if action in (_ERRNO, _TRACE):
        number = errno.EPERM if errno_ret is None else errno_ret
        if not 0 <= number <= 0xFFFF:
            raise ConfigError(path, f"{number} is not an errno")
        return action | number
    if errno_ret is not None:  # config-linux.md: it "MUST print an error and fail"
        raise ConfigError(path, f"{name} does not take an errno")
    return action


def _notifies(profile: Seccomp) -> bool:
    return any(rule.action == "SCMP_ACT_NOTIFY" for rule in profile.syscalls)


def _check_notify(profile: Seccomp) -> None:
    """What notification asks of a profile. A listenerPath that nothing uses is ignored (config-linux.md)."""
    if profile.default_action == "SCMP_ACT_NOTIFY":
        raise ConfigError("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY cannot be used as default action")
    # The listener is told of by a call that the filter binds already: nobody could answer it. Who may not take it
    # out of the process then needs another such call.
    unanswered = ("write",) if os.geteuid() == 0 else ("write", "sendmsg")
    for index, rule in enumerate(profile.syscalls):
        for name in unanswered:
            if rule.action == "SCMP_ACT_NOTIFY" and name in rule.names:
                message = f"SCMP_ACT_NOTIFY cannot be used for the {name} syscall"
                raise ConfigError(f"linux.seccomp.syscalls[{index}]", message)
    if _notifies(profile) and not profile.listener_path:
        raise ConfigError("linux.seccomp.listenerPath", "SCMP_ACT_NOTIFY needs it")
    if profile.listener_metadata and not profile.listener_path:
        raise ConfigError("linux.seccomp.listenerMetadata", "there is no listenerPath to send it to")
    if "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in (profile.flags or ()) and not _notifies(profile):
        message = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY"
        raise ConfigError("linux.seccomp.flags", message)


def _flags(profile: Seccomp) -> int:
    if profile.flags is None:
        flags = linux.SECCOMP_FILTER_FLAG_SPEC_ALLOW  # as runc does; an empty list asks for none
    else:
        flags = 0
        for name in profile.flags:
            if name not in _FLAGS:
                raise ConfigError("linux.seccomp.flags", f"unknown seccomp flag {name!r}")
            flags |= _FLAGS[name]
    if _notifies(profile):
        flags |= linux.SECCOMP_FILTER_FLAG_NEW_LISTENER
    return flags


def _architectures(profile: Seccomp) -> tuple[int, ...]:
    for name in profile.architectures:
        if name not in _ARCHITECTURES:
            raise ConfigError("linux.seccomp.architectures", f"unknown architecture {name!r}")
    return tuple(dict.fromkeys(_ARCHITECTURES[name] for name in profile.architectures))


def _add_rule(compiler: linux.Compiler, rule: SeccompRule, path: str, default: int, native: int) -> None:
    action = _action(rule.action, rule.errno_ret, f"{path}.action")
    conditions = tuple([_condition(argument, f"{path}.args[{i}]") for i, argument in enumerate(rule.args)])
    indexes = [condition[0] for condition in conditions]
    # Comparisons of one rule must all hold. libseccomp takes one for each argument; a rule with two for
    # the same argument has always meant "either" to runc, and profiles rely on that.
    either = len(set(indexes)) < len(indexes)
    groups = tuple([(condition,) for condition in conditions]) if either else (conditions,)
    if action == default:
        return  # says nothing new, and libseccomp refuses it
    for name in rule.names:
        if not name:
            raise ConfigError(f"{path}.names", "an empty name is no system call")
        number = linux.resolve(name, native)
        if number is None:
            continue
        for group in groups:
            try:
                compiler.add_rule(action, number, group)
            except OSError as error:
                raise OSError(error.errno, error.strerror, name) from error


def _condition(argument: SeccompArgument, path: str) -> tuple[int, int, int, int]:
    if argument.op not in _OPERATORS:
        raise ConfigError(f"{path}.op", f"unknown comparison {argument.op!r}")
    if not 0 <= argument.index <= 5:
        raise ConfigError(f"{path}.index", f"{argument.index}: a system call has arguments 0 to 5")
    return argument.index, _OPERATORS[argument.op], argument.value, argument.value_two


def _last_calls(profile: Seccomp, architectures: tuple[int, ...]) -> dict[int, int]:
    """The highest number that the profile names, by architecture; none for one it names no call of."""
    names = {name for rule in profile.syscalls for name in rule.names}
    calls = {}
    for architecture in architectures:
        # A call that exists elsewhere has a negative number, as have those behind socketcall.
        last = max((linux.resolve(name, architecture) or 0 for name in names), default=0)
        if last > 0:
            calls[architecture] = last
    return calls


# ---- the cache ---------------------------------------------------------------------------------

# Of one version of ours: what the one before has compiled may be what has been put right.
_FORMAT = f"seccomp filter of manor {VERSION}\n".encode()
_HEADER = struct.Struct("<3HHIII")  # libseccomp's version, 0, flags, bytes of profile, bytes of program
_MAX_FILE = 4 << 20
_MAX_IN_MEMORY = 32  # profiles; a pod has one or two
_MERSENNE = 2**127 - 1

_in_memory: dict[bytes, Filter] = {}


def cached(profile: Seccomp, directory: str) -> Filter:
    """The filter for `profile` from memory, else from `directory`, else compiled and put into both.

    `directory` is made (0700) if it is not there; one that others can write to is not used. A file counts
    only if it holds this very profile, was made by this libseccomp, and is root's alone (0600). Errors as
    `compile_profile`; that something cannot be kept on disk is none.
    """
    _open_library()
    _check_notify(profile)  # not all of what it looks at is part of the key
    key = canonical(profile)
    compiled = _in_memory.get(key)
    if compiled is None:
        compiled = _from_disk(key, directory)
        if compiled is None:
            compiled = compile_profile(profile)
            _to_disk(key, compiled, directory)
        if len(_in_memory) >= _MAX_IN_MEMORY:
            _in_memory.clear()
        _in_memory[key] = compiled
    return compiled


def canonical(profile: Seccomp) -> bytes:
    """What decides about the filter of `profile`, as bytes that are equal for equal profiles only."""
    rules = tuple(
        [
            (
                rule.names,
                rule.action,
                rule.errno_ret,
                tuple([(a.index, a.op, a.value, a.value_two) for a in rule.args]),
            )
            for rule in profile.syscalls
        ]
    )
    parts = (profile.default_action, profile.default_errno_ret, profile.architectures, profile.flags, rules)
    return repr(parts).encode("utf-8", "surrogateescape")


def _file_name(key: bytes) -> str:
    """A name, not a proof: the file holds the whole key and is checked against it."""
    return f"{len(key):x}-{int.from_bytes(key, 'little') % _MERSENNE:032x}"


def _header(key: bytes, compiled: Filter) -> bytes:
    sizes = (len(key), len(compiled.program))
    return _FORMAT + _HEADER.pack(*linux.library_version(), 0, compiled.flags, *sizes)


def _open_directory(directory: str) -> int | None:
    try:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None  # no place to keep filters: they are compiled each time
    if _is_private(os.fstat(fd)):
        return fd
    os.close(fd)
    return None


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _from_disk(key: bytes, directory: str) -> Filter | None:
    directory_fd = _open_directory(directory)
    if directory_fd is None:
        return None
    try:
        data = _read_private(_file_name(key), directory_fd)
    finally:
        os.close(directory_fd)
    start = len(_FORMAT) + _HEADER.size
    if len(data) < start or not data.startswith(_FORMAT):
        return None
    flags = _HEADER.unpack_from(data, len(_FORMAT))[4]
    program = data[start + len(key) :]
    compiled = Filter(program, flags, bool(flags & linux.SECCOMP_FILTER_FLAG_NEW_LISTENER))
    fits = 0 < len(program) <= 8 * linux.MAX_INSTRUCTIONS and len(program) % 8 == 0
    return compiled if fits and data.startswith(_header(key, compiled) + key) else None


def _read_private(name: str, directory_fd: int) -> bytes:
    """The whole of a regular file that is ours alone; b"" if it is not there or anything else."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _is_private(status) or status.st_size > _MAX_FILE:
            return b""
        return os.read(fd, status.st_size)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _to_disk(key: bytes, compiled: Filter, directory: str) -> None:
    """Write the file beside its place and rename it there: a reader sees all of it or nothing."""
    directory_fd = _open_directory(directory)
    if directory_fd is None:
        return
    name = _file_name(key)
    partial = f".{name}.{os.getpid()}"
    try:
        fd = os.open(
            partial,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o600,
            dir_fd=directory_fd,
        )
        try:
            data = _header(key, compiled) + key + compiled.program
            if os.write(fd, data) != len(data):
                raise ManorError(f"write {partial}: not all of it")
        finally:
            os.close(fd)
        os.rename(partial, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    except (OSError, ManorError):
        # A full disk, or a second writer with our pid in another PID namespace: the filter itself is fine.
        try:
            os.unlink(partial, dir_fd=directory_fd)
        except OSError:
            pass
    finally:
        os.close(directory_fd)
