"""What the shim's side makes of the bytes of a request, and of a launcher that is not there any more."""

from __future__ import annotations

import os
import random
import socket
import threading
from pathlib import Path

import pytest

from runtime.cgroups.layout import Hierarchy, Layout, make_layout
from runtime.errors import InvalidArgument
from runtime.linux.fds import OwnedFd
from runtime.stages.seal import Seal
from shim import launcher, start_request
from shim.start_request import LauncherGone, Stdin, Unfaithful

SEAL = Seal(True)


def connection() -> tuple[socket.socket, OwnedFd]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return ours, OwnedFd(theirs.detach())


def send(ours: socket.socket, data: bytes, fds: int = 2) -> None:
    here = [os.open("/", os.O_PATH) for _number in range(fds)]
    socket.send_fds(ours, [data], here)
    for fd in here:
        os.close(fd)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_request_in_one_message() -> None:
    ours, theirs = connection()
    with ours, theirs:
        send(ours, b".2\0shim\0-v\0because\0A=b=c\0B\0A=second\0=\0")
        request = start_request.receive(theirs, SEAL)
        assert request.argv == ("shim", "-v")
        assert request.environ == {"A": "b=c", "": ""}
        assert request.origin == start_request.Origin(SEAL, "because")
        assert os.fstat(request.cwd_fd.fileno()).st_ino == os.stat("/").st_ino
        request.cwd_fd.close()
        request.stdin.close()


@pytest.mark.parametrize(
    ("data", "fds"),
    [
        (b"", 0),
        (b".", 2),
        (b".x\0a\0", 2),
        (b".2\0a\0", 2),
        (b".1\0a\0\0", 1),
        (b".1\0a\0\0", 3),
        (b"!", 0),
        (b".1\0a", 2),
    ],
)
def test_what_is_no_request_is_refused_and_leaks_nothing(data: bytes, fds: int) -> None:
    before = open_fds()
    ours, theirs = connection()
    with ours, theirs:
        if data:
            send(ours, data, fds)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(LauncherGone):
            start_request.receive(theirs, SEAL)
    assert open_fds() == before


def test_any_bytes_are_a_request_or_none() -> None:
    before = open_fds()
    chance = random.Random(1)
    for _round in range(300):
        ours, theirs = connection()
        with ours, theirs:
            for _part in range(chance.randrange(1, 4)):
                kind = chance.choice([b"+", b".", b"+", b"?"])
                body = bytes(chance.choice(b"\x0001279=A\xff") for _ in range(chance.randrange(40)))
                send(ours, kind + body, chance.choice([0, 1, 2]))
            ours.shutdown(socket.SHUT_WR)
            try:
                request = start_request.receive(theirs, SEAL)
            except LauncherGone:
                continue
            request.cwd_fd.close()
            request.stdin.close()
    assert open_fds() == before


def test_a_request_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_request, "LIMIT_BYTES", 1 << 20)
    ours, theirs = connection()
    with ours, theirs:

        def flood() -> None:
            try:
                while True:
                    ours.send(b"+" + b"x" * launcher.PART_BYTES)
            except OSError:
                pass

        sender = threading.Thread(target=flood)
        sender.start()
        with pytest.raises(LauncherGone):
            start_request.receive(theirs, SEAL)
        theirs.close()
        sender.join()


def test_a_launcher_that_stays_silent_is_given_up() -> None:
    ours, theirs = connection()
    with ours, theirs:
        start_request.be_patient(theirs.fileno(), 1)
        with pytest.raises(LauncherGone, match="did not arrive whole"):
            start_request.receive(theirs, SEAL)


def test_an_answer_for_a_launcher_that_has_gone() -> None:
    ours, theirs = connection()
    ours.close()
    reply = start_request.Reply(theirs)
    with pytest.raises(LauncherGone):
        reply.accept()
    with pytest.raises(LauncherGone):
        reply.send(0, b"address")
    theirs.close()


def stdin(data: bytes) -> Stdin:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return Stdin(OwnedFd(reader))


def test_stdin_is_read_to_its_end() -> None:
    assert stdin(b"bootstrap").read() == b"bootstrap"
    assert stdin(b"").read() == b""


def test_stdin_is_limited() -> None:
    assert stdin(b"1234").read(4) == b"1234"
    with pytest.raises(InvalidArgument, match="more than 4 bytes"):
        stdin(b"12345").read(4)


def test_stdin_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_request, "PATIENCE_S", 0.05)
    reader, writer = os.pipe()
    with OwnedFd(writer), pytest.raises(TimeoutError):
        Stdin(OwnedFd(reader)).read()


def test_nobody_is_asked_to_type() -> None:
    leader, terminal = os.openpty()
    with OwnedFd(leader):
        assert Stdin(OwnedFd(terminal)).read() == b""


def layout(tmp_path: Path, root: str = "/") -> Layout:
    hierarchies = []
    for name, version in (("memory", 1), ("cpu,cpuacct", 1), ("name=systemd", 1), ("unified", 2)):
        mountpoint = tmp_path / name
        for group in ("old", "new/deep"):
            (mountpoint / group).mkdir(parents=True)
            (mountpoint / group / "tasks").touch()
            (mountpoint / group / "cgroup.procs").touch()
        controllers = tuple(name.split(",")) if version == 1 else ("cpu",)
        hierarchies.append(Hierarchy(name, controllers, str(mountpoint), version, root))
    return make_layout(tuple(hierarchies))


def join(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, theirs: str, ours: str, root: str = "/"
) -> dict[str, str]:
    texts = {"/proc/7/cgroup": theirs, "/proc/self/cgroup": ours}
    monkeypatch.setattr(start_request, "read_whole", lambda path: texts[path].encode())
    start_request._join_cgroups(7, layout(tmp_path, root))
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_text()]
    return {str(path.relative_to(tmp_path)): path.read_text() for path in files}


OURS = "9:name=systemd:/old\n8:memory:/old\n4:cpuacct,cpu:/old\n0::/old\n"


def test_a_shim_joins_where_the_launcher_is_and_it_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = "9:name=systemd:/old\n8:memory:/new/deep\n4:cpuacct,cpu:/new/deep\n0::/new/deep\n"
    assert join(monkeypatch, tmp_path, theirs, OURS) == {
        "memory/new/deep/tasks": "0",
        "cpu,cpuacct/new/deep/tasks": "0",
        "unified/new/deep/cgroup.procs": "0",
    }


def test_a_shim_of_the_same_cgroups_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert join(monkeypatch, tmp_path, OURS, OURS) == {}


def test_paths_are_below_what_the_mount_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs = "8:memory:/box/new/deep\n"
    assert join(monkeypatch, tmp_path, theirs, OURS, "/box") == {"memory/new/deep/tasks": "0"}


@pytest.mark.parametrize("path", ["/../x", "/other/new"])
def test_a_cgroup_out_of_reach_is_refused(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not below"):
        join(monkeypatch, tmp_path, f"8:memory:{path}\n", OURS, "/box")


def test_what_cannot_be_adopted_is_named() -> None:
    with pytest.raises(LauncherGone):
        start_request.adopt(2**22 - 1, None)


def test_a_priority_that_is_not_ours_to_take_is_unfaithful(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "getpriority", lambda _which, who: -5 if who else 0)
    monkeypatch.setattr(os, "setpriority", refuse)
    with pytest.raises(Unfaithful, match="adopt what process"):
        start_request.adopt(os.getpid(), None)


def test_how_a_shim_came_to_be_is_worth_a_line_only_where_it_is_not_as_it_should_be() -> None:
    assert start_request.Origin(Seal(True)).notes() == ()
    assert start_request.Origin(Seal(False, "vm.memfd_noexec is 2"), "no warden came up").notes() == (
        "no warden (no warden came up): the shim was started by itself",
        "the interpreter is not sealed: vm.memfd_noexec is 2",
    )
