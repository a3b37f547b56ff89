"""Tenants: what an exec shares with its container, and where it is put."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import ConfigError, InvalidState, StageError
from runtime.operations.start import start
from runtime.stages.plan import Stdio
from runtime.waiting import run

if TYPE_CHECKING:
    from tests.e2e.runtime.conftest import Runner


def test_an_exec_ends_with_its_own_code_and_output(runner: Runner) -> None:
    container = runner.started()
    output = runner.exec(container, "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (output.code, output.stdout, output.stderr) == (9, "out\n", "err\n")


@pytest.mark.parametrize("kind", ["mnt", "pid", "net", "ipc", "uts", "cgroup"])
def test_an_exec_is_in_the_namespaces_of_the_container(runner: Runner, kind: str) -> None:
    container = runner.started()
    output = runner.exec(container, "readlink", f"/proc/self/ns/{kind}")
    assert output.stdout.strip() == os.readlink(f"/proc/{container.pid}/ns/{kind}")


def test_an_exec_is_in_every_cgroup_of_the_container(runner: Runner) -> None:
    container = runner.started()
    tenant = runner.exec_tenant(container, "sleep", "1000")
    of_init = Path(f"/proc/{container.pid}/cgroup").read_text()
    of_exec = Path(f"/proc/{tenant.pid}/cgroup").read_text()
    os.kill(tenant.pid, 9)
    os.waitpid(tenant.pid, 0x40000000)
    tenant.pidfd.close()
    assert of_exec == of_init
    assert "manor-tests" in of_exec


def test_an_exec_sees_the_containers_root_and_hosts_name(runner: Runner) -> None:
    container = runner.started()
    output = runner.exec(container, "sh", "-c", "hostname; ls /proc/1/root/bin/busybox; pwd", cwd="/tmp")
    assert output.stdout.split() == ["manor", "/proc/1/root/bin/busybox", "/tmp"]


def test_an_exec_has_its_own_user_and_environment(runner: Runner) -> None:
    container = runner.started()
    output = runner.exec(
        container,
        *("sh", "-c", "id -u; echo $WHO; echo $HOME"),
        user={"uid": 1000, "gid": 1000},
        env=["PATH=/bin", "WHO=me"],
    )
    assert output.stdout.split() == ["1000", "me", "/home/user"]


def test_a_command_that_is_not_there_is_named(runner: Runner) -> None:
    container = runner.started()
    with pytest.raises(StageError, match=r'exec: "nonsense": executable file not found in \$PATH'):
        runner.exec(container, "nonsense")


def test_a_bad_user_is_refused(runner: Runner) -> None:
    container = runner.started()
    with pytest.raises(ConfigError, match=r"user\.uid"):
        runner.exec(container, "true", user={"uid": 2**32, "gid": 0})


def test_an_exec_in_a_container_that_has_ended_is_refused(runner: Runner) -> None:
    container = runner.started()
    runner.stop(container)
    with pytest.raises(InvalidState, match="cannot exec in container .* in stopped state"):
        runner.exec(container, "true")


def test_an_exec_in_a_container_whose_end_was_not_seen_yet_fails_cleanly(runner: Runner) -> None:
    container = runner.started()
    os.kill(container.pid, 9)
    os.waitid(os.P_PID, container.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(StageError):
        runner.exec(container, "true")


def test_many_execs_leave_nothing(runner: Runner) -> None:
    container = runner.started()
    for number in range(40):
        assert runner.exec(container, "sh", "-c", f"exit {number}").code == number


def test_an_exec_gets_the_controlling_terminal_it_asks_for(runner: Runner) -> None:
    container = runner.started()
    tenant = runner.exec_tenant(
        container,
        "sh",
        "-c",
        "tty; stty size; test -t 0 && exit 5",
        terminal=True,
        consoleSize={"height": 40, "width": 90},
    )
    assert tenant.console is not None
    text = b""
    while True:
        try:
            data = os.read(tenant.console.fileno(), 4096)
        except OSError:
            break
        text += data
    status = os.waitpid(tenant.pid, 0x40000000)[1]
    tenant.console.close()
    tenant.pidfd.close()
    assert os.WEXITSTATUS(status) == 5
    assert text.decode().split() == ["/dev/pts/0", "40", "90"]


def test_an_exec_takes_its_containers_umask_unless_it_has_its_own(runner: Runner) -> None:
    def umask(config: dict[str, Any]) -> None:
        config["process"]["user"]["umask"] = 0o077

    container = runner.started(change=umask)
    assert runner.exec(container, "sh", "-c", "umask").stdout == "0077\n"
    own = {"uid": 0, "gid": 0, "umask": 0o027}
    assert runner.exec(container, "sh", "-c", "umask", user=own).stdout == "0027\n"


def test_a_filter_that_allows_little_does_not_stop_the_start(runner: Runner) -> None:
    """Neither that of an exec: between the filter and the program there are only calls that the program makes too."""
    # What busybox itself makes, and execve: anything that we added would be killed.
    calls = "execve exit exit_group brk mmap munmap mprotect read write readlink readlinkat arch_prctl set_tid_address"
    calls += " set_robust_list rseq prlimit64 getrandom prctl getuid nanosleep clock_nanosleep fstat newfstatat ioctl"

    def strict(config: dict[str, Any]) -> None:
        config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_KILL_PROCESS",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": calls.split(), "action": "SCMP_ACT_ALLOW"}],
        }

    container = runner.started(change=strict)
    assert runner.exec(container, "echo", "out").stdout == "out\n"


def test_an_exec_that_names_no_capabilities_has_its_containers(runner: Runner) -> None:
    container = runner.started()
    of_init = Path(f"/proc/{container.pid}/status").read_text()
    of_exec = runner.exec(container, "cat", "/proc/self/status", capabilities=None).stdout
    assert _capabilities(of_exec) == _capabilities(of_init)


def _capabilities(status: str) -> list[str]:
    return [line for line in status.splitlines() if line.startswith(("CapBnd", "CapPrm", "CapInh"))]


def test_nothing_of_the_host_is_seen_of_an_exec_from_inside(runner: Runner) -> None:
    """A container with CAP_SYS_PTRACE watches the processes that appear in its PID namespace."""

    def trace(config: dict[str, Any]) -> None:
        for kind in config["process"]["capabilities"].values():
            kind.append("CAP_SYS_PTRACE")

    canary = runner.directory / "canary"
    canary.write_text("of the host")
    watch = f"while :; do cat /proc/[2-9]*/root{canary} /proc/[2-9]*/mountinfo; done 2>/dev/null"
    bundle = runner.bundle("sh", "-c", watch)
    trace(bundle.config)
    readable, writable = os.pipe()
    container = runner.create(bundle, Stdio(-1, writable, -1))
    os.close(writable)
    run(start(container))
    runner.shape = ""  # as it is chosen: the direct shape is not for containers with a PID namespace
    seen = bytearray()
    os.set_blocking(readable, False)
    for _ in range(60):
        runner.exec(container, "true")
        try:
            while data := os.read(readable, 1 << 16):
                seen += data
        except BlockingIOError:
            pass
    os.close(readable)
    assert b"of the host" not in seen
    assert str(runner.directory).encode() + b"/state" not in seen
    assert b" - cgroup2 " not in seen  # mounted on the host alone
