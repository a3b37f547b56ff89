"""The sealed copy of the interpreter: what it holds, that nobody can write to it, what is said where there is none."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.stages import seal
from tests.unit.shim.installed import CHECKOUT, as_python

# What a process that was executed through the seal says of itself.
TELL = f"""
import sys; sys.path.append({str(CHECKOUT)!r})
from runtime.stages import seal
import os
state = seal.arrive()
print((str(state), sys.executable, sys.prefix, os.readlink("/proc/self/exe"), dict(os.environ), seal.host_files(),
    sorted(int(fd) for fd in os.listdir("/proc/self/fd")), sys.argv))
"""


def told(
    environ: dict[str, str], prepare: str = ""
) -> tuple[str, str, str, str, dict[str, str], list[str], list[int]]:
    source = f"""
import os
from runtime.stages import seal
{prepare}
seal.execute([sys.executable, "-ISB", "-c", {TELL!r}, "argument"], {environ!r})
"""
    done = subprocess.run(as_python(source), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = eval(done.stdout)
    assert facts[-1] == ["-c", "argument"]
    return facts[:-1]  # type: ignore[no-any-return]


def test_a_sealed_process_is_the_same_python_run_from_memory() -> None:
    state, executable, prefix, program, environ, files, fds = told({"A": "b"})
    assert state == "sealed"
    assert program == "/memfd:manor-python (deleted)"
    plain = subprocess.run(
        [sys.executable, "-ISB", "-c", "import sys; print(sys.executable, sys.prefix)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{executable} {prefix}\n" == plain.stdout
    assert environ.pop("LC_CTYPE", "C.UTF-8") == "C.UTF-8"
    assert environ == {"A": "b"}  # and no LD_PRELOAD for those it starts
    assert not [path for path in files if "libpython" in path]
    assert [path for path in files if "libc" in path]  # what is not covered is not hidden
    assert fds == [0, 1, 2, 3]  # 3 lists the others


def test_a_library_that_is_preloaded_for_another_reason_stays() -> None:
    (libc,) = (path for path in seal.host_files() if os.path.basename(path).startswith("libc.so"))
    state, *_others, environ, _files, _fds = told({"LD_PRELOAD": libc})
    assert (state, environ["LD_PRELOAD"]) == ("sealed", libc)


def refuse(number: int, flag: int) -> str:
    return f"""
real = os.memfd_create
def memfd_create(name, flags):
    if flags & {flag}:
        raise OSError({number}, os.strerror({number}))
    return real(name, flags)
os.memfd_create = memfd_create
"""


def test_a_kernel_without_mfd_exec_seals_all_the_same() -> None:
    state, *_rest = told({}, refuse(errno.EINVAL, seal.MFD_EXEC))
    assert state == "sealed"


def test_where_memfds_must_not_be_executed_the_reason_is_kept() -> None:
    state, _executable, _prefix, program, environ, files, _fds = told(
        {}, refuse(errno.EACCES, os.MFD_CLOEXEC)
    )
    assert state == "not sealed: Permission denied"
    assert program == os.path.realpath(sys.executable)
    assert program in files
    assert "MANOR_UNSEALED" not in environ


def test_an_ordinary_process_knows_that_it_is_not_sealed() -> None:
    done = subprocess.run([sys.executable, "-ISB", "-c", TELL], capture_output=True, text=True, check=True)
    assert eval(done.stdout)[0] == "not sealed: not executed from a sealed copy"


def test_a_command_seals_itself_and_stays_the_same_process() -> None:
    source = """
import os
from runtime.stages import seal
print(os.getpid(), seal.reexecute(), sys.argv[1:], flush=True)
"""
    with subprocess.Popen([*as_python(source), "a", ""], stdout=subprocess.PIPE, text=True) as command:
        output, _errors = command.communicate()
    assert output == f"{command.pid} sealed ['a', '']\n"


@pytest.mark.parametrize("value", ["", "1", "not sealed", "1 not sealed"])
def test_the_environment_keeps_nobody_from_sealing_itself(value: str) -> None:
    """Only what this very process has left there counts: an execve keeps the pid."""
    source = "from runtime.stages import seal; import os; print(seal.reexecute(), os.environ.get('MANOR_UNSEALED'))"
    done = subprocess.run(
        as_python(source), env={"MANOR_UNSEALED": value}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "sealed None\n"


def test_a_command_that_cannot_be_sealed_tries_once() -> None:
    source = refuse(errno.EACCES, os.MFD_CLOEXEC) + "from runtime.stages import seal; print(seal.reexecute())"
    source = "import errno, os\n" + source
    done = subprocess.run(as_python(source), capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "not sealed: Permission denied\n"


def test_a_sealed_copy_cannot_be_changed(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"#!/bin/sh\n" + b"x" * 10_000)
    with seal.sealed_copy(str(program), "copy") as copy:
        fd = copy.fileno()
        assert os.pread(fd, 20_000, 0) == program.read_bytes()
        for change in (
            lambda: os.pwrite(fd, b"y", 0),
            lambda: os.ftruncate(fd, 10),
            lambda: os.ftruncate(fd, 100_000),
            lambda: mmap.mmap(fd, 10, mmap.MAP_SHARED, mmap.PROT_WRITE),
            lambda: os.fchmod(fd, 0o666),
        ):
            with pytest.raises(PermissionError):
                change()
        assert not os.get_inheritable(fd)


def test_of_a_program_only_what_is_loaded_is_copied(tmp_path: Path) -> None:
    # An ELF file whose one segment is followed by what a debugger would read.
    header = bytearray(64 + 56)
    header[:5] = b"\x7fELF\x02"
    header[32:40] = (64).to_bytes(8, "little")  # e_phoff
    header[54:58] = b"\x38\0\x01\0"  # e_phentsize, e_phnum
    header[64:68] = b"\x01\0\0\0"  # PT_LOAD
    header[64 + 8 : 64 + 16] = (4096).to_bytes(8, "little")  # p_offset
    header[64 + 32 : 64 + 40] = (8192).to_bytes(8, "little")  # p_filesz
    program = tmp_path / "program"
    program.write_bytes(bytes(header).ljust(4096, b"-") + b"L" * 8192 + b"D" * (1 << 20))
    with seal.sealed_copy(str(program), "copy") as copy:
        status = os.fstat(copy.fileno())
        assert status.st_size == program.stat().st_size  # the loader compares offsets with it
        assert os.pread(copy.fileno(), 120, 0) == bytes(header)
        assert os.pread(copy.fileno(), 8192, 4096) == b"L" * 8192
        assert set(os.pread(copy.fileno(), 1 << 20, 4096 + 8192)) == {0}
        assert status.st_blocks * 512 <= 16384
