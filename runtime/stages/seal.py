"""The seal: no container can write to the Python that the node runs, because we run from a copy.

A process that enters a container's namespaces can be found there through /proc, and with it, by a root
that is privileged enough, the files that it executes and maps (CVE-2019-5736 overwrote runc that way).
So the interpreter and its libpython are copied into memfds that nobody can change any more, and we
execute those:

    execve(memfd of python3, argv[0] = the real path, LD_PRELOAD=/proc/self/fd/N, the memfd of libpython)

What holds then: /proc/PID/exe and the mapping of libpython lead to sealed memory, whoever asks. What does
not: libc, the loader and the extension modules are the host's files. They are protected by the process
not being dumpable, and by what /proc/PID/map_files demands besides (CAP_SYS_PTRACE to look into such a
process and CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, both in the first user namespace): `host_files` lists
them. Where memfds cannot be executed (vm.memfd_noexec=2) we run as we are, and `state` says why.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

from runtime.linux.fds import OwnedFd
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import NoReturn

MFD_EXEC = 0x10  # Linux 6.3; EINVAL before, and on a 6.1 without the backport
F_SEAL_EXEC = 0x20  # Linux 6.3: the mode cannot be changed either
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

_UNSEALED = "MANOR_UNSEALED"  # brings "PID reason" through an execve that went without
_PRELOAD = "LD_PRELOAD"
_OWN_FD = "/proc/self/fd/"

_ELF = b"\x7fELF\x02"  # of 64 bits
_HEADER = struct.Struct("=32xQ14xHH")  # e_phoff, e_phentsize, e_phnum of an Elf64_Ehdr
_PROGRAM_HEADER = struct.Struct(
    "=IIQQQQ"
)  # p_type p_flags p_offset p_vaddr p_paddr p_filesz of an Elf64_Phdr
_PT_LOAD = 1


class Seal(Record):
    """Whether interpreter and libpython of this process are sealed copies; if not, why."""

    sealed: bool
    reason: str = ""

    def __str__(self) -> str:
        return "sealed" if self.sealed else f"not sealed: {self.reason}"


_state = Seal(False, "not executed from a sealed copy")


def execute(arguments: list[str], environ: Mapping[str, str]) -> NoReturn:
    """Execve this interpreter anew with `arguments` (of which [0] is its path), from sealed copies if it can be.

    The new process must call `arrive` first of all. OSError if the interpreter cannot be executed at all.
    """
    try:
        with sealed_copy("/proc/self/exe", "manor-python") as program:
            _execute_sealed(program, arguments, environ)
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        os.execve(arguments[0], arguments, {**environ, _UNSEALED: f"{os.getpid()} {reason}"})


def _execute_sealed(program: OwnedFd, arguments: list[str], environ: Mapping[str, str]) -> NoReturn:
    library = next((path for path in mapped_files() if _is_libpython(path)), None)
    if library is None:  # a static build
        os.execve(program.fileno(), arguments, environ)
    with sealed_copy(library, "manor-" + os.path.basename(library)) as copy:
        os.set_inheritable(copy.fileno(), True)  # the loader opens it in the new process; `arrive` closes it
        preload = f"{_OWN_FD}{copy.fileno()} {environ.get(_PRELOAD, '')}".strip()
        os.execve(program.fileno(), arguments, {**environ, _PRELOAD: preload})


def arrive() -> Seal:
    """Take what `execute` left in the environment out of it, and find out what we run from."""
    global _state
    reason = _reason()
    os.environ.pop(_UNSEALED, None)
    first, _space, rest = os.environ.pop(_PRELOAD, "").partition(" ")
    if not first.startswith(_OWN_FD):
        first, rest = "", f"{first} {rest}".strip()
    if rest:
        os.environ[_PRELOAD] = rest
    if first:
        os.close(int(first.removeprefix(_OWN_FD)))
    _state = _examine(reason)
    return _state


def _reason() -> str:
    """Why `execute` could not seal us; "" if it is not what we executed: whoever has set the variable otherwise."""
    pid, _blank, reason = os.environ.get(_UNSEALED, "").partition(" ")
    return reason if pid == str(os.getpid()) else ""


def state() -> Seal:
    """What `arrive` found out, for this process and all that are forked from it."""
    return _state


def _examine(reason: str) -> Seal:
    if not _is_sealed("/proc/self/exe"):
        return Seal(False, reason or "not executed from a sealed copy")
    for path in host_files():
        if _is_libpython(path):
            return Seal(False, f"the loader took {path}")
    return Seal(True)


def _is_sealed(path: str) -> bool:
    with OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        try:
            return fcntl.fcntl(fd.fileno(), fcntl.F_GET_SEALS) & SEALS == SEALS
        except OSError:  # EINVAL: no memfd
            return False


def _is_libpython(path: str) -> bool:
    return os.path.basename(path).startswith("libpython3.")


def mapped_files() -> list[str]:
    """Every file that this process maps, once, as /proc/self/maps names it (a memfd is "/memfd:NAME (deleted)")."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths = [line.rstrip("\n").split(maxsplit=5)[5:] for line in maps]
    return list(dict.fromkeys(path[0] for path in paths if path and path[0].startswith("/")))


def host_files() -> list[str]:
    """The files of the host that are mapped here: what the seal does not cover."""
    return [path for path in mapped_files() if not path.startswith("/memfd:")]


def sealed_copy(path: str, name: str) -> OwnedFd:
    """A memfd with the content of the file `path`, which nobody can change. OSError where there is none to be had."""
    with OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as source:
        try:
            copy, seals = _memfd(name, MFD_EXEC), SEALS | F_SEAL_EXEC
        except OSError as error:
            if error.errno != errno.EINVAL:  # EACCES: vm.memfd_noexec=2
                raise
            copy, seals = _memfd(name, 0), SEALS
        try:
            _copy_program(source.fileno(), copy.fileno())
            fcntl.fcntl(copy.fileno(), fcntl.F_ADD_SEALS, seals)
        except BaseException:
            copy.close()
            raise
    return copy


def _memfd(name: str, flags: int) -> OwnedFd:
    return OwnedFd(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags))


def _copy_program(source: int, target: int) -> None:
    """Copy what is loaded of an ELF file and leave holes for the rest: debug information is 3/4 of some builds."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    for start, length in _loaded_parts(source, size):
        position, end = os.lseek(target, start, os.SEEK_SET), start + length
        while position < end:
            copied = os.sendfile(target, source, position, end - position)
            if copied == 0:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            position += copied


def _loaded_parts(source: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the headers and every PT_LOAD segment (elf(5)); all of a file that is no ELF of 64 bits."""
    header = os.pread(source, 64, 0)
    if not header.startswith(_ELF) or len(header) < 64:
        yield 0, size
        return
    table, entry_size, count = _HEADER.unpack_from(header)
    yield 0, min(table + entry_size * count, size)
    for number in range(count):
        entry = os.pread(source, _PROGRAM_HEADER.size, table + number * entry_size)
        kind, _flags, offset, _virtual, _physical, length = _PROGRAM_HEADER.unpack(entry)
        if kind == _PT_LOAD:
            yield offset, min(length, size - offset)


def reexecute() -> Seal:
    """For a command that does containers' work itself: go on from sealed copies, with the same pid and arguments.

    Returns once that has been done, or has been tried in vain.
    """
    tried = _reason() != ""
    if arrive().sealed or tried:
        return state()
    execute([sys.executable, *sys.orig_argv[1:]], os.environ)
