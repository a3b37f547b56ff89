"""The default profile, compiled and in force."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
from functools import cache
from typing import Any

import pytest

from cri.seccomp import default_profile
from runtime import seccomp
from runtime.linux import seccomp as linux
from runtime.linux.ffi import c_long, c_ulong
from runtime.linux.libc import syscall
from runtime.linux.process import set_no_new_privs
from runtime.spec.load import load_spec
from tests.unit.runtime.bpf import AARCH64, ALLOW, I386, KILL, X86_64, returns, verdict
from tests.unit.runtime.forked import in_child

try:
    linux.preload()
except OSError:
    pytest.skip("no libseccomp here", allow_module_level=True)
pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="call numbers of x86_64")

DENIED, MISSING = returns(errno.EPERM), returns(errno.ENOSYS)
AF_ALG, AF_VSOCK = 38, 40
SOCKET = {X86_64: 41, I386: 359}
SOCKETCALL = 102
CLONE_NEWUSER, X32 = 0x10000000, 1 << 30
# What Docker and containerd give a container by default.
USUAL = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE "
        "SYS_CHROOT KILL AUDIT_WRITE"
    ).split()
)


@cache
def compiled(*capabilities: str, machine: str = "x86_64") -> linux.Filter:
    """The filter of a container's config.json with our profile in it."""
    config: dict[str, Any] = {
        "ociVersion": "1.3.0",
        "process": {"cwd": "/", "args": ["x"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "linux": {"seccomp": default_profile(machine, capabilities)},
    }
    profile = load_spec(json.dumps(config).encode()).linux.seccomp
    assert profile is not None
    return seccomp.compile_profile(profile)


@pytest.fixture(scope="module")
def program() -> bytes:
    return compiled(*USUAL).program


@pytest.mark.parametrize("architecture", [X86_64, I386])
@pytest.mark.parametrize("family", [AF_ALG, AF_VSOCK])
def test_kernel_crypto_and_vm_sockets_cannot_be_had(program: bytes, architecture: int, family: int) -> None:
    assert verdict(program, architecture, SOCKET[architecture], family) == DENIED
    # The kernel takes 32 bits of it; a comparison of all 64 would let this one through.
    assert verdict(program, architecture, SOCKET[architecture], 1 << 32 | family) == DENIED


@pytest.mark.parametrize("architecture", [X86_64, I386])
def test_all_other_families_can(program: bytes, architecture: int) -> None:
    families = [family for family in range(46) if family not in (AF_ALG, AF_VSOCK)]
    answers = {verdict(program, architecture, SOCKET[architecture], family) for family in families}
    assert answers == {ALLOW}
    assert verdict(program, architecture, SOCKET[architecture], 48) == DENIED


def test_socketcall_hides_its_family_so_it_does_not_exist(program: bytes) -> None:
    for call in (1, 2, 3, 8, 99):
        assert verdict(program, I386, SOCKETCALL, call) == MISSING


def test_foreign_architectures_are_refused(program: bytes) -> None:
    assert verdict(program, AARCH64, 63) == KILL
    assert verdict(program, X86_64, X32 | 0) == KILL


def test_what_is_newer_than_the_profile_does_not_exist(program: bytes) -> None:
    assert verdict(program, X86_64, 600) == verdict(program, I386, 600) == MISSING
    assert verdict(program, X86_64, 435) == MISSING  # clone3: its flags cannot be seen


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("mount", 165), ("umount2", 166), ("unshare", 272), ("setns", 308), ("pivot_root", 155), ("bpf", 321),
        ("perf_event_open", 298), ("add_key", 248), ("request_key", 249), ("keyctl", 250), ("kexec_load", 246),
        ("init_module", 175), ("finit_module", 313), ("delete_module", 176), ("reboot", 169), ("swapon", 167),
        ("acct", 163), ("settimeofday", 164), ("iopl", 172), ("userfaultfd", 323), ("io_uring_setup", 425),
        ("io_uring_enter", 426), ("open_by_handle_at", 304), ("quotactl", 179), ("fsopen", 430), ("syslog", 103),
        ("move_mount", 429), ("mount_setattr", 442), ("sethostname", 170), ("lookup_dcookie", 212),
        ("mbind", 237), ("vhangup", 153), ("process_madvise", 440), ("uselib", 134), ("_sysctl", 156),
    ],
)  # fmt: skip
def test_what_reaches_beyond_a_container_is_refused(program: bytes, name: str, number: int) -> None:
    assert linux.resolve(name, linux.native_architecture()) == number
    assert verdict(program, X86_64, number) == DENIED


def test_threads_and_processes_can_be_made_but_no_namespaces(program: bytes) -> None:
    assert verdict(program, X86_64, 56, 0x003D0F00) == ALLOW
    assert verdict(program, X86_64, 56, 17) == ALLOW
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(program, X86_64, 56, flag | 17) == DENIED
        assert verdict(program, I386, 120, flag | 17) == DENIED


def test_a_capability_brings_the_calls_that_are_for_it() -> None:
    mount, clone3, chroot, open_by_handle = 165, 435, 161, 304
    admin, bare = compiled(*USUAL, "CAP_SYS_ADMIN").program, compiled().program
    asked = [verdict(admin, X86_64, number) for number in (mount, clone3, open_by_handle)]
    assert asked == [ALLOW, ALLOW, DENIED]
    assert verdict(admin, X86_64, 56, CLONE_NEWUSER) == ALLOW
    assert verdict(compiled(*USUAL).program, X86_64, chroot) == ALLOW
    assert verdict(bare, X86_64, chroot) == DENIED
    assert verdict(compiled("CAP_DAC_READ_SEARCH").program, X86_64, open_by_handle) == ALLOW
    assert verdict(compiled("CAP_SYS_MODULE").program, X86_64, 313) == ALLOW
    everything = compiled("CAP_SYS_ADMIN", "CAP_BPF", "CAP_SYSLOG", "CAP_PERFMON").program
    assert [verdict(everything, X86_64, number) for number in (321, 103, 298)] == [ALLOW] * 3


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64", "armv7l"])
def test_every_machine_has_a_profile_that_compiles(machine: str) -> None:
    assert len(compiled(*USUAL, machine=machine).program) < 8 * linux.MAX_INSTRUCTIONS
    names = {name for rule in default_profile(machine, ())["syscalls"] for name in rule["names"]}
    assert ("arch_prctl" in names) == (machine == "x86_64")
    assert ("riscv_hwprobe" in names) == (machine == "riscv64")


def test_it_knows_only_calls_that_exist() -> None:
    """Names that libseccomp has not heard of are left out in silence: a misspelt one must not be."""
    newer = {  # than libseccomp 2.5.4, the oldest that we run with
        *("cachestat", "fchmodat2", "futex_requeue", "futex_wait", "futex_wake", "map_shadow_stack", "mseal"),
        *("file_getattr", "file_setattr", "getxattrat", "setxattrat", "listxattrat", "removexattrat"),
        *("lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules", "listmount", "statmount"),
        *("riscv_hwprobe", "open_tree_attr"),
    }
    native = linux.native_architecture()
    for machine in ("x86_64", "aarch64", "riscv64"):
        for rule in default_profile(machine, ("CAP_SYS_ADMIN", *USUAL))["syscalls"]:
            assert {name for name in rule["names"] if linux.resolve(name, native) is None} <= newer


def test_containers_do_not_share_it() -> None:
    first = default_profile("x86_64", ())
    first["syscalls"][0]["names"].append("mount")
    first["architectures"].clear()
    second = default_profile("x86_64", ())
    assert "mount" not in second["syscalls"][0]["names"]
    assert second["architectures"]


def test_nothing_but_what_config_json_knows_is_in_it() -> None:
    profile = default_profile("x86_64", USUAL)
    assert set(profile) == {"defaultAction", "defaultErrnoRet", "architectures", "syscalls"}
    assert {key for rule in profile["syscalls"] for key in rule} <= {"names", "action", "errnoRet", "args"}


# ---- under the filter --------------------------------------------------------------------------


def under_filter(work: Any) -> Any:
    ready = compiled(*USUAL)

    def child() -> Any:
        set_no_new_privs()
        linux.load(ready)
        return work()

    return in_child(child)


def number_of(work: Any) -> int:
    try:
        work()
    except OSError as error:
        return error.errno or 0
    return 0


def test_the_kernel_holds_to_it() -> None:
    def work() -> list[int]:
        families = (socket.AF_INET, socket.AF_UNIX, AF_ALG, AF_VSOCK)
        answers = [
            number_of(lambda f=family: socket.socket(f, socket.SOCK_DGRAM).close()) for family in families
        ]
        wide = number_of(lambda: syscall("socket", 41, c_ulong(1 << 32 | AF_ALG), c_long(5), c_long(0)))
        return [*answers, wide, number_of(lambda: syscall("unshare", 272, c_long(CLONE_NEWUSER)))]

    assert under_filter(work) == [0, 0, errno.EPERM, errno.EPERM, errno.EPERM, errno.EPERM]


@pytest.mark.skipif(shutil.which("busybox") is None, reason="no busybox here")
def test_a_shell_and_its_programs_work_under_it() -> None:
    script = (
        "set -e; d=$(mktemp -d); cd $d; echo one two > a; cp a b; ln -s b c; ls -l | wc -l; sort a; grep -c one c;"
        "tar cf t.tar a b c; (sleep 0.01 & wait); chmod 600 a; id -u; date +%Y > /dev/null; seq 3 | tail -n 1;"
        "ping -c 1 -w 1 127.0.0.1 > /dev/null 2>&1 || true; rm -r $d; echo done"
    )

    def work() -> list[Any]:
        done = subprocess.run(["busybox", "sh", "-c", script], capture_output=True, text=True, check=False)
        return [done.returncode, done.stdout.split(), done.stderr]

    assert under_filter(work) == [0, ["4", "one", "two", "1", str(os.getuid()), "3", "done"], ""]
