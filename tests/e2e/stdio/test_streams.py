"""Standard streams over the shim's own socket (`io_type = "streaming"`), as containerd's CRI uses them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import Node
from tests.harness.crictl import Crictl
from tests.harness.handlers import MANOR_STREAMS
from tests.harness.waiting import eventually

pytestmark = pytest.mark.versions("2.3")
MIB = 1 << 20
# What a client of a stream has read, and had not written when it was killed: three pieces of 32 KiB, and its buffers.
IN_A_DAEMONS_HANDS = 160 * 1024


@pytest.fixture
def handler() -> str:
    """The one that streams."""
    return MANOR_STREAMS


def lines_of(crictl: Crictl, container: str, stream: str = "stdout") -> list[str]:
    """What containerd has written into a container's log, line by line."""
    path = Path(crictl.status(container)["logPath"])
    lines = [line.split(" ", 3) for line in path.read_text(encoding="utf-8").splitlines()]
    return [content for _time, name, _tag, content in lines if name == stream]


@contextmanager
def client(crictl: Crictl, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A crictl with pipes."""
    started = subprocess.Popen(
        [*crictl.command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def memory_of(pid: int) -> int:
    """The anonymous memory of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def test_there_is_no_fifo(node: Node, container: str) -> None:
    fifos = [path for path in node.containerd.state.rglob("*") if path.is_fifo()]
    assert [
        path for path in fifos if path.name != "log"
    ] == []  # that one is for what a shim itself has to say
    assert container


def test_the_log_has_all_of_a_container_that_ends_at_once(crictl: Crictl, pod: str) -> None:
    """containerd lets go of a stream when it deletes the task, whatever is in it."""
    script = "seq 1 20000; seq 1 500 >&2"
    containers = [crictl.run_container(pod, ["sh", "-c", script], name=f"brief-{n}") for n in range(6)]
    for container in containers:
        crictl.wait_for(container, "CONTAINER_EXITED")
        assert lines_of(crictl, container) == [str(n) for n in range(1, 20001)]
        assert lines_of(crictl, container, "stderr") == [str(n) for n in range(1, 501)]


def test_sixty_four_mib_pass_both_ways_unchanged(crictl: Crictl, container: str) -> None:
    data = os.urandom(MIB) * 64
    with client(crictl, "exec", "-i", container, "cat") as cat:
        out, err = cat.communicate(data, timeout=120)
        assert cat.returncode == 0, err
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


def test_an_exec_in_step_with_its_client_and_its_terminal(crictl: Crictl, container: str) -> None:
    assert crictl.execute(container, "echo", "probe", sync=True).stdout.split() == ["probe"]
    result = crictl.run(
        "exec", "-i", container, "sh", "-c", "cat; echo done; exit 3", stdin=b"1\n", check=False
    )
    assert (result.stdout.split(), result.exit_code) == (["1", "done"], 3)
    result = crictl.on_terminal(
        "exec",
        "-it",
        container,
        "sh",
        "-c",
        "sleep 0.3; stty size; read x; echo $x",
        typed=b"yes\n",
        size=(31, 97),
    )
    assert "31 97" in result.stdout
    assert "yes" in result.stdout


def test_an_exec_that_does_not_read_its_input_ends(crictl: Crictl, container: str) -> None:
    result = crictl.run("exec", "-i", container, "sh", "-c", "exit 5", stdin=bytes(8 * MIB), check=False)
    assert result.exit_code == 5


def test_attach_types_to_a_container_and_its_end_of_input_is_one(crictl: Crictl, pod: str) -> None:
    container = crictl.run_container(
        pod, ["sh", "-c", "echo ready; md5sum; sleep 0.5; echo after"], stdin=True, stdin_once=True
    )
    data = os.urandom(4 * MIB)
    eventually(lambda: "ready" in lines_of(crictl, container))
    with client(crictl, "attach", "-i", container) as attached:
        out, _err = attached.communicate(data, timeout=60)
    assert out.split()[0].decode() == hashlib.md5(data).hexdigest()
    crictl.wait_for(container, "CONTAINER_EXITED")
    assert lines_of(crictl, container)[2:] == ["after"]


def test_a_terminal_is_attached_to(crictl: Crictl, pod: str) -> None:
    container = crictl.run_container(pod, ["sh"], tty=True, stdin=True)
    result = crictl.on_terminal(
        "attach", "-it", container, typed=b"echo $((6*7)); stty size; exit\n", size=(29, 93)
    )
    assert "42" in result.stdout
    assert "29 93" in result.stdout
    crictl.wait_for(container, "CONTAINER_EXITED")


def test_a_slow_reader_stops_its_process_and_costs_the_shim_nothing(
    node: Node, crictl: Crictl, pod: str, container: str
) -> None:
    (shim,) = node.containerd.shim_pids(pod)
    crictl.execute(container, "true")
    before = memory_of(shim)
    script = "dd if=/dev/zero bs=65536 count=1024 2>/dev/null; echo written >&2"
    with client(crictl, "exec", container, "sh", "-c", script) as slow:
        assert slow.stdout is not None
        assert os.read(slow.stdout.fileno(), 1)
        os.kill(slow.pid, signal.SIGSTOP)
        for _ in range(5):
            assert crictl.execute(container, "echo", "served", sync=True).stdout.split() == ["served"]
        assert crictl.execute(container, "pidof", "dd").stdout.split()  # it is not done
        assert memory_of(shim) - before < MIB
        os.kill(slow.pid, signal.SIGCONT)
        out, err = slow.communicate(timeout=60)
    assert len(out) == 64 * MIB - 1
    assert b"written" in err


@pytest.mark.pods_since("2.1", "an earlier one does not find them when it starts")
def test_a_killed_containerd_finds_its_streams_again(node: Node, crictl: Crictl, pod: str) -> None:
    script = "n=0; while [ $n -lt 250 ]; do n=$((n+1)); echo $n; usleep 20000; done; exit 7"
    talker = crictl.run_container(pod, ["sh", "-c", script], name="talker")
    reader = crictl.run_container(
        pod, ["sh", "-c", "md5sum; echo end"], "reader", stdin=True, stdin_once=True
    )
    for _ in range(2):
        said = len(lines_of(crictl, talker))
        eventually(lambda said=said: len(lines_of(crictl, talker)) > said + 20)  # type: ignore[misc]
        node.containerd.restart()
    with client(crictl, "attach", "-i", reader) as attached:
        out, _err = attached.communicate(b"typed to the new one", timeout=60)
    assert out.split()[0].decode() == hashlib.md5(b"typed to the new one").hexdigest()
    assert crictl.wait_for(talker, "CONTAINER_EXITED")["exitCode"] == 7
    found = [int(line) for line in lines_of(crictl, talker)]
    # A line that it had read and not written is lost with a daemon, as from a fifo; none comes twice or too early.
    assert found == sorted(set(found))
    assert len(found) >= 248
    assert found[-1] == 250


@pytest.mark.pods_since("2.1", "an earlier one does not find them when it starts")
def test_a_flood_is_held_while_containerd_is_away_and_ends_whole(
    node: Node, crictl: Crictl, pod: str
) -> None:
    container = crictl.run_container(pod, ["sh", "-c", "seq 1 1000000; exit 9"], name="flood")
    eventually(lambda: len(Path(crictl.status(container)["logPath"]).read_bytes()) > MIB)
    node.containerd.restart()
    assert crictl.wait_for(container, "CONTAINER_EXITED")["exitCode"] == 9
    found = lines_of(crictl, container)
    numbers = [int(line) for line in found if line]
    # Whole lines but at the seam; after it everything.
    assert numbers[-1] == 1_000_000
    steps = [n for n in range(1, len(numbers)) if numbers[n] != numbers[n - 1] + 1]
    assert len(steps) <= 3
    assert (
        sum(len(str(n)) + 1 for n in range(1, 1_000_001)) - sum(len(line) + 1 for line in found)
        < IN_A_DAEMONS_HANDS
    )
