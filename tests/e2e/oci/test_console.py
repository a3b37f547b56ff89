"""Terminals: between ours and the container's in the foreground, and handed over by a socket else."""

from __future__ import annotations

import array
import fcntl
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.oci.conftest import Oci, cgroup_directories

_SIZE = (37, 101)


def _terminal(config: dict[str, Any]) -> None:
    config["process"]["terminal"] = True


def _resize(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


@dataclass
class User:
    """Somebody at a terminal, on which the command runs."""

    master: int
    process: subprocess.Popen[bytes]
    settings: list[Any]
    seen: bytes = b""

    def read_until(self, text: bytes, timeout_s: float = 60) -> bytes:
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                try:
                    self.seen += os.read(self.master, 65536)
                except OSError:
                    break  # EIO: nobody has it open any more
        assert text in self.seen, self.seen
        before, _found, self.seen = self.seen.partition(text)
        return before

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def wait(self) -> int:
        """The exit code; what is still written is read meanwhile."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.seen!r}"
            if select.select([self.master], [], [], 0.02)[0]:
                try:
                    self.seen += os.read(self.master, 65536)
                except OSError:
                    time.sleep(0.01)
        while select.select([self.master], [], [], 0)[0]:
            try:
                self.seen += os.read(self.master, 65536)
            except OSError:
                break
        return self.process.returncode


@pytest.fixture
def sit(oci: Oci) -> Iterator[Callable[..., User]]:
    """Starts the command on a new terminal of a session of its own."""
    users: list[tuple[User, int]] = []

    def start(*arguments: str | Path, **how: Any) -> User:
        master, slave = pty.openpty()
        _resize(master, *_SIZE)

        def own_it() -> None:
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        streams: dict[str, Any] = {"stdin": slave, "stdout": slave, "stderr": slave} | how
        process: subprocess.Popen[bytes] = subprocess.Popen(
            oci.words(*arguments),
            **streams,
            start_new_session=True,
            preexec_fn=own_it,  # noqa: PLW1509 -- the tests have one thread
            pass_fds=(slave,),
            env=oci.environment(),
            cwd=oci.directory,
        )
        user = User(master, process, termios.tcgetattr(slave))
        users.append((user, slave))
        return user

    yield start
    for user, slave in users:
        if user.process.poll() is None:
            user.process.kill()
        user.process.wait()
        os.close(user.master)
        os.close(slave)


# ---- in the foreground -------------------------------------------------------------------------


def test_a_shell_can_be_talked_to(oci: Oci, sit: Callable[..., User]) -> None:
    bundle = oci.bundle("sh", change=_terminal)
    user = sit("run", "-b", bundle.path, "c")
    user.read_until(b"# ")
    user.type(b"tty; stty size; exit 6\r")
    user.read_until(b"/dev/")
    assert user.wait() == 6
    assert b"%d %d" % _SIZE in user.seen


def test_our_terminal_is_raw_meanwhile_and_what_it_was_afterwards(oci: Oci, sit: Callable[..., User]) -> None:
    bundle = oci.bundle("sh", "-c", "echo ready; read x", change=_terminal)
    user = sit("run", "-b", bundle.path, "c")
    user.read_until(b"ready")
    during = termios.tcgetattr(user.master)
    assert not during[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    user.type(b"x\r")
    assert user.wait() == 0
    assert termios.tcgetattr(user.master) == user.settings


def test_our_terminal_is_put_back_when_the_start_fails(oci: Oci, sit: Callable[..., User]) -> None:
    bundle = oci.bundle("/broken", change=_terminal)
    (bundle.rootfs / "broken").write_text("#!/nonsense\n")
    (bundle.rootfs / "broken").chmod(0o755)
    user = sit("run", "-b", bundle.path, "c")
    assert user.wait() != 0
    assert termios.tcgetattr(user.master) == user.settings
    assert b"exec /broken: no such file or directory" in user.seen
    assert not cgroup_directories(bundle.path.name)


def test_keys_become_signals_inside(oci: Oci, sit: Callable[..., User]) -> None:
    bundle = oci.bundle(
        "sh", "-c", "trap 'exit 5' INT; echo ready; while :; do sleep 0.05; done", change=_terminal
    )
    user = sit("run", "-b", bundle.path, "c")
    user.read_until(b"ready")
    user.type(b"\x03")
    assert user.wait() == 5


def test_a_new_size_is_passed_on(oci: Oci, sit: Callable[..., User]) -> None:
    script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
    bundle = oci.bundle("sh", "-c", script, change=_terminal)
    user = sit("run", "-b", bundle.path, "c")
    user.read_until(b"ready")
    _resize(user.master, 50, 132)
    user.read_until(b"50 132")
    user.process.send_signal(signal.SIGKILL)
    user.process.wait()


def test_lines_end_as_on_any_terminal(oci: Oci, sit: Callable[..., User]) -> None:
    bundle = oci.bundle("sh", "-c", "echo one; echo two", change=_terminal)
    user = sit("run", "-b", bundle.path, "c")
    assert user.wait() == 0
    assert user.seen.replace(b"\r\n", b"\n") == b"one\ntwo\n"


def test_output_through_a_pipe_has_plain_lines(oci: Oci, sit: Callable[..., User]) -> None:
    bundle = oci.bundle("sh", "-c", "echo one; tty; echo two", change=_terminal)
    user = sit("run", "-b", bundle.path, "c", stdout=subprocess.PIPE)
    assert user.process.stdout is not None
    assert user.process.stdout.read() == b"one\n/dev/pts/0\ntwo\n"
    assert user.wait() == 0
    user.process.stdout.close()


def test_all_output_arrives(oci: Oci, sit: Callable[..., User]) -> None:
    bundle = oci.bundle(
        "sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done", change=_terminal
    )
    user = sit("run", "-b", bundle.path, "c")
    user.read_until(b"line 2999")
    assert user.wait() == 0


def test_much_input_arrives(oci: Oci, sit: Callable[..., User]) -> None:
    bundle = oci.bundle("sh", "-c", "stty -echo; echo ready; wc -c", change=_terminal)
    user = sit("run", "-b", bundle.path, "c")
    user.read_until(b"ready")
    for _line in range(200):
        user.type(b"x" * 99 + b"\r")
    user.type(b"\x04")
    assert user.wait() == 0
    assert b"20000" in user.seen


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_any_stream_may_be_redirected(oci: Oci, sit: Callable[..., User], stream: str) -> None:
    # runc gives it its size a little after its start, and sometimes does not pass on what is written before.
    script = (
        "until test -e /seen; do stty size 2>/dev/null; sleep 0.01; done; test -t 0 && test -t 1 && test -t 2"
    )
    bundle = oci.bundle("sh", "-c", script, change=_terminal)
    user = sit("run", "-b", bundle.path, "c", **{stream: subprocess.DEVNULL})
    if stream != "stdout":
        user.read_until(b"%d %d" % _SIZE)
    (bundle.rootfs / "seen").touch()
    assert user.wait() == 0


def test_without_a_terminal_of_ours_there_is_none_inside(oci: Oci) -> None:
    bundle = oci.bundle("true", change=_terminal)
    done = subprocess.run(
        oci.words("run", "-b", bundle.path, "c"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        env=oci.environment(),
        timeout=20,
        check=False,
    )
    assert done.returncode == 1
    assert b"/dev/tty" in done.stderr
    assert oci("state", "c").code == 1
    assert not cgroup_directories(bundle.path.name)


def test_an_exec_has_a_terminal_if_it_wants(oci: Oci, sit: Callable[..., User]) -> None:
    name = oci.started()
    user = sit("exec", "-t", name, "sh", "-c", "sleep 0.3; stty size; stat -c %u:%g $(tty); exit 3")
    assert user.wait() == 3
    assert b"%d %d" % _SIZE in user.seen
    assert b"0:5" in user.seen
    assert termios.tcgetattr(user.master) == user.settings


def test_an_exec_without_tty_has_none_whatever_the_container_has(oci: Oci, sit: Callable[..., User]) -> None:
    with _listener(oci.directory / "sock") as listener:
        bundle = oci.bundle("sleep", "1000", change=_terminal)
        oci.ok("run", "-d", "--console-socket", oci.directory / "sock", "-b", bundle.path, "c")
        os.close(_receive(listener)[1])
    assert oci("exec", "c", "test", "-t", "0").code == 1


def test_what_holds_the_terminal_open_does_not_keep_an_exec(oci: Oci, sit: Callable[..., User]) -> None:
    name = oci.started()
    user = sit("exec", "-t", name, "sh", "-c", "trap '' HUP; (trap '' HUP; sleep 1000) & echo said")
    assert user.wait() == 0
    assert b"said" in user.seen


# ---- by socket ---------------------------------------------------------------------------------


@contextmanager
def _listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(60)
        yield listener


def _receive(listener: socket.socket) -> tuple[bytes, int]:
    connection, _peer = listener.accept()
    with connection:
        connection.settimeout(60)
        data, ancillary, _flags, _address = connection.recvmsg(4096, socket.CMSG_SPACE(4))
    ((_level, kind, rights),) = ancillary
    assert kind == socket.SCM_RIGHTS
    numbers = array.array("i", rights)
    return data, numbers[0]


def _read_all(master: int) -> bytes:
    text = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:
            return text
        if not data:
            return text
        text += data


@pytest.mark.parametrize("how", ["create", "run"])
def test_the_socket_gets_the_terminal_by_its_name(oci: Oci, how: str) -> None:
    bundle = oci.bundle("sh", "-c", "tty; stty size; read x; echo got $x", change=_terminal)
    bundle.config["process"]["consoleSize"] = {"height": 12, "width": 34}
    bundle.write()
    with _listener(oci.directory / "sock") as listener:
        detach = ["-d"] if how == "run" else []
        oci.ok(how, *detach, "--console-socket", oci.directory / "sock", "-b", bundle.path, "c")
        name, master = _receive(listener)
    assert name in (b"/dev/ptmx", b"/dev/pts/ptmx")
    if how == "create":
        oci.ok("start", "c")
    os.write(master, b"this\n")
    text = _read_all(master)
    os.close(master)
    assert {b"/dev/pts/0", b"12 34", b"got this"} <= set(
        text.split(b"\r\n")
    )  # and the echo of what was typed


def test_an_exec_hands_its_terminal_over(oci: Oci) -> None:
    name = oci.started()
    with _listener(oci.directory / "sock") as listener:
        oci.ok(
            "exec", "-d", "-t", "--console-socket", oci.directory / "sock", name, "sh", "-c", "sleep 0.2; tty"
        )
        _name, master = _receive(listener)
    assert b"/dev/pts/0" in _read_all(master)
    os.close(master)


def test_a_relative_socket_is_taken_from_the_bundle(oci: Oci) -> None:
    bundle = oci.bundle("true", change=_terminal)
    with _listener(bundle.path / "sock") as listener:
        oci.ok("create", "--console-socket", "sock", "-b", bundle.path, "c")
        os.close(_receive(listener)[1])


@pytest.mark.parametrize(
    ("words", "terminal", "told"),
    [
        (["create"], True, "cannot allocate tty if {p} will detach without setting console socket"),
        (["run", "-d"], True, "cannot allocate tty if {p} will detach without setting console socket"),
        (
            ["run", "--console-socket", "x"],
            True,
            "cannot use console socket if {p} will not detach or allocate tty",
        ),
        (
            ["create", "--console-socket", "x"],
            False,
            "cannot use console socket if {p} will not detach or allocate tty",
        ),
        (["create", "--console-socket", "/nonexistent"], True, "/nonexistent"),
    ],
)
def test_a_terminal_needs_somebody_to_go_to(oci: Oci, words: list[str], terminal: bool, told: str) -> None:
    bundle = oci.bundle("true", change=_terminal if terminal else None)
    done = oci(*words, "-b", bundle.path, "c")
    assert done.code == 1
    assert done.error.endswith(told.replace("{p}", oci.name)) or (told[0] == "/" and told in done.error)
    assert oci("state", "c").code == 1
    assert not cgroup_directories(bundle.path.name)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-d", "-t"], "cannot allocate tty if {p} will detach without setting console socket"),
        (["--console-socket", "x"], "cannot use console socket if {p} will not detach or allocate tty"),
        (["-t", "--console-socket", "x"], "cannot use console socket if {p} will not detach or allocate tty"),
        (["-d", "--console-socket", "x"], "cannot use console socket if {p} will not detach or allocate tty"),
    ],
)
def test_the_same_of_an_exec(oci: Oci, words: list[str], told: str) -> None:
    name = oci.started()
    done = oci("exec", *words, name, "true")
    assert done.code == 255
    assert done.error == "exec failed: " + told.replace("{p}", oci.name)


# ---- pidfds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["create", "run"])
def test_a_pidfd_of_init_can_be_had(oci: Oci, how: str) -> None:
    bundle = oci.bundle()
    with _listener(oci.directory / "sock") as listener:
        detach = ["-d"] if how == "run" else []
        oci.ok(how, *detach, "--pidfd-socket", oci.directory / "sock", "-b", bundle.path, "c")
        name, pidfd = _receive(listener)
    assert name == b"standard"
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    oci.await_status("c", "stopped")


def test_a_pidfd_of_an_exec_can_be_had(oci: Oci) -> None:
    name = oci.started()
    file = oci.directory / "pid"
    with _listener(oci.directory / "sock") as listener:
        socket_path = oci.directory / "sock"
        oci.ok("exec", "-d", "--pidfd-socket", socket_path, "--pid-file", file, name, "sleep", "1000")
        told, pidfd = _receive(listener)
    assert told == b"setns"
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    assert oci.state(name)["status"] == "running"
