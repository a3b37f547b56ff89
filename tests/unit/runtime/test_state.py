"""Ids, a container's directory and its state file: always whole, never somebody else's."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from runtime import state, terms
from runtime.container import Terms
from runtime.errors import IdInUse, InvalidId, InvalidState, NotFound, describe
from runtime.linux.process import start_time
from runtime.spec.model import ExecCpuAffinity
from runtime.state import State

RECORDED = sorted((Path(__file__).parents[2] / "recorded").iterdir())
EXAMPLE = State(
    id="c1",
    bundle="/b",
    pid=4711,
    start_time=99,
    created="2026-01-02T03:04:05.000000006Z",
    cgroups_path="/pod/c1",
    cgroup_directories=(("memory", "/sys/fs/cgroup/memory/pod/c1"),),
    namespaces=0x20020000,
    rootfs="/b/rootfs",
    annotations={"a": "ö"},
    oci_version="1.2.0",
)


@pytest.mark.parametrize("good", ["a", "A-b_c+d.e0", "x" * 255, "..a", "..."])
def test_an_id_of_allowed_characters_is_taken(good: str) -> None:
    assert state.check_id(good) == good


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "a/b", "../a", "a\n", "a\0b", "ä", "\uff11", "x" * 256, "a b", "a\\b"]
)
def test_any_other_id_is_refused(bad: str) -> None:
    with pytest.raises(InvalidId):
        state.check_id(bad)


def test_a_container_directory_is_private_and_so_are_the_parents_made_for_it(tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    before = os.umask(0)
    try:
        state.make_directory(str(root), "c1", traversable=False)
    finally:
        os.umask(before)
    for path in (root.parent, root, root / "c1"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_container_directory_with_a_user_namespace_can_be_passed_through(tmp_path: Path) -> None:
    state.make_directory(str(tmp_path), "c1", traversable=True)
    assert stat.S_IMODE((tmp_path / "c1").stat().st_mode) == 0o711


def test_an_existing_id_is_in_use(tmp_path: Path) -> None:
    state.make_directory(str(tmp_path), "c1", traversable=False)
    with pytest.raises(IdInUse, match="c1"):
        state.make_directory(str(tmp_path), "c1", traversable=False)


def test_an_id_that_is_a_dangling_symlink_is_in_use_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "c1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IdInUse):
        state.make_directory(str(tmp_path), "c1", traversable=False)
    assert not (tmp_path / "elsewhere").exists()


def saved(root: Path, what: State = EXAMPLE) -> Path:
    directory = state.make_directory(str(root), what.id, traversable=False)
    state.save(directory, what)
    return Path(directory)


def test_a_saved_state_is_loaded_as_it_was(tmp_path: Path) -> None:
    saved(tmp_path)
    assert state.load(str(tmp_path), "c1") == EXAMPLE


def test_saving_leaves_one_private_file_and_no_temporary_one(tmp_path: Path) -> None:
    directory = saved(tmp_path)
    state.save(str(directory), EXAMPLE)
    assert os.listdir(directory) == ["state.json"]
    assert stat.S_IMODE((directory / "state.json").stat().st_mode) == 0o600


def test_a_save_that_fails_keeps_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = saved(tmp_path)

    def full(_fd: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="space"):
        state.save(str(directory), EXAMPLE)
    monkeypatch.undo()
    assert os.listdir(directory) == ["state.json"]
    assert state.load(str(tmp_path), "c1") == EXAMPLE


@pytest.mark.parametrize("file", [".create", ".cgroup", "state.json"])
def test_a_disk_that_is_full_is_told_by_the_file_that_did_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    def full(_fd: int, _data: object) -> int:
        raise OSError(28, "No space left on device")

    directory = str(saved(tmp_path))
    writers = {
        ".create": lambda: state.announce(directory, "/b", "/c"),
        ".cgroup": lambda: state.note_cgroup(directory),
        "state.json": lambda: state.save(directory, EXAMPLE),
    }
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="space") as told:
        writers[file]()
    assert describe(told.value) == f"{directory}/{file}: No space left on device"


def test_a_container_without_state_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="container c1 does not exist"):
        state.load(str(tmp_path), "c1")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"version": 1}', b'{"version": "2"}', b"\xff", b"{" * 5000]
)
def test_a_damaged_state_says_so(tmp_path: Path, content: bytes) -> None:
    directory = saved(tmp_path)
    (directory / "state.json").write_bytes(content)
    with pytest.raises(InvalidState, match="c1 is damaged"):
        state.load(str(tmp_path), "c1")


def test_a_state_with_a_field_of_the_wrong_type_is_damaged(tmp_path: Path) -> None:
    directory = saved(tmp_path)
    text = (directory / "state.json").read_text()
    assert "4711" in text
    (directory / "state.json").write_text(text.replace("4711", "true"))
    with pytest.raises(InvalidState, match="damaged"):
        state.load(str(tmp_path), "c1")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pid", 1 << 31),  # no process has such a number, and no call takes it
        ("start_time", 1 << 64),
        ("namespaces", -1),
        ("unit", 5),
        ("oci_version", None),
        ("terms", "x"),
        ("annotations", []),
    ],
)
def test_what_a_state_says_is_something_that_could_be(tmp_path: Path, field: str, value: object) -> None:
    directory = saved(tmp_path)
    told = json.loads((directory / "state.json").read_text())
    (directory / "state.json").write_text(json.dumps({**told, field: value}))
    with pytest.raises(InvalidState, match="damaged"):
        state.load(str(tmp_path), "c1")
    known = state.salvage(str(tmp_path), "c1")
    assert known is None or field not in ("pid", "start_time", "unit")


def test_a_note_of_groups_that_is_full_of_digits_says_nothing(tmp_path: Path) -> None:
    (saved(tmp_path) / ".cgroup").write_text("9" * 5000)
    assert state.cgroup_inodes(str(tmp_path), "c1") == ()


# --- other versions ---


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.name)
@pytest.mark.parametrize("place", ["pod/c1", "pod/c2", "oci/o1"])
def test_what_earlier_versions_wrote_is_read(recorded: Path, place: str) -> None:
    path = recorded / place / "state.json"
    known = state.load(str(path.parents[1]), path.parent.name)
    assert (known.id, known.pid, known.version) == (path.parent.name, 4194304, 1)
    assert known.cgroup_directories[0] == ("cpu", f"/sys/fs/cgroup/cpu/mnr-1/{known.id}")
    assert known.terms is not None
    kept = terms.from_json(known.terms)
    assert kept.init_is_first
    if known.id != "c2":
        assert kept.filter is not None
        assert kept.hooks is not None
        assert kept.capabilities is not None
        assert (len(kept.filter.program), kept.filter.notify) == (72, False)
        assert kept.hooks.poststop[0].args == ("true", "x")
        assert kept.capabilities.ambient == ("CAP_CHOWN", "CAP_KILL")
        assert (kept.affinity, kept.umask) == (ExecCpuAffinity("0", "0-1"), 18)


def test_an_announcement_of_a_create_is_read_in_every_form_that_it_has_had(tmp_path: Path) -> None:
    known = state.announced(str(RECORDED[0] / "pod"), "c1")
    assert known is not None
    assert (known.bundle, known.cgroups_path, known.pid) == ("/tmp/door/bundles/c1", "/mnr-1/c1", 0)
    Path(state.make_directory(str(tmp_path), "c1", traversable=False), ".create").write_text(
        '["/b", "/p", {"novel": 1}]'
    )
    later = state.announced(str(tmp_path), "c1")
    assert later is not None
    assert (later.bundle, later.cgroups_path) == ("/b", "/p")


def test_a_bundle_is_known_by_its_inode_as_long_as_it_is_the_one_that_was_announced(tmp_path: Path) -> None:
    bundle, other = tmp_path / "bundle", tmp_path / "other"
    bundle.mkdir()
    other.mkdir()
    root = str(tmp_path / "root")
    directory = state.make_directory(root, "c1", traversable=False)
    assert state.is_its_bundle(root, "c1", str(bundle))  # nobody knows
    state.announce(directory, str(bundle), "/p", {"systemd": True})
    known = state.announced(root, "c1")
    assert known is not None
    assert known.terms == {"systemd": True, "bundle": bundle.stat().st_ino}
    assert state.is_its_bundle(root, "c1", str(bundle))
    assert state.is_its_bundle(root, "c1", str(other))
    bundle.rename(tmp_path / "before")
    assert not state.is_its_bundle(root, "c1", str(bundle))
    bundle.mkdir()
    assert not state.is_its_bundle(root, "c1", str(bundle))


def changed(root: Path, **fields: object) -> None:
    told = json.loads((saved(root) / "state.json").read_text())
    (root / "c1/state.json").write_text(json.dumps({**told, **fields}))


def test_fields_that_are_new_are_left_alone(tmp_path: Path) -> None:
    changed(tmp_path, novel={"a": [1]}, other=None)
    assert state.load(str(tmp_path), "c1") == EXAMPLE


def test_a_later_version_is_refused_by_name_and_can_be_removed(tmp_path: Path) -> None:
    changed(tmp_path, version=2, rootfs={"moved": "into a table"})
    with pytest.raises(InvalidState, match="c1: version 2 is of a newer Manor, this one reads up to 1$"):
        state.load(str(tmp_path), "c1")
    left = state.salvage(str(tmp_path), "c1")
    assert left is not None
    assert (left.pid, left.start_time, left.bundle, left.cgroups_path) == (4711, 99, "/b", "/pod/c1")


def test_a_version_before_the_last_is_refused_by_name(tmp_path: Path) -> None:
    changed(tmp_path, version=0)
    with pytest.raises(InvalidState, match="c1: version 0 is of an older Manor"):
        state.load(str(tmp_path), "c1")


def test_terms_that_an_exec_must_keep_are_refused_by_name_and_empty_ones_are_not() -> None:
    told = terms.to_json(Terms(0, init_is_first=True))
    assert terms.from_json({**told, "landlock": None, "novel": []}) == Terms(0, init_is_first=True)
    with pytest.raises(ValueError, match="landlock, novel: of a newer Manor"):
        terms.from_json({**told, "novel": True, "landlock": {"read": ["/"]}})


def test_terms_that_an_earlier_version_did_not_have_are_what_they_are_by_default() -> None:
    told = terms.to_json(Terms(7, init_is_first=False))
    for name in (
        "filter",
        "memory_policy",
        "capabilities",
        "affinity",
        "hooks",
        "listener",
        "rdt",
        "keyring",
    ):
        del told[name]
    assert terms.from_json(told) == Terms(7, init_is_first=False)


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
def test_what_is_no_file_is_not_read_as_one(tmp_path: Path, kind: str) -> None:
    directory = saved(tmp_path)
    path = directory / "state.json"
    path.rename(tmp_path / "real.json")
    if kind == "symlink":
        path.symlink_to(tmp_path / "real.json")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(InvalidState):
        state.load(str(tmp_path), "c1")


def test_a_process_is_alive_only_with_its_own_start_time() -> None:
    pid = os.getpid()
    assert state.is_alive(pid, start_time(pid))
    assert not state.is_alive(pid, start_time(pid) + 1)


def test_a_zombie_and_a_reaped_process_have_ended() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    started = start_time(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not state.is_alive(pid, started)
    os.waitpid(pid, 0)
    assert not state.is_alive(pid, started)


def test_states_change_only_as_the_table_says() -> None:
    assert state.transition(state.CREATED, state.RUNNING) == state.RUNNING
    with pytest.raises(InvalidState, match="cannot go from stopped to running"):
        state.transition(state.STOPPED, state.RUNNING)
