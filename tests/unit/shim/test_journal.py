"""The exit journal: what is written before anybody is told, and what is read of it when the shim is dead."""

from __future__ import annotations

import errno
import json
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.linux.aio import FileSync
from runtime.linux.constants import RAMFS_MAGIC, TMPFS_MAGIC
from shim import journal
from shim.journal import HEADER, Exit, Journal, NewerJournal, Oom, exit_of, exit_of_init, read
from shim.log import Log
from shim.loop import Loop
from tests.harness.processes import descriptors
from tests.unit.shim.log_io import Heard
from tests.unit.shim.loops import drive

NOW_NS = 1_700_000_000_123_456_789
RECORDED = sorted((Path(__file__).parents[2] / "recorded").iterdir())


def entry(number: int = 0, container: str = "c1", exec_id: str = "", oom: Oom | None = None) -> Exit:
    return Exit(container, exec_id, 100 + number, 7, number, 0, NOW_NS, oom)


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(str(tmp_path), Log("", "test"))
    yield made
    made.close()


@pytest.mark.parametrize(
    ("status", "code", "signal"), [(0, 0, 0), (3 << 8, 3, 0), (9, 137, 9), (11 | 128, 139, 11)]
)
def test_an_exit_is_what_the_wait_status_says(status: int, code: int, signal: int) -> None:
    made = exit_of("c1", "e1", 42, 7, status, NOW_NS, None)
    assert (made.code, made.signal, made.pid, made.start_time) == (code, signal, 42, 7)


def test_what_was_appended_can_be_read_at_once(tmp_path: Path, written: Journal) -> None:
    oom = Oom("pod", '/sys/fs/cgroup/memory/a "quoted" slice')
    wanted = [entry(1), entry(2, exec_id="e1"), entry(137, oom=oom), entry(137, oom=Oom("above"))]
    for each in wanted:
        written.append(each)
    assert read(str(tmp_path)) == wanted


def test_a_line_is_json_for_other_programs_too(tmp_path: Path, written: Journal) -> None:
    written.append(entry(137, exec_id="e1", oom=Oom("container", "/x")))
    head, line = (tmp_path / "@exits").read_text().splitlines()
    assert json.loads(head) == {"journal": 1}
    assert json.loads(line) == {
        "container": "c1",
        "exec": "e1",
        "pid": 237,
        "start_time": 7,
        "code": 137,
        "signal": 0,
        "exited_at": NOW_NS,
        "oom": "container",
        "oom_cgroup": "/x",
    }
    assert (tmp_path / "@exits").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("length", range(1, len(entry(2).encode())))
def test_a_last_line_that_was_cut_off_counts_as_not_there(tmp_path: Path, length: int) -> None:
    (tmp_path / "@exits").write_bytes(entry(1).encode() + entry(2).encode()[:length])
    whole = length == len(entry(2).encode()) - 1  # all but the end of the line
    assert read(str(tmp_path)) == [entry(1), entry(2)][: 1 + whole]
    successor = Journal(str(tmp_path), Log("", "test"))
    successor.append(entry(3))
    successor.close()
    assert read(str(tmp_path))[-1] == entry(3)


@pytest.mark.parametrize(
    "damage",
    [
        b"\0" * 100,
        b"[]",
        b"{}",
        b'{"container":"c1"}',
        entry(2).encode().replace(b'"pid":102', b'"pid":-1'),
        entry(2).encode().replace(b'"pid":102', b'"pid":true'),
        entry(2).encode().replace(b'"c1"', b"1"),
        b"\xff\xfe",
    ],
)
def test_a_damaged_line_spares_the_others(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "@exits").write_bytes(entry(1).encode() + damage.rstrip() + b"\n" + entry(3).encode())
    assert read(str(tmp_path)) == [entry(1), entry(3)]


# --- other versions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.name)
def test_what_earlier_versions_wrote_is_read(recorded: Path) -> None:
    ended, killed = read(str(recorded / "pod"))
    assert (ended.container, ended.exec_id, ended.pid, ended.code, ended.signal) == ("c2", "", 4194304, 3, 0)
    assert (killed.container, killed.exec_id, killed.code, killed.signal) == ("c1", "e1", 137, 9)
    assert killed.start_time > ended.start_time > 0
    assert killed.exited_at > ended.exited_at > NOW_NS


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.name)
def test_a_shim_goes_on_in_the_journal_of_an_earlier_version(tmp_path: Path, recorded: Path) -> None:
    (tmp_path / "@exits").write_bytes((recorded / "pod/@exits").read_bytes())
    successor = Journal(str(tmp_path), Log("", "test"))
    successor.append(entry(3))
    successor.close()
    assert [each.code for each in read(str(tmp_path))] == [3, 137, 3]


def test_every_journal_says_its_version_a_compacted_one_too(tmp_path: Path, written: Journal) -> None:
    written.append(entry(1))
    assert (tmp_path / "@exits").read_bytes() == HEADER + entry(1).encode()
    written._compact_at = 0
    written.undeleted = lambda: [entry(1)]
    written.append(entry(2))
    assert (tmp_path / "@exits").read_bytes() == HEADER + entry(1).encode() + entry(2).encode()


def test_fields_that_are_new_are_left_alone(tmp_path: Path) -> None:
    told = {"novel": [1, {}], **json.loads(entry(1).encode())}
    (tmp_path / "@exits").write_text(f'{{"journal":1,"by":"a later one"}}\n{json.dumps(told)}\n')
    assert read(str(tmp_path)) == [entry(1)]


def test_of_a_later_version_nothing_is_read_and_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "@exits").write_bytes(b'{"journal":2}\n' + entry(1).encode())
    with pytest.raises(NewerJournal, match="@exits: version 2 is of a newer Manor, this one reads up to 1"):
        read(str(tmp_path))


def test_without_a_journal_nothing_is_known(tmp_path: Path) -> None:
    assert read(str(tmp_path)) == []
    assert read("/nowhere") == []


def test_an_init_is_known_by_pid_and_start_time_and_else_by_the_last_of_its_name() -> None:
    first = Exit("c1", "", 5, 1, 1, 0, NOW_NS)
    second = Exit("c1", "", 5, 2, 2, 0, NOW_NS)
    entries = [first, second, Exit("c1", "e1", 5, 3, 3, 0, NOW_NS), Exit("c2", "", 5, 4, 4, 0, NOW_NS)]
    assert exit_of_init(entries, "c1", 5, 1) == first
    assert exit_of_init(entries, "c1") == second
    assert exit_of_init(entries, "c1", 5, 9) is None
    assert exit_of_init(entries, "c3") is None


def test_it_is_bounded_and_keeps_what_containerd_has_not_deleted(
    tmp_path: Path, written: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [entry(1, "c9"), entry(2, "c9", "e9")]
    written.undeleted = lambda: kept
    before = descriptors()
    for number in range(10_000):
        written.append(entry(number, exec_id=f"e{number}"))
    assert (tmp_path / "@exits").stat().st_size <= journal.COMPACT_BYTES + 200
    found = read(str(tmp_path))
    assert found[:2] == kept
    assert found[-1] == entry(9999, exec_id="e9999")
    assert os.listdir(tmp_path) == ["@exits"]
    assert not descriptors() - before


def test_many_that_are_not_deleted_are_not_written_anew_for_each(tmp_path: Path, written: Journal) -> None:
    kept: list[Exit] = []
    asked = []

    def undeleted() -> list[Exit]:
        asked.append(len(kept))
        return kept

    written.undeleted = undeleted
    for number in range(5000):
        kept.append(entry(number, exec_id=f"e{number}"))
        written.append(kept[-1])
    assert len(asked) < 10
    found = read(str(tmp_path))
    assert {each.exec_id for each in found} == {f"e{number}" for number in range(5000)}


def test_what_cannot_be_written_is_said_once_and_the_next_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    made = Journal(str(tmp_path), heard)
    real_write = os.write
    room = [10, 0]

    def write(fd: int, data: bytes) -> int:
        if b'{"container"' in data and room:
            if not (here := room.pop(0)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real_write(fd, data[:here])
        return real_write(fd, data)

    monkeypatch.setattr(os, "write", write)
    for number in range(4):
        made.append(entry(number))
    made.close()
    assert read(str(tmp_path)) == [entry(2), entry(3)]
    assert heard.lines == ["error write to exit journal: No space left on device"]


@pytest.mark.parametrize("written_bytes", [-1, 30])
def test_a_disk_that_is_full_when_it_is_written_anew_costs_no_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_bytes: int
) -> None:
    heard = Heard()
    made = Journal(str(tmp_path), heard, lambda: [entry(1)])
    made.append(entry(1))
    before = descriptors()
    real_write = os.write

    def write(fd: int, data: bytes) -> int:
        if not data.startswith(HEADER):
            return real_write(fd, data)
        if written_bytes < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(fd, data[:written_bytes])

    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        made._compact_at = 0
        made.append(entry(2))
    assert heard.lines == ["error write to exit journal: No space left on device"]
    assert read(str(tmp_path)) == [entry(1)]
    made._compact_at = 1 << 20
    made.append(entry(3))
    assert read(str(tmp_path)) == [entry(1), entry(3)]
    assert not descriptors() - before
    made.close()


def test_what_an_earlier_shim_has_left_counts_for_its_size(tmp_path: Path) -> None:
    (tmp_path / "@exits").write_bytes(HEADER + b"".join(entry(n).encode() for n in range(1000)))
    assert (tmp_path / "@exits").stat().st_size > journal.COMPACT_BYTES
    successor = Journal(str(tmp_path), Log("", "test"), lambda: [entry(1)])
    successor.append(entry(2))
    successor.close()
    assert read(str(tmp_path)) == [entry(1), entry(2)]


def test_a_pod_without_a_directory_keeps_none(loop: Loop) -> None:
    heard, before = Heard(), descriptors()
    made = Journal("", heard)
    made.append(entry())
    drive(loop, made.sync())
    assert not descriptors() - before
    assert heard.lines == []
    made.close()


def test_a_directory_that_is_gone_stops_nobody(tmp_path: Path, loop: Loop) -> None:
    log = tmp_path / "log"
    log.touch()
    made = Journal(str(tmp_path / "gone"), Log(str(log), "test"))
    made.append(entry())
    drive(loop, made.sync())
    assert "open exit journal" in log.read_text()


# --- syncing ----------------------------------------------------------------------------------------------


def on_disk(made: Journal) -> None:
    """Whatever the tests' directory lies on: take it for a disk."""
    made._in_memory = False


def test_one_sync_is_for_all_that_were_appended_before(
    loop: Loop, written: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk(written)
    begun: list[int] = []
    real = FileSync.begin

    def begin(sync: FileSync, fd: int) -> None:
        begun.append(fd)
        real(sync, fd)

    monkeypatch.setattr(FileSync, "begin", begin)
    for number in range(5):
        written.append(entry(number))
    drive(loop, written.sync())
    drive(loop, written.sync())
    assert len(begun) == 1
    written.append(entry(6))
    drive(loop, written.sync())
    assert len(begun) == 2


@pytest.mark.parametrize(("magic", "waits"), [(TMPFS_MAGIC, False), (RAMFS_MAGIC, False), (0xEF53, True)])
def test_only_in_memory_is_a_file_synced_by_a_call_that_would_wait_for_a_disk(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, magic: int, waits: bool
) -> None:
    monkeypatch.setattr(journal, "filesystem_magic", lambda _fd: magic)
    called: list[int] = []
    monkeypatch.setattr(os, "fdatasync", called.append)
    made = Journal(str(tmp_path), Log("", "test"))
    made.append(entry())
    drive(loop, made.sync())
    assert bool(called) is not waits
    made.close()


def test_every_sync_waits_for_the_disk_and_not_for_the_one_before(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    made = Journal(str(tmp_path), heard)
    on_disk(made)
    made.append(entry(1))
    drive(loop, made.sync())
    assert heard.lines == []
    monkeypatch.setattr(journal, "SYNC_PATIENCE_S", 0.05)
    monkeypatch.setattr(FileSync, "begin", lambda _self, _fd: None)  # the disk hangs from now on
    made.append(entry(2))
    drive(loop, made.sync())
    assert len(heard.lines) == 1
    made.close()


def test_a_journal_that_was_closed_has_nothing_to_sync(loop: Loop, tmp_path: Path) -> None:
    before = descriptors()
    made = Journal(str(tmp_path), Log("", "test"))
    made.append(entry())
    made.close()
    made.append(entry())
    drive(loop, made.sync())
    assert not descriptors() - before


def test_in_memory_nothing_is_waited_for(written: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    written._in_memory = True
    monkeypatch.setattr(os, "fdatasync", synced.append)
    written.append(entry())
    assert list(written.sync()) == []
    assert len(synced) == 1


def test_a_disk_that_hangs_holds_events_up_once_and_not_for_ever(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.touch()
    made = Journal(str(tmp_path), Log(str(log), "test"))
    on_disk(made)
    monkeypatch.setattr(journal, "SYNC_PATIENCE_S", 0.05)
    begun: list[int] = []
    real = FileSync.begin
    monkeypatch.setattr(FileSync, "begin", lambda _self, fd: begun.append(fd))
    for number in range(3):
        made.append(entry(number))
        drive(loop, made.sync())
    assert len(begun) == 1
    assert log.read_text().count("sync exit journal") >= 1
    assert made._sync is not None
    monkeypatch.setattr(FileSync, "begin", real)
    made._sync.begin(begun[0])  # the disk is back
    poll = select.poll()
    poll.register(made._sync.fileno(), select.POLLIN)
    assert poll.poll(30_000)
    monkeypatch.setattr(journal, "SYNC_PATIENCE_S", 30.0)
    made.append(entry(4))
    drive(loop, made.sync(), 30)
    assert not made._under_way
    made.close()


def test_where_the_kernel_offers_no_such_sync_events_go_all_the_same(
    loop: Loop, written: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(errno.EAGAIN, "io_setup")

    on_disk(written)
    monkeypatch.setattr(journal, "FileSync", refuse)
    written.append(entry())
    drive(loop, written.sync())
