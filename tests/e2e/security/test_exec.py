"""What an `exec` may not bring into a container, and what a container may not get at through one.

Users, capabilities, descriptors, the working directory, and the interpreter that the command runs on.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import runtime
from tests.e2e.security.conftest import COMMAND, QUIET
from tests.harness.images import compile_static

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.security.conftest import Oci
    from tests.harness.bundles import Bundle

PASSWD = "root:x:0:0:root:/root:/bin/sh\n1000::0:0::/:\n4294967296::0:0::/:\n+1::0:0::/:\n-1::0:0::/:\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        *(("1", "1 0"), ("1:1", "1 1"), ("01", "1 0"), ("1000", "1000 0"), ("0:5", "0 5")),
        ("4294967294:4294967294", "4294967294 4294967294"),
        *(
            (each, None)
            for each in ("1:", ":1", " 1", "1 ", "+1", "1_0", "\uff11", "-1", "0x1", "1\n", "root", "1:-1")
        ),
        *(
            (each, None)
            for each in ("4294967295", "4294967296", "18446744073709551616", "1:4294967295", "1:1:1")
        ),
        ("9" * 5000, None),
    ],
)
def test_a_user_is_that_number_or_an_error(oci: Oci, user: str, expected: str | None) -> None:
    """Never a name, never root by accident (CVE-2016-3697, CVE-2026-30892), whatever the image's passwd says."""
    bundle = oci.bundle()
    (bundle.rootfs / "etc/passwd").write_text(PASSWD)
    name = oci.started(bundle)
    answer = oci("exec", f"--user={user}", name, "sh", "-c", "echo $(id -u) $(id -g)")
    if expected is None:
        assert answer.returncode == 255, answer
        assert "is not a number from 0 to 4294967294" in answer.stderr
        assert answer.stdout == ""
    else:
        assert answer.stdout.strip() == expected, answer


def test_an_exec_has_no_inheritable_and_no_ambient_capabilities(oci: Oci) -> None:
    """CVE-2022-29162, CVE-2025-27612: neither as configured, nor with more by `--cap`, as root or not."""
    bundle = oci.bundle()
    name = oci.started(bundle)
    for options in ((), ("--cap", "CAP_SYS_NICE"), ("--cap", "CAP_SYS_NICE", "--user", "1000")):
        status = oci("exec", *options, name, "cat", "/proc/self/status").stdout
        sets = {
            line.split()[0]: int(line.split()[1], 16)
            for line in status.splitlines()
            if line.startswith("Cap")
        }
        assert sets["CapInh:"] == sets["CapAmb:"] == 0, options
        assert sets["CapBnd:"] >> 23 & 1 == bool(options)
    bundle.config["process"]["user"]["uid"] = 1000
    process = bundle.path / "process.json"
    wanted = bundle.config["process"] | {"args": ["cat", "/proc/self/status"]}
    wanted["capabilities"] = {kind: ["CAP_CHOWN"] for kind in ("bounding", "effective", "permitted")}
    process.write_text(json.dumps(wanted))
    status = oci("exec", "--process", process, name).stdout
    sets = {
        line.split()[0]: int(line.split()[1], 16) for line in status.splitlines() if line.startswith("Cap")
    }
    assert sets["CapInh:"] == sets["CapAmb:"] == 0
    assert sets["CapBnd:"] == 1


NOTHING_REFUSED = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
# What it takes to become the container's user: CHOWN, DAC_OVERRIDE, SETGID, SETUID, SETPCAP.
WAY = 1 << 0 | 1 << 1 | 1 << 6 | 1 << 7 | 1 << 8
SYS_ADMIN = 1 << 21


def _confine(bundle: Bundle, filtered: bool, no_new_privileges: bool) -> int:
    """Give the container two capabilities, and a filter or none; the mask of the two."""
    if filtered:
        bundle.config["linux"]["seccomp"] = NOTHING_REFUSED
    bundle.config["process"]["noNewPrivileges"] = no_new_privileges
    for kind in ("bounding", "effective", "permitted"):
        bundle.config["process"]["capabilities"][kind] = ["CAP_KILL", "CAP_SYS_PTRACE"]
    return 1 << 5 | 1 << 19


@pytest.mark.parametrize(
    ("filtered", "no_new_privileges", "more"),
    [(False, False, 0), (True, True, 0), (True, False, SYS_ADMIN)],
    ids=["plain", "filter and no_new_privs", "filter"],
)
def test_an_exec_can_be_traced_for_no_capability_but_its_own(
    oci: Oci, filtered: bool, no_new_privileges: bool, more: int
) -> None:
    """A container with CAP_SYS_PTRACE can take over who is on its way in. To load a filter takes CAP_SYS_ADMIN."""
    bundle = oci.bundle()
    bundle.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    own = _confine(bundle, filtered, no_new_privileges)
    name = oci.started(bundle)
    look = ["grep", "Cap", "/proc/self/status"]
    command = [*_words(oci), "--delay-at", "init.set-up-stdio:1", "exec", name, *look]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        held = _capabilities_of_init(running.pid)
        ends_with = {line.split()[0]: int(line.split()[1], 16) for line in running.stdout}
        assert running.wait(timeout=60) == 0
    assert held["CapBnd:"] == own
    assert held["CapPrm:"] == held["CapEff:"] == own | WAY | more
    assert (ends_with["CapBnd:"], ends_with["CapPrm:"]) == (own, 0)  # it is not root


@pytest.mark.parametrize(("filtered", "more"), [(False, 0), (True, SYS_ADMIN)], ids=["plain", "filter"])
def test_neither_can_an_init_that_joins_the_pid_namespace_of_others(
    oci: Oci, filtered: bool, more: int
) -> None:
    first = oci.started(oci.bundle())
    bundle = oci.bundle("true")
    own = _confine(bundle, filtered, no_new_privileges=False)
    for namespace in bundle.config["linux"]["namespaces"]:
        if namespace["type"] == "pid":
            namespace["path"] = f"/proc/{json.loads(oci('state', first).stdout)['pid']}/ns/pid"
    bundle.write()
    command = [
        *_words(oci),
        "--delay-at",
        "init.set-up-stdio:1",
        "run",
        "--bundle",
        bundle.path,
        bundle.path.name,
    ]
    with subprocess.Popen(command, **QUIET) as running:
        held = _capabilities_of_init(running.pid)
        assert running.wait(timeout=60) == 0
    assert held["CapBnd:"] == own
    assert held["CapPrm:"] == held["CapEff:"] == own | WAY | more


def _capabilities_of_init(command: int) -> dict[str, int]:
    """The sets of 2:INIT, a child of the process `command`, when it is there."""
    _pid, status = _init_of(command)
    found = [line.split() for line in status.splitlines() if line.startswith("Cap")]
    return {each[0]: int(each[1], 16) for each in found}


def _init_of(command: int) -> tuple[int, str]:
    """Its pid and what /proc/PID/status says of it."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for pid in _children(command):
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue  # it has ended
            if "manor:[2:INIT]" in status:
                return pid, status
        time.sleep(0.01)
    raise AssertionError("no stage was seen")


@contextmanager
def leaked(count: int) -> Iterator[tuple[int, ...]]:
    """Descriptors of the host's root directory, as a careless caller has them open and inheritable."""
    opened = [os.open("/", os.O_RDONLY | os.O_DIRECTORY) for _ in range(count)]
    try:
        yield tuple(opened)
    finally:
        for number in opened:
            os.close(number)


def test_a_descriptor_that_the_caller_leaks_is_not_in_the_container(oci: Oci) -> None:
    """CVE-2024-21626 and its like: of create, of run, of exec."""
    listing = "ls -l /proc/self/fd"
    with leaked(8) as fds:
        first = oci.run(oci.bundle("sh", "-c", listing), pass_fds=fds)
        assert _open(first.stdout) == ["0", "1", "2"], first
        name = oci.started(oci.bundle())
        second = oci("exec", name, "sh", "-c", listing, pass_fds=fds)
        assert _open(second.stdout) == ["0", "1", "2"], second


def _open(listing: str) -> list[str]:
    return [line.split(" -> ")[0].split()[-1] for line in listing.splitlines() if " -> " in line]


@pytest.mark.parametrize("place", ["/proc/self/fd", "/proc/thread-self/fd", "/proc/1/fd"])
def test_no_number_of_a_descriptor_is_a_way_to_the_host(oci: Oci, place: str) -> None:
    """A working directory below /proc/self/fd is refused or inside (CVE-2024-21626), with leaks to choose from."""
    name = oci.started(oci.bundle())
    marker = oci.path / "marker"
    marker.write_text("")
    with leaked(6) as fds:
        for number in [*range(3, 24), *fds]:
            look = f"pwd; ls ../../../../../../..{marker} .{marker}"
            answer = oci("exec", "--cwd", f"{place}/{number}", name, "sh", "-c", look, pass_fds=fds)
            assert str(marker) not in answer.stdout.replace("\n.", "\n"), (number, answer)
            assert "marker" not in answer.stdout
            bundle = oci.bundle("sh", "-c", look) if number < 10 else None
            if bundle is not None:
                bundle.config["process"]["cwd"] = f"{place}/{number}"
                made = oci.run(bundle, pass_fds=fds)
                assert "marker" not in made.stdout


def _digests() -> dict[str, str]:
    """The interpreter, its libraries and our own files: all that a stage has mapped, or could."""
    files = {os.path.realpath(sys.executable)}
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(" ", 5)[-1].strip()
        if path.startswith("/") and "(deleted)" not in path and os.path.isfile(path):
            files.add(path)
    files |= {str(path) for path in Path(runtime.__file__).parent.rglob("*.py")}
    return {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files}


# While a program runs, nobody can write to its file; but who has it open can wait for its end.
ATTACK = """
while :; do
  for exe in /proc/[0-9]*/exe; do
    case $exe in /proc/1/exe) continue;; esac
    what=$(readlink $exe) || continue
    [ "$what" = /bin/busybox ] || { exec 9<$exe && echo "$what" >>/opened; true >>$exe && echo "$what" >>/written; }
  done
done 2>/dev/null
"""


def test_the_interpreter_cannot_be_overwritten_from_inside(oci: Oci) -> None:
    """CVE-2019-5736: a container with CAP_SYS_PTRACE opens what it sees of an exec: sealed copies and nothing else."""
    before = _digests()
    bundle = oci.bundle("sh", "-c", ATTACK)
    for kind in bundle.config["process"]["capabilities"].values():
        kind.append("CAP_SYS_PTRACE")
    name = oci.started(bundle)
    opened = bundle.rootfs / "opened"
    end = time.monotonic() + 60
    while not opened.exists():
        assert time.monotonic() < end, (
            "the container saw nothing of an exec: it does not test what it seems to"
        )
        answer = oci("--delay-at", "init.look-up:1", "exec", name, "true")
        assert answer.returncode == 0, answer
    assert {each.split(":")[0] for each in opened.read_text().splitlines()} == {"/memfd"}
    assert not (bundle.rootfs / "written").exists()
    assert _digests() == before


def test_a_script_whose_interpreter_is_proc_self_exe_runs_nothing_of_the_hosts(oci: Oci) -> None:
    """`#!/proc/self/exe` executes who executes it, and the image's loader is in charge: of a sealed copy."""
    before = _digests()
    loader = compile_static("loader", "-nostdlib", "-fno-stack-protector")
    bundles = [oci.bundle(), oci.bundle("/proc/self/exe"), oci.bundle("/bin/evil")]
    for bundle in bundles:
        place = bundle.rootfs / _loader_of_python().lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        (bundle.rootfs / "bin/evil").write_text("#!/proc/self/exe\n")
        place.write_bytes(loader)
        for path in (place, bundle.rootfs / "bin/evil"):
            path.chmod(0o755)
    name = oci.started(bundles[0])
    said = [oci("exec", name, "/bin/evil"), oci("exec", name, "/proc/self/exe"), *map(oci.run, bundles[1:])]
    for answer in said:
        what, _blank, refusal = answer.stdout.rstrip("\n").rpartition(" ")
        assert what.startswith("/memfd:"), answer
        assert int(refusal) in (errno.ETXTBSY, errno.EPERM, errno.EACCES), answer
    assert _digests() == before


def _loader_of_python() -> str:
    """What the interpreter asks the kernel to start in its place (PT_INTERP)."""
    data = Path(sys.executable).read_bytes()[: 1 << 16]
    found = re.search(rb"/lib[\w/.-]*/ld-[\w.-]+\0", data)
    assert found is not None
    return found[0].rstrip(b"\0").decode()


def test_the_interpreter_of_an_exec_is_a_sealed_copy(oci: Oci) -> None:
    """While an exec waits, its /proc/PID/exe is a memfd, and not even we can write to it."""
    name = oci.started(oci.bundle())
    command = [*_words(oci), "--delay-at", "init.look-up:2", "exec", name, "true"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as running:
        init, _status = _init_of(running.pid)
        for pid in (running.pid, init):
            assert "memfd:" in os.readlink(f"/proc/{pid}/exe")
            with pytest.raises(OSError, match="Text file busy|Operation not permitted|Permission denied"):
                os.close(os.open(f"/proc/{pid}/exe", os.O_WRONLY))
        assert running.wait(timeout=30) == 0


def _words(oci: Oci) -> list[Any]:
    return [COMMAND, "--root", oci.root]


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
