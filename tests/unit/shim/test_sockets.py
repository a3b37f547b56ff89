"""Sockets of shims: who listens, who has died, and that nobody else can get at them."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from runtime.errors import InvalidId
from runtime.linux.fds import OwnedFd
from runtime.state import check_id
from shim import sockets
from shim.sockets import SocketError
from shim.ttrpc.connection import Call, ServerConnection


def modes(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_socket_and_directories_are_for_their_owner_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        listener = sockets.listen(str(tmp_path / "a/b/socket"))
        assert listener is not None
        assert [modes(tmp_path / name) for name in ("a", "a/b", "a/b/socket")] == [0o700, 0o700, 0o600]
        assert os.umask(umask) == umask
        listener.close()
    finally:
        os.umask(before)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "ANSWER_TIMEOUT_S", 0.05)


def test_a_shim_that_answers_is_found_and_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    first = sockets.listen(path)
    assert first is not None
    listener = socket.socket(fileno=first.release())

    def serve() -> None:
        peer, _address = listener.accept()
        with peer:
            (call,) = ServerConnection().receive(peer.recv(4096))
            assert isinstance(call, Call)
            assert (call.service, call.method) == ("containerd.task.v2.Task", "Connect")
            peer.sendall(b"an answer")

    thread = threading.Thread(target=serve)
    thread.start()
    assert sockets.listen(path) is None
    thread.join()
    listener.close()


def test_a_shim_that_dies_with_its_socket_still_open_is_not_taken_for_alive(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    dying = sockets.listen(path)
    assert dying is not None
    timer = threading.Timer(0.1, dying.close)
    timer.start()
    assert not sockets.is_served(path)
    timer.join()


def test_a_shim_that_is_stopped_is_found_and_left_alone(tmp_path: Path, impatient: None) -> None:
    path = str(tmp_path / "socket")
    first = sockets.listen(path)
    assert first is not None
    assert sockets.is_served(path)
    assert sockets.listen(path) is None
    first.close()


def test_a_shim_too_busy_to_accept_counts_as_one_that_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "_BACKLOG", 0)
    path = str(tmp_path / "socket")
    first = sockets.listen(path)
    assert first is not None
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for each in waiting:
        each.setblocking(False)
        try:
            each.connect(path)
        except BlockingIOError:
            pass
    assert sockets.listen(path) is None
    for each in waiting:
        each.close()
    first.close()


def test_the_socket_of_a_dead_shim_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    dead = sockets.listen(path)
    assert dead is not None
    dead.close()
    assert os.path.exists(path)
    assert not sockets.is_served(path)
    again = sockets.listen(path)
    assert again is not None
    again.close()
    for _ in range(2):
        sockets.remove_socket(path)
    assert os.listdir(tmp_path) == []


def test_of_many_starts_at_once_one_becomes_the_shim(tmp_path: Path, impatient: None) -> None:
    path = str(tmp_path / "socket")
    dead = sockets.listen(path)
    assert dead is not None
    dead.close()
    won: list[OwnedFd] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        listener = sockets.listen(path)
        if listener is not None:
            won.append(listener)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert sockets.is_served(path)
    won[0].close()


def test_who_is_about_to_listen_keeps_others_out_and_looks_again_when_it_is_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def claim() -> None:
        with OwnedFd(os.open(tmp_path, os.O_RDONLY)) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    first = sockets.listen(str(tmp_path / "socket"), claim)
    assert first is not None
    answers = [False, True]  # it came up while we waited for our turn
    monkeypatch.setattr(sockets, "is_served", lambda _path: answers.pop(0))
    assert sockets.listen(str(tmp_path / "socket"), claim) is None
    assert (tmp_path / "socket").is_socket()
    first.close()


def test_what_is_in_the_way_of_a_socket_is_named_and_left(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for place, why in (
        ("directory", "listen on .*/directory: Is a directory"),
        ("loop", "listen on .*/loop: Too many levels of symbolic links"),
        ("file/a/socket", "create directory .*/file/a: Not a directory"),
    ):
        with pytest.raises(SocketError, match=why):
            sockets.listen(str(tmp_path / place))
    assert sorted(os.listdir(tmp_path)) == ["directory", "file", "loop"]


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(SocketError, match="others may write"):
        sockets.listen(str(tmp_path / "socket"))


def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(SocketError, match="others may write"):
        sockets.listen(str(tmp_path / "open/socket"))


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(SocketError, match="longer than 107 bytes"):
        sockets.listen(str(tmp_path / ("x" * 100)))


def test_where_a_shim_listens_is_known_until_its_pod_is_forgotten(tmp_path: Path) -> None:
    pod = str(tmp_path / "pods/abc")
    assert sockets.recorded_socket(pod) == ""
    sockets.record_socket(pod, "/elsewhere/s/abc")
    assert sockets.recorded_socket(pod) == "/elsewhere/s/abc"
    assert modes(tmp_path / "pods/abc") == 0o700
    (tmp_path / "pods/abc/c1").mkdir()
    sockets.forget_pod(pod)
    assert sockets.recorded_socket(pod) == "/elsewhere/s/abc"
    (tmp_path / "pods/abc/c1").rmdir()
    sockets.forget_pod(pod)
    assert not os.path.exists(pod)
    sockets.forget_pod(pod)


@pytest.mark.parametrize("path", ["/s/\0/abc", "\0abc", "/" + "x" * 200, "s/abc"])
def test_a_record_that_names_no_place_for_a_socket_names_none(tmp_path: Path, path: str) -> None:
    (tmp_path / "@socket").write_text(path)
    assert sockets.recorded_socket(str(tmp_path)) == ""


def test_the_record_cannot_be_taken_for_a_container() -> None:
    with pytest.raises(InvalidId):
        check_id("@socket")


def test_a_pods_state_lies_where_its_handler_wants_it_and_is_found_where_it_is_looked_for(
    tmp_path: Path,
) -> None:
    pod, root = tmp_path / "run" / "pods" / "abc", tmp_path / "root"
    for _ in range(2):
        sockets.place_pod(str(pod), str(root))
    sockets.record_socket(str(pod), "/s")
    sockets.place_pod(str(pod), str(root))
    assert sockets.recorded_socket(str(root / "abc")) == sockets.recorded_socket(str(pod)) == "/s"
    sockets.forget_pod(str(pod))
    assert list(root.iterdir()) == list(pod.parent.iterdir()) == []


def test_a_pods_state_that_is_there_already_stays_there(tmp_path: Path) -> None:
    pod, root = tmp_path / "pods" / "abc", tmp_path / "root"
    sockets.record_socket(str(pod), "/s")
    sockets.place_pod(str(pod), str(root))
    assert not pod.is_symlink()
    assert list(root.iterdir()) == []
    (root / "abc" / "c1").mkdir(parents=True, mode=0o700)
    (root / "abc").chmod(0o700)
    sockets.place_pod(str(pod), str(root))
    assert not pod.is_symlink()
    assert (root / "abc" / "c1").is_dir()


def test_a_full_disk_is_told_by_the_file_that_did_not_fit_and_not_by_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    pod, path = str(tmp_path / "pods" / "abc"), str(tmp_path / "s" / "abc")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SocketError) as told:
        sockets.listen(path, lambda: sockets.record_socket(pod, path))
    assert str(told.value) == f"write {pod}/@socket: No space left on device"
