"""Whose a pod's state directory is: the lock that says so, and the note."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from runtime.linux.fds import OwnedFd
from runtime.record import as_dict
from shim import deed, sockets
from shim.deed import Deed
from shim.sockets import SocketError

MADE = Deed(7, 70, "k8s.io", "p1", "/s/1", "/bundles/p1", "/run/containerd.sock", 1)


@pytest.fixture
def pod(tmp_path: Path) -> str:
    return str(tmp_path / "pods" / "abc")


def test_nobody_takes_what_somebody_holds(pod: str) -> None:
    first, second = deed.hold(pod), deed.hold(pod)  # a shim that ends, and the next
    first.close()
    with pytest.raises(TimeoutError):
        deed.take(pod, 0)
    second.close()
    taken = deed.take(pod, 0)
    assert taken is not None
    taken.close()


def test_who_inherits_the_lock_keeps_it(pod: str) -> None:
    held = deed.hold(pod)
    inherited = OwnedFd(os.dup(held.fileno()))
    held.close()
    with pytest.raises(TimeoutError):
        deed.take(pod, 0)
    inherited.close()


def test_there_is_nothing_to_take_of_a_pod_that_is_gone(pod: str) -> None:
    assert deed.take(pod, 0) is None


def test_a_start_waits_for_whoever_removes_the_last_pod_and_makes_a_new_one(pod: str) -> None:
    os.makedirs(pod)
    taken = deed.take(pod, 0)
    assert taken is not None
    held: list[OwnedFd] = []
    start = threading.Thread(target=lambda: held.append(deed.hold(pod)))
    start.start()
    sockets.forget_pod(pod)
    taken.close()
    start.join(30)
    assert len(held) == 1
    assert os.path.samestat(os.fstat(held[0].fileno()), os.stat(pod))
    held[0].close()


def test_a_start_makes_what_was_removed_under_its_eyes(pod: str, monkeypatch: pytest.MonkeyPatch) -> None:
    removals = [pod, pod]

    def make(directory: str) -> None:
        sockets.make_directory(directory)
        if removals:
            os.rmdir(removals.pop())
            os.stat(directory)

    monkeypatch.setattr(deed, "make_directory", make)
    deed.hold(pod).close()
    assert not removals


def test_a_start_does_not_wait_for_ever(pod: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deed, "PATIENCE_S", 0.02)
    os.makedirs(pod, 0o700)
    taken = deed.take(pod, 0)
    assert taken is not None
    with taken, pytest.raises(SocketError, match="being removed"):
        deed.hold(pod)


def test_a_shim_that_ends_leaves_the_directory_to_the_next(pod: str) -> None:
    ending, following = deed.hold(pod), deed.hold(pod)
    deed.write(following, MADE)
    deed.give_up(pod, ending)
    assert deed.read(pod) == MADE
    deed.give_up(pod, following)
    assert not os.path.exists(pod)


def test_the_note_is_read_as_it_was_written(pod: str) -> None:
    with deed.hold(pod) as held:
        deed.write(held, MADE)
        assert deed.read(pod) == MADE
        assert os.listdir(pod) == [deed.NOTE]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", '{"pid":7}', '{"pid":"7","start_time":1}', "\udcff", '{"pid":-1}']
)
def test_a_note_that_says_nothing_sensible_counts_as_none(pod: str, content: str) -> None:
    os.makedirs(pod)
    Path(pod, deed.NOTE).write_bytes(os.fsencode(content))
    assert deed.read(pod) is None


@pytest.mark.parametrize("field", ["pid", "start_time", "began"])
def test_a_number_that_no_process_and_no_clock_has_is_none(pod: str, field: str) -> None:
    os.makedirs(pod)
    Path(pod, deed.NOTE).write_bytes(json.dumps({**as_dict(MADE), field: 10**400}).encode())
    assert deed.read(pod) is None


def test_a_note_is_not_looked_for_behind_a_link(pod: str, tmp_path: Path) -> None:
    with deed.hold(pod) as held:
        deed.write(held, MADE)
    os.rename(f"{pod}/{deed.NOTE}", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", f"{pod}/{deed.NOTE}")
    assert deed.read(pod) is None


def test_the_claim_comes_before_the_socket_and_only_for_who_gets_it(tmp_path: Path) -> None:
    path = str(tmp_path / "s" / "socket")
    seen: list[bool] = []
    listener = sockets.listen(path, lambda: seen.append(os.path.exists(path)))
    assert listener is not None
    assert seen == [False]
    listener.close()


def test_the_note_of_an_earlier_version_is_read_and_what_a_later_one_says_besides_is_left_alone(
    tmp_path: Path,
) -> None:
    recorded = Path(__file__).parents[2] / "recorded/0.1.0/pod"
    found = deed.read(str(recorded))
    assert found is not None
    assert (found.pid, found.id, found.namespace, found.bundle) == (
        4194304,
        "c1",
        "test",
        "/tmp/door/bundles/c1",
    )
    told = json.loads((recorded / deed.NOTE).read_text())
    (tmp_path / deed.NOTE).write_text(json.dumps({**told, "novel": [1]}))
    assert deed.read(str(tmp_path)) == found
