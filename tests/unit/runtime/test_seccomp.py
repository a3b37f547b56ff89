"""Profiles compiled by libseccomp, and what the kernel then lets a process do."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime import seccomp
from runtime.errors import ConfigError, Unsupported
from runtime.linux import seccomp as linux
from runtime.linux.libc import syscall
from runtime.linux.process import set_no_new_privs
from runtime.record import replace
from runtime.seccomp_enosys import X32, enosys_prologue
from runtime.spec import json
from runtime.spec.model import Seccomp, SeccompArgument, SeccompRule
from runtime.version import VERSION
from tests.unit.runtime.bpf import (
    AARCH64,
    ALLOW,
    I386,
    KILL,
    KILL_PROCESS,
    LOG,
    NOTIFY,
    TRAP,
    X86_64,
    returns,
    traces,
    verdict,
)
from tests.unit.runtime.forked import in_child

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    linux.preload()
except OSError:
    pytest.skip("no libseccomp here", allow_module_level=True)
pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="call numbers of x86_64")

READ, SOCKET, CLONE, UNAME, GETPPID = 0, 41, 56, 63, 110
PROFILE = Path(__file__).with_name("seccomp_default.json")


def profile_of(data: bytes) -> Seccomp:
    fields: Any = json.parse(data)
    rules = tuple(
        SeccompRule(
            tuple(rule["names"]),
            rule["action"],
            rule.get("errnoRet"),
            tuple(
                SeccompArgument(a["index"], a["value"], a["op"], a.get("valueTwo", 0))
                for a in rule.get("args", ())
            ),
        )
        for rule in fields["syscalls"]
    )
    return Seccomp(
        fields["defaultAction"], fields["defaultErrnoRet"], tuple(fields["architectures"]), syscalls=rules
    )


@pytest.fixture(scope="module")
def default_profile() -> Seccomp:
    return profile_of(PROFILE.read_bytes())


@pytest.fixture(autouse=True)
def _nothing_in_memory() -> Iterator[None]:
    seccomp._in_memory.clear()
    yield
    seccomp._in_memory.clear()


def rule(
    *names: str, action: str = "SCMP_ACT_ALLOW", errno_ret: int | None = None, **fields: Any
) -> SeccompRule:
    return SeccompRule(names, action, errno_ret, fields.get("args", ()))


def profile(*rules: SeccompRule, default: str = "SCMP_ACT_ERRNO", **fields: Any) -> Seccomp:
    return Seccomp(default, syscalls=rules, **{"listener_path": "/run/agent.sock", **fields})


def program(*rules: SeccompRule, **fields: Any) -> bytes:
    return seccomp.compile_profile(profile(*rules, **fields)).program


# ---- what a profile means ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "errno_ret", "answer"),
    [
        ("SCMP_ACT_ALLOW", None, ALLOW),
        ("SCMP_ACT_KILL", None, KILL),
        ("SCMP_ACT_KILL_THREAD", None, KILL),
        ("SCMP_ACT_KILL_PROCESS", None, KILL_PROCESS),
        ("SCMP_ACT_TRAP", None, TRAP),
        ("SCMP_ACT_LOG", None, LOG),
        ("SCMP_ACT_ERRNO", 38, returns(38)),
        ("SCMP_ACT_ERRNO", 0, returns(0)),
        ("SCMP_ACT_TRACE", None, traces(errno.EPERM)),
        ("SCMP_ACT_TRACE", 7, traces(7)),
        ("SCMP_ACT_NOTIFY", None, NOTIFY),
    ],
)
def test_every_action(action: str, errno_ret: int | None, answer: int) -> None:
    compiled = program(rule("uname", action=action, errno_ret=errno_ret), rule("newfstatat"))
    assert verdict(compiled, X86_64, UNAME) == answer
    assert verdict(compiled, X86_64, READ) == returns(errno.EPERM)


@pytest.mark.parametrize(("errno_ret", "answer"), [(None, returns(errno.EPERM)), (13, returns(13))])
def test_the_default_answer(errno_ret: int | None, answer: int) -> None:
    compiled = program(rule("uname"), default_errno_ret=errno_ret)
    assert verdict(compiled, X86_64, READ) == answer


@pytest.mark.parametrize(
    ("op", "value", "two", "allowed", "refused"),
    [
        ("SCMP_CMP_EQ", 5, 0, [5], [4, 6, 5 + (1 << 32)]),
        ("SCMP_CMP_NE", 5, 0, [4, 6, 5 + (1 << 32)], [5]),
        ("SCMP_CMP_LT", 5, 0, [0, 4], [5, 6, 1 << 32]),
        ("SCMP_CMP_LE", 5, 0, [0, 5], [6, 1 << 32]),
        ("SCMP_CMP_GE", 5, 0, [5, 6, 1 << 32], [0, 4]),
        ("SCMP_CMP_GT", 5, 0, [6, 1 << 32], [0, 5]),
        ("SCMP_CMP_MASKED_EQ", 0xF0, 0x10, [0x10, 0x1F, 0x210], [0x20, 0, 0x30]),
        ("SCMP_CMP_EQ", 2**64 - 1, 0, [2**64 - 1], [2**32 - 1]),
    ],
)
def test_every_comparison(op: str, value: int, two: int, allowed: list[int], refused: list[int]) -> None:
    compiled = program(rule("socket", args=(SeccompArgument(1, value, op, two),)))
    assert {verdict(compiled, X86_64, SOCKET, 0, argument) for argument in allowed} == {ALLOW}
    assert {verdict(compiled, X86_64, SOCKET, 0, argument) for argument in refused} == {returns(errno.EPERM)}


def test_comparisons_of_different_arguments_must_all_hold() -> None:
    both = (SeccompArgument(0, 1, "SCMP_CMP_EQ"), SeccompArgument(1, 2, "SCMP_CMP_EQ"))
    compiled = program(rule("socket", args=both))
    assert verdict(compiled, X86_64, SOCKET, 1, 2) == ALLOW
    assert verdict(compiled, X86_64, SOCKET, 1, 3) == returns(errno.EPERM)


def test_of_two_comparisons_of_one_argument_either_is_enough() -> None:
    either = (SeccompArgument(0, 1, "SCMP_CMP_EQ"), SeccompArgument(0, 2, "SCMP_CMP_EQ"))
    compiled = program(rule("socket", args=either))
    assert [verdict(compiled, X86_64, SOCKET, family) for family in (1, 2, 3)] == [ALLOW, ALLOW, returns(1)]


def test_foreign_architectures_are_refused_unless_listed() -> None:
    assert verdict(program(rule("uname")), I386, 122) == KILL
    both = program(rule("uname"), architectures=("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"))
    assert verdict(both, I386, 122) == ALLOW
    assert verdict(both, AARCH64, 160) == KILL


def test_socketcall_cannot_get_round_a_rule_for_socket() -> None:
    refused = rule(
        "socket", action="SCMP_ACT_ERRNO", errno_ret=13, args=(SeccompArgument(0, 38, "SCMP_CMP_EQ"),)
    )
    compiled = program(refused, default="SCMP_ACT_ALLOW", architectures=("SCMP_ARCH_X86", "SCMP_ARCH_X86_64"))
    assert verdict(compiled, X86_64, SOCKET, 38) == returns(13)
    assert verdict(compiled, I386, 359, 38) == returns(13)
    # Its arguments lie in memory: libseccomp refuses them all.
    assert verdict(compiled, I386, 102, 1) == returns(13)


def test_calls_that_an_architecture_has_only_behind_another_are_taken() -> None:
    compiled = program(rule("socket"), architectures=("SCMP_ARCH_X86",))
    assert [verdict(compiled, I386, number, 1) for number in (359, 102)] == [ALLOW, ALLOW]


def test_a_call_libseccomp_does_not_know_is_left_out_and_told(default_profile: Seccomp) -> None:
    compiled = program(rule("a_call_of_the_future", "uname"))
    assert [verdict(compiled, X86_64, number) for number in (UNAME, READ)] == [ALLOW, returns(errno.EPERM)]
    assert "a_call_of_the_future" in seccomp.unknown_syscalls(default_profile)
    assert "read" not in seccomp.unknown_syscalls(default_profile)


def test_a_rule_that_repeats_the_default_is_none() -> None:
    compiled = program(rule("read", action="SCMP_ACT_ERRNO", errno_ret=1), rule("uname"))
    assert verdict(compiled, X86_64, READ) == returns(1)


@pytest.mark.parametrize(
    ("flags", "number"),
    [
        (None, 4),
        ((), 0),
        (("SECCOMP_FILTER_FLAG_TSYNC",), 0),
        (("SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"), 6),
    ],
)
def test_flags(flags: tuple[str, ...] | None, number: int) -> None:
    assert seccomp.compile_profile(profile(rule("uname"), flags=flags)).flags == number


def test_a_notifying_rule_asks_for_a_listener() -> None:
    notifying = rule("uname", action="SCMP_ACT_NOTIFY")
    compiled = seccomp.compile_profile(profile(notifying, flags=()))
    assert (compiled.flags, compiled.notify) == (8, True)
    killable = profile(notifying, flags=("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",))
    assert seccomp.compile_profile(killable).flags == 40
    assert seccomp.compile_profile(profile(rule("uname"), listener_metadata="of nobody")).notify is False


def test_a_profile_from_the_cache_has_its_listener_looked_at(tmp_path: Path) -> None:
    notifying = profile(rule("uname", action="SCMP_ACT_NOTIFY"))
    assert seccomp.cached(notifying, str(tmp_path)).notify
    with pytest.raises(ConfigError, match=r"linux\.seccomp\.listenerPath: SCMP_ACT_NOTIFY needs it"):
        seccomp.cached(replace(notifying, listener_path=None), str(tmp_path))


def test_an_agent_may_answer_sendmsg_for_root_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root takes the listener out of the process; for all others the process has to send it."""
    notifying = profile(rule("acct", "sendmsg", action="SCMP_ACT_NOTIFY"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert seccomp.compile_profile(notifying).notify
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="cannot be used for the sendmsg syscall"):
        seccomp.compile_profile(notifying)


@pytest.mark.parametrize(
    ("bad", "path"),
    [
        (profile(default="SCMP_ACT_MAYBE"), "linux.seccomp.defaultAction"),
        (profile(default="SCMP_ACT_NOTIFY"), "linux.seccomp.defaultAction"),
        (profile(default="SCMP_ACT_ALLOW", default_errno_ret=1), "linux.seccomp.defaultAction"),
        (profile(rule("read"), rule("uname", action="ALLOW")), "linux.seccomp.syscalls[1].action"),
        (profile(rule("uname", errno_ret=1)), "linux.seccomp.syscalls[0].action"),
        (
            profile(rule("uname", action="SCMP_ACT_ERRNO", errno_ret=65536)),
            "linux.seccomp.syscalls[0].action",
        ),
        (profile(rule("write", action="SCMP_ACT_NOTIFY")), "linux.seccomp.syscalls[0]"),
        (
            profile(rule("read"), rule("acct", "write", action="SCMP_ACT_NOTIFY")),
            "linux.seccomp.syscalls[1]",
        ),
        (profile(rule("uname", action="SCMP_ACT_NOTIFY"), listener_path=None), "linux.seccomp.listenerPath"),
        (
            profile(rule("uname"), listener_path=None, listener_metadata="x"),
            "linux.seccomp.listenerMetadata",
        ),
        (profile(flags=("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",)), "linux.seccomp.flags"),
        (profile(rule("")), "linux.seccomp.syscalls[0].names"),
        (profile(rule("read", args=(SeccompArgument(0, 1, "=="),))), "linux.seccomp.syscalls[0].args[0].op"),
        (
            profile(rule("read", args=(SeccompArgument(6, 1, "SCMP_CMP_EQ"),))),
            "linux.seccomp.syscalls[0].args[0].index",
        ),
        (profile(architectures=("x86_64",)), "linux.seccomp.architectures"),
        (profile(flags=("SECCOMP_FILTER_FLAG_NEW",)), "linux.seccomp.flags"),
    ],
)
def test_what_a_profile_has_wrong_is_named(bad: Seccomp, path: str) -> None:
    with pytest.raises(ConfigError) as failure:
        seccomp.compile_profile(bad)
    assert failure.value.path == path


def test_a_machine_without_libseccomp_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(linux, "_library", None)
    monkeypatch.setattr(linux, "_LIBRARY", "libseccomp-that-is-not-there.so.2")
    with pytest.raises(
        Unsupported, match=r"profile is asked for, but libseccomp cannot be loaded: .*not-there"
    ):
        seccomp.cached(profile(rule("uname")), str(tmp_path))


# ---- calls newer than the profile --------------------------------------------------------------


@pytest.mark.parametrize("default", ["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"])
def test_calls_newer_than_all_that_the_profile_names_do_not_exist(default: str) -> None:
    compiled = program(rule("uname", "getppid"), default=default)
    assert verdict(compiled, X86_64, GETPPID) == ALLOW
    assert {verdict(compiled, X86_64, number) for number in (GETPPID + 1, 500, 0x3FFFFFFF)} == {
        returns(errno.ENOSYS)
    }
    assert verdict(compiled, X86_64, GETPPID - 1) != returns(errno.ENOSYS)


@pytest.mark.parametrize("default", ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"])
def test_a_default_that_lets_through_answers_for_itself(default: str) -> None:
    compiled = program(rule("uname", action="SCMP_ACT_ERRNO", errno_ret=9), default=default)
    assert verdict(compiled, X86_64, 500) != returns(errno.ENOSYS)


def test_each_architecture_has_its_own_newest_call() -> None:
    names = rule("uname", "getrandom")
    compiled = program(names, architectures=("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"))
    x32 = 1 << 30
    newest = {X86_64: 318, I386: 355}
    for architecture, number in newest.items():
        assert verdict(compiled, architecture, number) == ALLOW
        assert verdict(compiled, architecture, number + 1) == returns(errno.ENOSYS)
    assert verdict(compiled, X86_64, x32 | 318) == ALLOW
    assert verdict(compiled, X86_64, x32 | 319) == returns(errno.ENOSYS)


def test_x32_calls_meet_the_filter_where_x32_is_not_listed() -> None:
    assert verdict(program(rule("uname")), X86_64, 1 << 30 | 500) == KILL


def test_a_prologue_without_architectures_goes_on_to_the_filter() -> None:
    end = b"\x06\0\0\0" + ALLOW.to_bytes(4, "little")
    assert verdict(enosys_prologue({}) + end, X86_64, 500) == ALLOW
    assert verdict(enosys_prologue({X32: (1 << 30) + 9}) + end, X86_64, 500) == ALLOW


def test_call_zero_of_s390_carries_numbers_the_kernel_has_not() -> None:
    end = b"\x06\0\0\0" + ALLOW.to_bytes(4, "little")
    s390x = 22 | 1 << 31
    compiled = enosys_prologue({s390x: 400}) + end
    assert [verdict(compiled, s390x, number) for number in (0, 1, 400, 401)] == [
        returns(38),
        ALLOW,
        ALLOW,
        returns(38),
    ]


# ---- the default profile of the field ----------------------------------------------------------


def test_the_default_profile_does_what_it_says(default_profile: Seccomp) -> None:
    compiled = seccomp.compile_profile(default_profile).program
    asked = {
        "read": verdict(compiled, X86_64, READ),
        "a namespace by clone": verdict(compiled, X86_64, CLONE, 0x10000000),
        "a thread by clone": verdict(compiled, X86_64, CLONE, 0x003D0F00),
        "clone3": verdict(compiled, X86_64, 435),
        "AF_ALG": verdict(compiled, X86_64, SOCKET, 38),
        "AF_INET": verdict(compiled, X86_64, SOCKET, 2),
        "AF_VSOCK": verdict(compiled, X86_64, SOCKET, 40),
        "mount": verdict(compiled, X86_64, 165),
        "tomorrow's": verdict(compiled, X86_64, 600),
    }
    assert asked == {
        "read": ALLOW,
        "a namespace by clone": returns(errno.EPERM),
        "a thread by clone": ALLOW,
        "clone3": returns(errno.ENOSYS),
        "AF_ALG": returns(errno.EPERM),
        "AF_INET": ALLOW,
        "AF_VSOCK": returns(errno.EPERM),
        "mount": returns(errno.EPERM),
        "tomorrow's": returns(errno.ENOSYS),
    }


def test_the_kernel_takes_it_and_holds_to_it(default_profile: Seccomp) -> None:
    compiled = seccomp.compile_profile(default_profile)

    def work() -> list[Any]:
        set_no_new_privs()
        listener = linux.load(compiled)
        answers: list[Any] = [os.getppid() > 0, listener]
        for number in (165, 600):  # mount, and one that no kernel has yet
            try:
                syscall("a call", number)
            except OSError as error:
                answers.append(error.errno)
        return answers

    assert in_child(work) == [True, -1, errno.EPERM, errno.ENOSYS]


def test_a_listener_comes_as_a_descriptor_that_no_execve_keeps() -> None:
    compiled = seccomp.compile_profile(
        profile(rule("acct", action="SCMP_ACT_NOTIFY"), default="SCMP_ACT_ALLOW")
    )

    def work() -> list[Any]:
        set_no_new_privs()
        listener = linux.load(compiled)
        return [os.readlink(f"/proc/self/fd/{listener}"), os.get_inheritable(listener)]

    assert in_child(work) == ["anon_inode:seccomp notify", False]


def test_a_filter_the_kernel_refuses_is_described() -> None:
    def work() -> str:
        set_no_new_privs()
        try:
            linux.load(linux.Filter(b"\0" * 16, 1 << 30))
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return "loaded"

    assert in_child(work) == "filter of 2 instructions, flags 0x40000000: seccomp: Invalid argument"


# ---- the cache ---------------------------------------------------------------------------------


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Seccomp]:
    """The profiles that were compiled, in order."""
    compiled: list[Seccomp] = []
    original = seccomp.compile_profile

    def counting(wanted: Seccomp) -> seccomp.Filter:
        compiled.append(wanted)
        return original(wanted)

    monkeypatch.setattr(seccomp, "compile_profile", counting)
    return compiled


SMALL = profile(rule("uname", action="SCMP_ACT_NOTIFY"), rule("read"))


def cache_file(directory: Path) -> Path:
    (only,) = directory.iterdir()
    return only


def test_a_profile_is_compiled_once_for_memory_and_disk(tmp_path: Path, compilations: list[Seccomp]) -> None:
    directory = str(tmp_path / "cache")
    first = seccomp.cached(SMALL, directory)
    assert seccomp.cached(SMALL, directory) is first
    seccomp._in_memory.clear()
    assert seccomp.cached(SMALL, directory) == first
    assert compilations == [SMALL]
    assert first.notify


def test_files_are_private_and_whole(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        seccomp.cached(SMALL, str(tmp_path / "cache"))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert stat.S_IMODE(cache_file(tmp_path / "cache").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "change",
    [
        {"default_action": "SCMP_ACT_KILL"},
        {"default_errno_ret": 2},
        {"architectures": ("SCMP_ARCH_X86",)},
        {"flags": ()},
        {"syscalls": (rule("read"), rule("uname", action="SCMP_ACT_NOTIFY"))},
        {
            "syscalls": (
                rule("uname", action="SCMP_ACT_NOTIFY"),
                rule("read", args=(SeccompArgument(0, 1, "SCMP_CMP_EQ"),)),
            )
        },
    ],
)
def test_profiles_that_differ_do_not_share_a_filter(
    tmp_path: Path, compilations: list[Seccomp], change: dict[str, Any]
) -> None:
    other = replace(SMALL, **change)
    seccomp.cached(SMALL, str(tmp_path))
    seccomp._in_memory.clear()
    seccomp.cached(other, str(tmp_path))
    assert compilations == [SMALL, other]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 8)


def change_profile(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"uname", b"mount"))


def change_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(VERSION.encode(), b"0.0.9", 1))


def other_library(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(seccomp._FORMAT)] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def world_writable(path: Path) -> None:
    path.chmod(0o602)


def symlink(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    "spoil",
    [truncate, grow, change_profile, change_version, other_library, empty, world_writable, symlink, fifo],
)
def test_a_file_that_is_not_ours_and_whole_is_not_used(
    tmp_path: Path, compilations: list[Seccomp], spoil: Any
) -> None:
    directory = tmp_path / "cache"
    first = seccomp.cached(SMALL, str(directory))
    spoil(cache_file(directory))
    seccomp._in_memory.clear()
    assert seccomp.cached(SMALL, str(directory)) == first
    assert len(compilations) == 2


@pytest.mark.parametrize("size", [0, 12, 8 * 4097])
def test_a_file_whose_program_no_kernel_would_take_is_not_used(
    tmp_path: Path, compilations: list[Seccomp], size: int
) -> None:
    first = seccomp.cached(SMALL, str(tmp_path))
    key = seccomp.canonical(SMALL)
    odd = replace(first, program=b"\0" * size)
    cache_file(tmp_path).write_bytes(seccomp._header(key, odd) + key + odd.program)
    seccomp._in_memory.clear()
    assert seccomp.cached(SMALL, str(tmp_path)) == first
    assert len(compilations) == 2


def test_a_directory_others_can_write_to_is_not_used(tmp_path: Path, compilations: list[Seccomp]) -> None:
    tmp_path.chmod(0o777)
    seccomp.cached(SMALL, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    seccomp._in_memory.clear()
    seccomp.cached(SMALL, str(tmp_path))
    assert len(compilations) == 2


def test_no_place_to_keep_filters_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "no" / "such" / "parent"):
        seccomp._in_memory.clear()
        assert seccomp.cached(SMALL, str(directory)).program


def test_memory_holds_a_bounded_number_of_profiles(tmp_path: Path) -> None:
    for number in range(2 * seccomp._MAX_IN_MEMORY):
        seccomp.cached(profile(rule("uname"), default_errno_ret=number), str(tmp_path))
    assert len(seccomp._in_memory) <= seccomp._MAX_IN_MEMORY
