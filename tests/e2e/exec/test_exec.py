"""Execs, over the streaming door as `kubectl exec` uses it and over the synchronous one as probes do."""

from __future__ import annotations

import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.crictl import Crictl
from tests.harness.waiting import eventually


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "stream"])
@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_reaches_the_client(crictl: Crictl, container: str, code: int, sync: bool) -> None:
    assert crictl.execute(container, "sh", "-c", f"exit {code}", sync=sync, check=False).exit_code == code


def test_both_streams_reach_the_client_apart(crictl: Crictl, container: str) -> None:
    result = crictl.execute(container, "sh", "-c", "echo out; echo err >&2")
    assert result.stdout.strip() == "out"
    assert result.stderr.strip() == "err"


def test_a_probe_gets_both_streams(crictl: Crictl, container: str) -> None:
    # crictl prints both on its stdout here.
    assert crictl.execute(container, "sh", "-c", "echo out; echo err >&2", sync=True).stdout.split() == [
        "out",
        "err",
    ]


def test_stdin_reaches_the_command_and_its_end_too(crictl: Crictl, container: str) -> None:
    result = crictl.run("exec", "-i", container, "sh", "-c", "cat; echo done", stdin=b"one\ntwo\n")
    assert result.stdout.split() == ["one", "two", "done"]


def test_ten_megabytes_pass_both_ways_unchanged(crictl: Crictl, container: str) -> None:
    data = b"0123456789abcdef" * (10 << 16)
    counted = crictl.run("exec", "-i", container, "md5sum", stdin=data).stdout.split()[0]
    expected = (
        subprocess.run(["md5sum"], input=data, capture_output=True, check=True).stdout.split()[0].decode()
    )
    assert counted == expected
    result = crictl.execute(container, "sh", "-c", "head -c 10485760 /dev/zero | tr '\\0' x")
    assert result.stdout.count("x") == 10 << 20


def test_the_exit_comes_after_the_last_byte(crictl: Crictl, container: str) -> None:
    for _ in range(10):
        assert (
            crictl.execute(container, "sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x").stdout.count("x")
            == 100000
        )


def test_a_terminal_is_given_and_has_the_clients_size(crictl: Crictl, container: str) -> None:
    script = "tty; stty size; test -t 0 -a -t 1 -a -t 2 && echo all three; exit 5"
    result = crictl.on_terminal("exec", "-it", container, "sh", "-c", f"sleep 0.3; {script}", size=(33, 99))
    assert "/dev/pts/" in result.stdout
    assert "33 99" in result.stdout
    assert "all three" in result.stdout
    assert "exit code 5" in result.stdout


def test_keys_typed_on_a_terminal_reach_the_command(crictl: Crictl, container: str) -> None:
    result = crictl.on_terminal("exec", "-it", container, "sh", typed=b"echo $((6*7))\nexit\n")
    assert "42" in result.stdout


def test_interrupt_typed_on_a_terminal_ends_the_command(crictl: Crictl, container: str) -> None:
    start = time.monotonic()
    # The interrupt must find the command running: the shell asks for the key when it is ready for it.
    result = crictl.on_terminal("exec", "-it", container, "sh", typed=b"sleep 60; echo $?\n\x03exit\n")
    assert time.monotonic() - start < 30
    assert result.code == 0 or "exit code" in result.stdout


def test_an_exec_has_the_containers_confinement(crictl: Crictl, pod: str) -> None:
    context = {"no_new_privs": True, "seccomp": {"profile_type": 0}, "run_as_user": {"value": 1000}}
    container = crictl.run_container(pod, ["sleep", "1000"], linux={"security_context": context})
    own = dict(
        line.split(":\t", 1)
        for line in crictl.execute(container, "cat", "/proc/1/status").stdout.split("\n")
        if ":\t" in line
    )
    new = dict(
        line.split(":\t", 1)
        for line in crictl.execute(container, "cat", "/proc/self/status").stdout.split("\n")
        if ":\t" in line
    )
    for name in (
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
    ):
        assert new[name] == own[name], name


def test_an_exec_is_in_the_containers_cgroups_and_namespaces(crictl: Crictl, container: str) -> None:
    """But for the v2 hierarchy, where Manor's have a cgroup each below it."""
    for path in ("/proc/{}/cgroup", "/proc/{}/ns"):
        command = f"cat {path}" if path.endswith("cgroup") else f"ls -l {path} | sed 's/.*-> //'"
        first = crictl.execute(container, "sh", "-c", command.format("1")).stdout
        second = crictl.execute(container, "sh", "-c", command.format("self")).stdout
        assert first == re.sub("^(0::.*)/exec-[0-9a-f]{8}$", r"\1", second, flags=re.MULTILINE)


def test_an_exec_has_only_its_three_descriptors(crictl: Crictl, container: str) -> None:
    # The fourth is the directory that ls reads.
    assert crictl.execute(container, "ls", "/proc/self/fd").stdout.split() == ["0", "1", "2", "3"]


def test_a_probe_that_takes_too_long_is_ended(crictl: Crictl, container: str) -> None:
    result = crictl.run("exec", "-s", "--timeout", "1", container, "sleep", "2000", check=False)
    assert result.code != 0
    deadline = time.monotonic() + 60
    while "sleep 2000" in crictl.execute(container, "ps").stdout and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "sleep 2000" not in crictl.execute(container, "ps").stdout


@pytest.mark.manor_only("runc's shim ends the process that it knows, and no other")
def test_and_so_is_all_that_it_has_started(crictl: Crictl, container: str) -> None:
    forks = "setsid sh -c 'setsid sleep 1061 &'; sleep 1062"
    result = crictl.run("exec", "-s", "--timeout", "1", container, "sh", "-c", forks, check=False)
    assert result.code != 0

    def left() -> str:
        return crictl.execute(container, "ps").stdout

    eventually(lambda: not any(text in left() for text in ("sleep 1061", "sleep 1062")))
    assert "sleep 1000" in left()


def test_sixteen_execs_at_once_keep_their_codes_and_output_apart(crictl: Crictl, container: str) -> None:
    def one(number: int) -> tuple[int, str]:
        result = crictl.execute(
            container, "sh", "-c", f"echo {number}; exit {number}", sync=True, check=False
        )
        return result.exit_code, (result.stdout + result.stderr)

    with ThreadPoolExecutor(16) as pool:
        for number, (code, output) in enumerate(pool.map(one, range(16))):
            assert code == number
            assert str(number) in output


def test_a_killed_exec_reports_its_signal_and_the_container_stays(crictl: Crictl, container: str) -> None:
    result = crictl.execute(container, "sh", "-c", "kill -9 $$", check=False)
    assert result.exit_code == 137
    assert crictl.status(container)["state"] == "CONTAINER_RUNNING"


def test_an_exec_still_running_ends_with_its_container(crictl: Crictl, container: str) -> None:
    client = subprocess.Popen([*crictl.command, "exec", container, "sleep", "1000"])
    try:
        deadline = time.monotonic() + 60
        while "sleep" not in crictl.execute(container, "sh", "-c", "ps | grep -v grep | tail -n +3").stdout:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        crictl.run("stop", "--timeout", "0", container)
        assert client.wait(60) != 0
    finally:
        client.kill()
        client.wait()
