"""What the delete action takes a bundle's config for: a create that was cut short, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime import state
from runtime.errors import MountError
from runtime.linux import procstat
from runtime.record import replace
from shim import backlog, deed, delete, journal, rootfs_mounts, systemd
from shim.deed import Deed
from shim.delete import Remains
from shim.journal import Exit, Journal
from shim.log import Log
from shim.pod_files import PodFiles
from shim.sockets import record_socket
from tests.unit.states import state_json


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cgroups that were gone for, none of which exists."""
    paths: list[str] = []

    def open_cgroup(_layout: object, path: str, _container_id: str) -> SimpleNamespace:
        paths.append(path)
        return SimpleNamespace(path=path, paths={})

    monkeypatch.setattr(delete, "open_cgroup", open_cgroup)
    monkeypatch.setattr(delete, "cgroup_asked_for", open_cgroup)
    return paths


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    path = tmp_path / "bundle"
    path.mkdir()
    config = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "linux": {"cgroupsPath": "/somebody"},
    }
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


@pytest.mark.parametrize(
    ("container_id", "content", "wanted"),
    [
        (None, None, []),
        ("c1", None, ["/somebody"]),
        ("c1", "{", ["/somebody"]),
        ("c1", state_json("c1"), ["/own"]),
        ("other", None, []),
        ("other", state_json("other"), ["/own"]),
    ],
)
def test_the_config_counts_only_for_an_id_with_a_directory_and_no_state(
    tmp_path: Path,
    opened: list[str],
    bundle: str,
    container_id: str | None,
    content: str | None,
    wanted: list[str],
) -> None:
    root = tmp_path / "pod"
    root.mkdir()
    (root / "@socket").write_text("/nowhere")
    if container_id is not None:
        (root / container_id).mkdir()
        if content is not None:
            (root / container_id / "state.json").write_text(content)
    Remains(str(root), SimpleNamespace()).remove_all("c1", bundle)  # type: ignore[arg-type]
    assert opened == wanted
    assert not root.exists()


# --- how the containers ended ---


@pytest.fixture
def pod(tmp_path: Path, opened: list[str]) -> Path:
    """A pod with two containers whose bundles are still there, and a journal."""
    root = tmp_path / "pod"
    for name in ("c1", "c2"):
        (root / name).mkdir(parents=True)
        (tmp_path / f"bundle-{name}").mkdir()
        told = json.loads(state_json(name, bundle=str(tmp_path / f"bundle-{name}")))
        (root / name / "state.json").write_text(json.dumps(told))
    return root


PID = 2**22


def on_record(pod: Path, *entries: Exit) -> None:
    written = Journal(str(pod), Log("", "test"))
    for entry in entries:
        written.append(entry)
    written.close()


def owned_by(pod: Path, socket: str) -> None:
    """The notes of a shim that listened at `socket`."""
    made = Deed(PID, 1, "k8s.io", "p1", socket, f"{pod.parent}/bundles/p1", "", 1)
    with deed.hold(str(pod)) as held:
        deed.write(held, made)
    record_socket(str(pod), socket)


def remove(pod: Path, container_id: str) -> Exit:
    remains = Remains(str(pod), SimpleNamespace())  # type: ignore[arg-type]
    return remains.remove_all(container_id, str(pod.parent / f"bundle-{container_id}"))


ENDED = Exit("c1", "", PID, 1, 3, 0, 1_700_000_000_000_000_000)
OTHER = Exit("c2", "", PID, 1, 4, 0, 1_700_000_000_000_000_001)


def test_a_journalled_exit_is_the_answer(pod: Path) -> None:
    on_record(pod, ENDED, Exit("c1", "e1", 5, 1, 9, 0, 1))
    assert remove(pod, "c1") == ENDED
    assert not pod.exists()


def test_without_a_record_it_was_killed_now(pod: Path) -> None:
    on_record(pod, OTHER)
    before = time.time_ns()
    answer = remove(pod, "c1")
    assert (answer.pid, answer.code, answer.signal) == (PID, 137, 9)
    assert answer.exited_at >= before


def test_the_exit_of_an_earlier_container_of_that_name_is_not_its(pod: Path) -> None:
    on_record(pod, replace(ENDED, start_time=2))
    assert remove(pod, "c1").code == 137


def test_where_the_state_is_damaged_the_name_must_do(pod: Path) -> None:
    on_record(pod, ENDED)
    (pod / "c1/state.json").write_text("{")
    assert remove(pod, "c1") == ENDED


def test_the_exits_of_the_others_wait_in_their_bundles(pod: Path) -> None:
    """The journal goes with the pod at the first `delete`; on 1.6 one comes for each container."""
    on_record(pod, ENDED, OTHER)
    assert remove(pod, "c1") == ENDED
    assert remove(pod, "c2") == OTHER


def test_who_was_removed_by_a_shim_that_could_not_say_so_ended_as_on_record(pod: Path) -> None:
    """The shim was killed in its Delete, between the removal and the answer: there is no state any more."""
    for name in ("c1", "c2"):
        (pod.parent / "bundles" / name).mkdir(parents=True)
    on_record(pod, OTHER, replace(OTHER, start_time=2, code=5), Exit("c2", "e1", 5, 1, 9, 0, 1))
    state.remove_directory(str(pod), "c2")
    answers = [
        Remains(str(pod), SimpleNamespace()).remove_all(name, f"{pod.parent}/bundles/{name}")  # type: ignore[arg-type]
        for name in ("c1", "c2")
    ]
    assert [answer.code for answer in answers] == [137, 5]


def test_so_it_is_where_a_new_shim_clears_away_what_was_left(pod: Path) -> None:
    for name in ("c1", "c2"):
        (pod.parent / "bundles" / name).mkdir(parents=True)
    owned_by(pod, str(pod.parent / "s"))
    on_record(pod, replace(OTHER, start_time=2, code=5))
    state.remove_directory(str(pod), "c2")
    Remains(str(pod), SimpleNamespace()).clear()  # type: ignore[arg-type]
    assert not pod.exists()
    assert delete.known_exit(str(pod), "c2", f"{pod.parent}/bundles/c2") == replace(
        OTHER, start_time=2, code=5
    )


def test_a_container_that_was_killed_with_the_pod_has_one_time_of_death(pod: Path) -> None:
    first = remove(pod, "c1")
    before = time.time_ns()
    second = remove(pod, "c2")
    assert (first.code, second.code, second.pid) == (137, 137, PID)
    assert second.exited_at < before


@pytest.mark.parametrize("name", ["a b", "c1~", "\udcff", "\n"])
def test_what_no_container_can_be_called_keeps_nobody_from_being_removed(
    pod: Path, opened: list[str], name: str
) -> None:
    (pod / name).mkdir()
    remove(pod, "c1")
    assert opened == ["/own", "/own"]
    assert [each.name for each in pod.iterdir()] == [name]


def test_a_bundle_that_is_gone_needs_no_note(pod: Path) -> None:
    (pod.parent / "bundle-c2").rmdir()
    on_record(pod, ENDED, OTHER)
    assert remove(pod, "c1") == ENDED
    assert remove(pod, "c2").code == 137


# --- what nobody asks a `delete` for ---


@pytest.fixture
def pods(tmp_path: Path) -> Path:
    """Where there is one pod, whose shim has died with nothing in it; its socket is there."""
    stillborn = tmp_path / "pods/p1"
    owned_by(stillborn, str(tmp_path / "s"))
    on_record(stillborn)
    (tmp_path / "s").touch()
    return tmp_path / "pods"


def test_of_a_shim_that_died_with_nothing_in_it_nothing_is_left(pods: Path) -> None:
    delete.bury_stillborn(str(pods))
    assert (list(pods.iterdir()), (pods.parent / "s").exists()) == ([], False)


def test_what_a_delete_needs_is_left_to_it(pods: Path) -> None:
    """A record, a container, events that wait, files of the pod."""
    others = [f"{pods}/{name}" for name in ("recorded", "contains", "told", "newer", "sandbox")]
    for directory in others:
        owned_by(Path(directory), str(pods.parent / "of-another"))
    on_record(Path(others[0]), ENDED)
    Path(others[1], "c1").mkdir()
    Path(others[2], backlog.FILE).touch()
    Path(others[3], journal.FILE).write_bytes(b'{"journal":999}\n')
    Path(others[4], "@pod").mkdir()
    (pods.parent / "of-another").touch()
    delete.bury_stillborn(str(pods))
    assert sorted(str(path) for path in pods.iterdir()) == sorted(others)
    assert (pods.parent / "of-another").exists()


def test_a_directory_that_is_being_made_is_left(pods: Path) -> None:
    (pods / "p2").mkdir()
    delete.bury_stillborn(str(pods))
    assert list(pods.iterdir()) == [pods / "p2"]


def test_a_pod_that_a_shim_holds_is_its(pods: Path) -> None:
    with deed.hold(str(pods / "p1")):
        delete.bury_stillborn(str(pods))
        assert (pods / "p1" / deed.NOTE).exists()


def test_a_pod_that_was_gone_and_is_made_anew_is_not_taken_for_the_dead_one(
    pods: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has it locked then: there was nothing to lock."""
    monkeypatch.setattr(deed, "take", lambda _directory, _patience_s: None)
    delete.bury_stillborn(str(pods))
    assert (pods / "p1" / deed.NOTE).exists()
    assert (pods.parent / "s").exists()


# --- what another version has left ---


RECORDED = sorted((Path(__file__).parents[2] / "recorded").iterdir())


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.name)
@pytest.mark.parametrize(("container_id", "code"), [("c1", 137), ("c2", 3)])
def test_what_earlier_versions_left_is_removed_and_its_exits_are_known(
    tmp_path: Path, opened: list[str], recorded: Path, container_id: str, code: int
) -> None:
    shutil.copytree(recorded / "pod", tmp_path / "pod")
    remains = Remains(str(tmp_path / "pod"), SimpleNamespace())  # type: ignore[arg-type]
    ended = remains.remove_all(container_id, "/tmp/door/bundles/" + container_id)
    assert (ended.container, ended.code, ended.pid) == (container_id, code, 4194304)
    assert remains.warnings == []
    assert [path.strip("/") for path in opened] == ["mnr-1/c1", "mnr-1/c2"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.name)
def test_a_note_that_an_earlier_version_left_is_the_answer(
    tmp_path: Path, opened: list[str], recorded: Path
) -> None:
    shutil.copy(recorded / "manor-exit.json", tmp_path / "manor-exit.json")
    remains = Remains(str(tmp_path / "pod"), SimpleNamespace())  # type: ignore[arg-type]
    assert remains.remove_all("c2", str(tmp_path)).code == 3


def test_of_a_later_version_init_is_killed_and_the_cgroup_goes_and_it_is_named(
    pod: Path, opened: list[str]
) -> None:
    with subprocess.Popen(["sleep", "1000"]) as init:
        told = json.loads((pod / "c1/state.json").read_text())
        told |= {"version": 2, "pid": init.pid, "start_time": procstat.start_time(init.pid)}
        told["cgroup_directories"] = [["memory", "/nowhere"]]
        (pod / "c1/state.json").write_text(json.dumps(told))
        remains = Remains(str(pod), SimpleNamespace())  # type: ignore[arg-type]
        before = os.listdir("/proc/self/fd")
        try:
            assert remains.remove_all("c1", str(pod.parent / "bundle-c1")).code == 137
            assert init.wait(30) == -9
            assert len(os.listdir("/proc/self/fd")) == len(before)
        finally:
            init.kill()
    assert opened == ["/own", "/own"]
    (warning,) = remains.warnings
    assert "state of container c1: version 2 is of a newer Manor" in warning
    assert not pod.exists()


def test_a_record_of_a_later_version_is_named_once_and_tells_nothing(pod: Path) -> None:
    (pod / "@exits").write_bytes(b'{"journal":2}\n' + ENDED.encode())
    remains = Remains(str(pod), SimpleNamespace())  # type: ignore[arg-type]
    assert remains.remove_all("c1", str(pod.parent / "bundle-c1")).code == 137
    (warning,) = remains.warnings
    assert "@exits: version 2 is of a newer Manor" in warning
    assert not pod.exists()


def test_what_cannot_be_removed_is_named_and_keeps_nothing_else_from_going(
    pod: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unmounted: list[str] = []

    def unmount(rootfs: str) -> None:
        unmounted.append(rootfs)
        raise MountError("stuck")

    monkeypatch.setattr(rootfs_mounts, "unmount", unmount)
    on_record(pod, ENDED)
    remains = Remains(str(pod), SimpleNamespace())  # type: ignore[arg-type]
    assert remains.remove_all("c1", str(pod.parent / "bundle-c1")) == ENDED
    assert set(unmounted) == {f"{pod.parent}/bundle-{name}/rootfs" for name in ("c1", "c2")}
    assert set(remains.warnings) == {"unmount: stuck"}
    assert opened == ["/own", "/own"]
    assert not pod.exists()


def test_what_is_left_in_a_frozen_cgroup_is_killed_before_it_is_thawed(
    pod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is to do nothing more, and does not go as long as it is frozen."""
    done: list[str] = []

    def remove_cgroup(_cgroup: object) -> Iterator[None]:
        done.append("remove")
        yield from ()

    cgroup = SimpleNamespace(
        paths={"": str(pod)},
        signal_all=lambda number: done.append(f"signal {number}"),
        thaw=lambda: done.append("thaw"),
    )
    monkeypatch.setattr(delete, "open_cgroup", lambda *_asked: cgroup)
    monkeypatch.setattr(delete, "remove_cgroup", remove_cgroup)
    remove(pod, "c1")
    assert done == ["signal 9", "thaw", "remove"] * 2


def test_a_root_is_unmounted_of_which_nothing_else_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmounted: list[str] = []
    monkeypatch.setattr(rootfs_mounts, "unmount", unmounted.append)
    Remains(str(tmp_path / "gone"), SimpleNamespace()).remove_all("c1", "/b")  # type: ignore[arg-type]
    assert unmounted == ["/b/rootfs"]


@pytest.mark.parametrize("damaged", [False, True])
def test_what_a_create_has_said_that_it_would_make_is_removed(
    tmp_path: Path, bundle: str, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """Whether it came no further, or the state that it has written cannot be read."""
    gone: list[object] = []
    monkeypatch.setattr(delete, "detach", gone.append)
    monkeypatch.setattr(delete, "rdt", SimpleNamespace(remove=lambda *group: gone.append(group)))
    monkeypatch.setattr(Remains, "_remove_cgroup_of", lambda *_left: None)
    directory = tmp_path / "pod" / "c1"
    directory.mkdir(parents=True)
    state.announce(str(directory), bundle, "/own", {"root_on_host": "/b/root", "rdt": ["group", True]})
    if damaged:
        (directory / "state.json").write_text("{")
    remains = Remains(str(tmp_path / "pod"), SimpleNamespace())  # type: ignore[arg-type]
    assert remains.remove_all("c1", bundle).code == 137
    assert gone == ["/b/root", ("group", True)]
    assert bool(remains.warnings) is damaged
    assert not (tmp_path / "pod").exists()


def test_of_a_container_that_has_said_nothing_there_is_a_warning(tmp_path: Path, opened: list[str]) -> None:
    (tmp_path / "pod" / "c1").mkdir(parents=True)
    remains = Remains(str(tmp_path / "pod"), SimpleNamespace())  # type: ignore[arg-type]
    remains.remove_all("c1", str(tmp_path))
    assert remains.warnings == ["container c1 does not exist"]


@pytest.mark.parametrize(("available", "units"), [(True, ["manor-c1.scope"]), (False, [])])
def test_a_unit_is_stopped_by_systemd_where_there_is_a_way_to_it(
    tmp_path: Path,
    opened: list[str],
    bundle: str,
    monkeypatch: pytest.MonkeyPatch,
    available: bool,
    units: list[str],
) -> None:
    asked: list[str] = []

    def cgroup(_layout: object, _path: str, unit: str, _systemd: object) -> SimpleNamespace:
        asked.append(unit)
        return SimpleNamespace(paths={})

    monkeypatch.setattr(delete, "Cgroup", cgroup)
    monkeypatch.setattr(systemd, "available", lambda: available)
    directory = tmp_path / "pod" / "c1"
    directory.mkdir(parents=True)
    known = {**json.loads(state_json("c1")), "unit": "manor-c1.scope"}
    (directory / "state.json").write_text(json.dumps(known))
    Remains(str(tmp_path / "pod"), SimpleNamespace()).remove_all("c1", bundle)  # type: ignore[arg-type]
    assert (opened, asked) == (["/own"], units)


@pytest.mark.parametrize(("container_id", "wanted"), [("p1", ["/somebody"]), ("c1", [])])
def test_a_landlords_config_counts_for_the_landlord(
    tmp_path: Path, opened: list[str], bundle: str, container_id: str, wanted: list[str]
) -> None:
    root = tmp_path / "pod"
    (root / container_id).mkdir(parents=True)
    Path(PodFiles(str(root)).bundle_of("p1")).parent.mkdir()
    Path(bundle).rename(PodFiles(str(root)).bundle_of("p1"))
    Remains(str(root), SimpleNamespace()).remove_all("other", "/nowhere")  # type: ignore[arg-type]
    assert opened == wanted


@pytest.mark.parametrize(("noted", "removed"), [(True, ["/own"]), (False, [])])
def test_of_a_create_that_was_cut_short_a_cgroup_that_is_in_use_is_its_own_only_if_it_was_noted(
    tmp_path: Path, bundle: str, monkeypatch: pytest.MonkeyPatch, noted: bool, removed: list[str]
) -> None:
    """Else it is that of somebody who has it for longer, and whose id the create would have been refused for."""
    load = sys.modules["runtime.operations.load"]  # the package has a function of that name
    used = SimpleNamespace(unit="", kept=True, holders=lambda _most: [1])
    used.keep = lambda _hierarchies: setattr(used, "kept", False)
    monkeypatch.setattr(load, "cgroup_asked_for", lambda *_asked: used)
    monkeypatch.setattr(load, "open_cgroup", lambda *_asked: used)
    gone: list[str] = []
    monkeypatch.setattr(Remains, "_remove_cgroup", lambda _self, each: gone.extend(["/own"] * each.kept))
    directory = tmp_path / "pod" / "c1"
    directory.mkdir(parents=True)
    state.announce(str(directory), "/nowhere", "/own")
    if noted:
        state.note_cgroup(str(directory))
    Remains(str(tmp_path / "pod"), SimpleNamespace()).remove_all("other", "/nowhere")  # type: ignore[arg-type]
    assert gone == removed
    assert not (tmp_path / "pod").exists()
