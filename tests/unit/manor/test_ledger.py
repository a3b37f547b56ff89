"""What is read from the ledger of a node, and what is not believed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from manor import leaks, ledger
from manor.ledger import Untrusted
from runtime import state
from runtime.cgroups.layout import detect_layout
from shim import deed
from shim.deed import Deed
from tests.unit.states import state_json


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A node with one pod of one container, and a shim that has ended."""
    made = tmp_path / "run"
    directory = made / "pods" / "abc"
    directory.mkdir(parents=True)
    for each in (made, made / "pods", directory):
        each.chmod(0o700)
    (tmp_path / "bundle").mkdir()
    note = Deed(2**22, 1, "k8s.io", "p1", "/s/1", str(tmp_path / "bundle"), str(tmp_path / "grpc"), 1)
    with deed.hold(str(directory)) as held:
        deed.write(held, note)
    (directory / "c1").mkdir()
    (directory / "c1" / "state.json").write_text(state_json())
    return made


def only(run_dir: Path) -> ledger.Pod:
    (found,) = ledger.pods(str(run_dir))
    return found


def test_a_pod_is_called_what_its_note_says(run_dir: Path) -> None:
    pod = only(run_dir)
    assert (pod.name, pod.namespace, pod.socket) == ("p1", "k8s.io", "/s/1")
    assert {name: known.pid for name, known in pod.containers.items() if known} == {"c1": 2**22}


def test_a_pod_of_an_earlier_version_has_no_note(run_dir: Path) -> None:
    os.rename(run_dir / "pods" / "abc" / "@shim", run_dir / "pods" / "abc" / "@socket")
    (run_dir / "pods" / "abc" / "@socket").write_text("/s/old")
    pod = only(run_dir)
    assert (pod.name, pod.namespace, pod.socket) == ("abc", "", "/s/old")
    assert pod.containerd_answers() is None


@pytest.mark.parametrize("content", [None, "", "{", state_json(version=9, pid="x")])
def test_a_container_whose_state_says_nothing_is_still_one(run_dir: Path, content: str | None) -> None:
    file = run_dir / "pods" / "abc" / "c1" / "state.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    assert only(run_dir).containers == {"c1": None}


def test_the_bundles_that_are_there_keep_a_pod_for_containerd_but_not_our_own(run_dir: Path) -> None:
    pod = only(run_dir)
    assert pod.bundles() == [str(run_dir.parent / "bundle")]
    (run_dir.parent / "bundle").rmdir()
    assert pod.bundles() == []
    own = run_dir / "pods" / "abc" / "@pod" / "p1.bundle"
    own.mkdir(parents=True)
    file = run_dir / "pods" / "abc" / "c1" / "state.json"
    file.write_text(state_json(bundle=str(own)))
    assert only(run_dir).bundles() == []


def test_a_containerd_is_there_if_somebody_accepts(run_dir: Path) -> None:
    pod = only(run_dir)
    assert pod.containerd_answers() is False
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.getcwd()
        os.chdir(run_dir.parent)  # the path may be longer than a socket's
        try:
            listener.bind("grpc")
        finally:
            os.chdir(before)
        listener.listen()
        if len(str(run_dir.parent / "grpc")) < 100:
            assert pod.containerd_answers() is True
    assert pod.containerd_answers() is False


@pytest.mark.parametrize("which", ["", "pods", "pods/abc"])
def test_a_directory_that_others_may_write_to_is_not_believed(run_dir: Path, which: str) -> None:
    (run_dir / which).chmod(0o770)
    with pytest.raises(Untrusted, match="others may write to it"):
        list(ledger.pods(str(run_dir)))


def test_neither_is_one_that_has_no_pods(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with pytest.raises(Untrusted, match="others may write to it"):
        list(ledger.pods(str(tmp_path)))


def test_a_pod_that_goes_while_it_is_looked_at_is_no_error(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = ledger.check_directory

    def go(path: str) -> None:
        check(path)
        if path.endswith("/abc"):
            os.rename(path, run_dir / "gone")

    monkeypatch.setattr(ledger, "check_directory", go)
    assert list(ledger.pods(str(run_dir))) == []


def test_there_may_be_no_node_at_all(tmp_path: Path) -> None:
    assert list(ledger.pods(str(tmp_path / "nowhere"))) == []
    assert list(ledger.dead_wardens(str(tmp_path / "nowhere"))) == []


def test_stages_are_known_by_name_and_shown_with_what_the_kernel_says() -> None:
    script = (
        "import ctypes; ctypes.CDLL(None).prctl(15, b'manor:[0:CREATE', 0, 0, 0); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        (found,) = [each for each in ledger.stages() if each.pid == child.pid]
        assert (found.name, found.session, found.parent) == ("0:CREATE", child.pid, os.getpid())
        child.kill()


def test_what_is_mounted_is_known_by_its_id() -> None:
    (root,) = [each for each in ledger.mounts() if each.point == "/"][-1:]
    assert root.id > 0
    assert root.fstype


def test_a_warden_that_holds_its_lock_is_not_dead(tmp_path: Path) -> None:
    lock = tmp_path / "warden-1.lock"
    lock.touch()
    script = (
        f"import os; os.lockf(os.open({str(lock)!r}, os.O_RDWR), os.F_LOCK, 1); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert list(ledger.dead_wardens(str(tmp_path))) == []
        child.kill()
    assert [each.stem for each in ledger.dead_wardens(str(tmp_path))] == [str(tmp_path / "warden-1")]


def test_the_groups_that_were_made_are_known_by_their_inodes(tmp_path: Path) -> None:
    for name in ("c1", "c2", "c3", "cgroup", "other"):
        (tmp_path / name).mkdir()
    made = [str(tmp_path / name) for name in ("cgroup", "other")]
    state.note_cgroup(str(tmp_path / "c1"), made)
    state.note_cgroup(str(tmp_path / "c2"))
    assert state.cgroup_inodes(str(tmp_path), "c1") == tuple(os.stat(each).st_ino for each in made)
    assert [state.cgroup_inodes(str(tmp_path), name) for name in ("c2", "c3", "c4")] == [(), (), ()]
    state.note_rdt(str(tmp_path / "c1"), made[0])
    assert state.rdt_inode(str(tmp_path), "c1") == os.stat(made[0]).st_ino
    assert [state.rdt_inode(str(tmp_path), name) for name in ("c2", "c4")] == [0, 0]


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (["warden-1.lock"], [("lock", "warden-1.lock", "a warden that did not come up")]),
        (["warden-1.lock", "warden-1.sock"], [("socket", "warden-1.sock", "warden")]),
    ],
)
def test_what_is_left_of_a_warden_is_named_by_the_file_that_is_there(
    tmp_path: Path, files: list[str], shown: list[tuple[str, str, str]]
) -> None:
    for name in files:
        (tmp_path / name).touch(0o600)
    left = leaks.Look(str(tmp_path), detect_layout()).take().leaks
    assert [
        (each.kind, Path(each.what).name, each.made_by)
        for each in left
        if each.what.startswith(str(tmp_path))
    ] == shown
