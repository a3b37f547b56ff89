"""What a program is told it is and may do: by /proc/self/status and its like, compared with runc's containers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import ManorError
from runtime.linux.ffi import c_int
from runtime.linux.libc import syscall

if TYPE_CHECKING:
    from tests.e2e.credentials.conftest import Runc, Runner

SECCOMP = json.loads(Path("tests/unit/runtime/seccomp_default.json").read_text())
SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
STATUS = (
    "Uid Gid Groups Umask CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Seccomp_filters "
    "SigQ SigPnd SigBlk SigIgn SigCgt Cpus_allowed_list"
).split()
AUDIT = (
    "cat /proc/self/status; echo LIMITS; cat /proc/self/limits /proc/self/oom_score_adj; "
    "pwd; env | sort; ls /proc/self/fd"
)


def capabilities(**sets: list[str]) -> dict[str, Any]:
    return {"capabilities": sets}


NET_RAW = ["CAP_NET_RAW", "CAP_KILL"]
USER = {"uid": 1000, "gid": 1000, "additionalGids": [50, 5]}

# What differs from the harness's default process (root, 14 capabilities, no_new_privs), and whether a filter is there.
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "default": ({}, False),
    "may gain privileges": ({"noNewPrivileges": False}, False),
    "filter": ({}, True),
    "filter, may gain privileges": ({"noNewPrivileges": False}, True),
    "user": ({"user": USER}, False),
    "user, filter, may gain privileges": ({"user": USER, "noNewPrivileges": False}, True),
    "user, ambient": ({"user": USER, **capabilities(**dict.fromkeys(SETS, NET_RAW))}, False),
    "user, ambient not inheritable": (
        {
            "user": USER,
            **capabilities(bounding=NET_RAW, permitted=NET_RAW, effective=NET_RAW, ambient=NET_RAW),
        },
        False,
    ),
    "inheritable": ({**capabilities(**dict.fromkeys(SETS[:4], NET_RAW))}, False),
    "effective is less than permitted": (
        {**capabilities(bounding=NET_RAW, permitted=NET_RAW, effective=["CAP_KILL"])},
        False,
    ),
    "no capability": ({**capabilities()}, True),
    "no capabilities object": ({"capabilities": None}, False),
    "no capabilities object, user": ({"capabilities": None, "user": USER}, False),
    "a capability of tomorrow": (
        {**capabilities(bounding=["CAP_TOMORROW", "CAP_KILL"], permitted=["CAP_KILL"])},
        False,
    ),
    "umask": ({"user": {"uid": 0, "gid": 0, "umask": 0o077}}, False),
    "limits": (
        {
            "oomScoreAdj": 500,
            "rlimits": [
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
                {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 2**64 - 1},
            ],
        },
        False,
    ),
    "environment": ({"env": ["PATH=/bin", "A=1", "A=2", "HOME="], "user": USER, "cwd": "/tmp"}, False),
    "a working directory that the image lacks": ({"cwd": "/srv/made/for/it"}, False),
}


def change(config: dict[str, Any], process: dict[str, Any], filtered: bool) -> None:
    config["process"] |= process
    if config["process"]["capabilities"] is None:
        del config["process"]["capabilities"]
    if filtered:
        config["linux"]["seccomp"] = SECCOMP


def audited(text: str) -> dict[str, Any]:
    """The fields of a status file that a runtime decides about, and all the rest."""
    status, _, rest = text.partition("LIMITS\n")
    fields = {key: value.split() for key, _, value in (line.partition(":") for line in status.splitlines())}
    assert "SigIgn" in fields, text
    return {key: fields[key] for key in STATUS if key not in ("SigQ", "SigCgt")} | {"rest": rest.splitlines()}


def bettered(audit: dict[str, Any]) -> dict[str, Any]:
    """What we do better: no signal is ignored.

    runc hands on what it is started with: SIGINT under a shell's `&`, glibc's own two signals under GNU make and
    under subprocess of Python 3.13, which use posix_spawn(3).
    """
    return audit | {"SigIgn": ["0" * 16]}


@pytest.mark.parametrize("case", CASES)
def test_init_is_what_runc_makes_of_it(runner: Runner, runc: Runc, case: str) -> None:
    process, filtered = CASES[case]
    ours, theirs = runner.bundle("sh", "-c", AUDIT), runner.bundle("sh", "-c", AUDIT)
    for bundle in (ours, theirs):
        change(bundle.config, process, filtered)
    got, wanted = runner.run(ours), runc.run(theirs)
    assert (got.code, wanted.code) == (0, 0), got.stderr + wanted.stderr
    assert audited(got.stdout) == bettered(audited(wanted.stdout))


# An exec makes no working directory, and in runc one without capabilities gets its container's.
OF_INIT_ONLY = ("image lacks", "no capabilities object")


@pytest.mark.parametrize("case", [case for case in CASES if not any(words in case for words in OF_INIT_ONLY)])
def test_an_exec_is_what_runc_makes_of_it(runner: Runner, runc: Runc, case: str) -> None:
    process, filtered = CASES[case]
    bundle = runner.bundle("sleep", "1000")
    change(bundle.config, process, filtered)  # runc takes an exec's umask and OOM score from there alone
    name, _pid = runc.started(bundle)
    container = runner.started(change=lambda config: change(config, process, filtered))
    wanted = runc.exec(name, bundle.process(["sh", "-c", AUDIT]) | process, bundle.path)
    got = runner.exec(container, "sh", "-c", AUDIT, **process)
    assert (got.code, wanted.code) == (0, 0), got.stderr + wanted.stderr
    assert audited(got.stdout) == bettered(audited(wanted.stdout))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["no-such-command"], 'exec: "no-such-command": executable file not found in $PATH'),
        (["/no/such"], 'exec: "/no/such": stat /no/such: no such file or directory'),
        (["/etc/passwd"], 'exec: "/etc/passwd": permission denied'),
        (["/etc"], 'exec: "/etc": is a directory'),
        (["/etc/passwd/x"], 'exec: "/etc/passwd/x": stat /etc/passwd/x: not a directory'),
    ],
)
def test_a_command_that_cannot_be_run_is_refused_in_runcs_words(
    runner: Runner, runc: Runc, args: list[str], words: str
) -> None:
    ours, theirs = runner.bundle(*args), runner.bundle(*args)
    assert words in runc.run(theirs).stderr.replace("\\", "")
    with pytest.raises(ManorError) as failure:
        runner.create(ours)
    assert words in str(failure.value)


@pytest.mark.parametrize(
    "path",
    ["/proc/self/fd/{}", "/proc/1/fd/{}", "/proc/thread-self/fd/{}", "/proc/self/cwd", "/proc/self/root/etc"],
)
def test_no_descriptor_of_the_runtime_is_a_working_directory(runner: Runner, path: str) -> None:
    container = runner.started()
    for number in range(16 if "{}" in path else 1):
        bundle = runner.bundle("pwd")
        bundle.config["process"]["cwd"] = path.format(number)
        with pytest.raises(ManorError):
            runner.create(bundle)
        with pytest.raises(ManorError):
            runner.exec(container, "pwd", cwd=path.format(number))


def test_scheduling_policy_and_personality_reach_the_program(runner: Runner, runc: Runc) -> None:
    script = "cut -d' ' -f 19,41 /proc/self/stat; uname -m"  # nice value, policy
    ours, theirs = runner.bundle("sh", "-c", script), runner.bundle("sh", "-c", script)
    for bundle in (ours, theirs):
        bundle.config["process"]["scheduler"] = {"policy": "SCHED_BATCH", "nice": 7}
        bundle.config["linux"]["personality"] = {"domain": "LINUX32"}
    assert runner.run(ours).stdout == runc.run(theirs).stdout == "7 3\ni686\n"


def test_an_io_priority_reaches_the_program(runner: Runner, runc: Runc) -> None:
    def change(config: dict[str, Any]) -> None:
        config["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 6}

    bundle = runner.bundle("sleep", "1000")
    change(bundle.config)
    _name, theirs = runc.started(bundle)
    ours = runner.started(change=change).pid
    number = 252 if os.uname().machine == "x86_64" else 31
    assert [syscall("ioprio_get", number, c_int(1), c_int(pid)) for pid in (ours, theirs)] == [
        2 << 13 | 6
    ] * 2
