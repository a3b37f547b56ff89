"""The host's Python under attack by a root process that can see a shim through /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.shim.installed import CHECKOUT, Manor

# Tries to write to each file that process argv[1] executes or maps, what is there already, so that a success does
# no harm; prints those where it could.
ATTACK = """
import os, sys
pid = sys.argv[1]
paths = [f"/proc/{pid}/exe"]
for line in open(f"/proc/{pid}/maps"):
    start, end = line.split()[0].split("-")
    paths.append(f"/proc/{pid}/map_files/{int(start, 16):x}-{int(end, 16):x}")
written = set()
for path in paths:
    try:
        for flags in (os.O_RDWR, os.O_WRONLY | os.O_APPEND):
            fd = os.open(path, flags)
            if flags == os.O_RDWR:
                os.pwrite(fd, os.pread(fd, 4, 0), 0)
            else:
                os.write(fd, b"")
            written.add(os.readlink(path))
            os.close(fd)
    except OSError as error:
        print(error, file=sys.stderr)
print(sorted(written))
"""

# Interpreters with a library of their own and without: the machine's own may be of the other kind.
INTERPRETERS = sorted({os.path.realpath(sys.executable), *map(str, Path("/usr/bin").glob("python3.1[1-9]"))})


def attack(pid: int, *before: str) -> set[str]:
    command = [*before, sys.executable, "-c", ATTACK, str(pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(eval(done.stdout))


def pythons(paths: set[str]) -> set[str]:
    return {path for path in paths if "/bin/python" in path or "libpython" in path or "memfd" in path}


@pytest.fixture(params=INTERPRETERS)
def foreign_manor(request: pytest.FixtureRequest, manor: Manor) -> Manor:
    """The launcher, written for one interpreter after another."""
    write = f"""
import sys; sys.path.append({str(CHECKOUT)!r})
from pathlib import Path
from shim import install
install.write_launcher(Path({str(manor.directory)!r}), Path({str(manor.directory / "code")!r}), "answering")
"""
    subprocess.run([request.param, "-c", write], check=True)
    return manor


def test_the_attack_works_on_a_python_that_is_not_sealed() -> None:
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        victim.stdout.readline()
        written = pythons(attack(victim.pid))
        victim.communicate(b"\n")
    # The program itself is busy (ETXTBSY) as long as it runs; a libpython never is.
    if any("libpython" in line for line in Path("/proc/self/maps").read_text().splitlines()):
        assert written


def test_not_even_all_capabilities_write_to_the_python_of_a_warden_or_a_shim(foreign_manor: Manor) -> None:
    shim = foreign_manor.start()
    (warden,) = foreign_manor.wardens()
    assert foreign_manor.say()["seal"] == "sealed"
    for pid in (warden, shim):
        assert pythons(attack(pid)) == set()


def test_without_ptrace_a_root_process_writes_to_nothing_that_they_map(manor: Manor) -> None:
    # This is what protects the files of the host that are not copied: libc and the extension modules. Warden and
    # shim have no more capabilities than who looks, so that it is their not being dumpable that counts.
    without = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-all", "--"]
    manor.run("start", "-id", manor.name, before=without)
    for pid in (*manor.wardens(), *manor.shims()):
        assert attack(pid, *without) == set()
        assert attack(pid) != set()


def test_where_the_kernel_forbids_memfds_the_warden_says_that_it_is_not_sealed(manor: Manor) -> None:
    # The setting is one of the PID namespace, so that nobody else feels it.
    command = 'echo 2 > /proc/sys/vm/memfd_noexec || exit 77; exec "$@"'
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", command, "sh"]
    done = manor.run("say", before=unshare)
    if done.returncode == 77:
        pytest.skip("this kernel has no vm.memfd_noexec (Linux 6.3)")
    facts = eval(done.stdout)
    assert facts["seal"] == "not sealed: Permission denied"
    assert facts["alone_because"] == ""
