"""How pods are shown, and what is shown of those whose shims say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from manor import leaks, ps
from manor.ps import Process, Row
from shim.ttrpc import status
from shim.ttrpc.status import RpcError
from tests.unit.manor.test_ledger import run_dir
from tests.unit.states import state_json

__all__ = ["run_dir"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (8070, "2h14m"), (273600, "3d4h")],
)
def test_ages(seconds: float, shown: str) -> None:
    assert ps.age(seconds) == shown


def test_nothing_of_somebody_elses_reaches_the_terminal_as_it_is() -> None:
    (head, line) = ps.table(("A", "B"), [("x\x1b[2J\n", "y\u202e")])
    assert (head, line) == ("A       B", "x?[2J?  y?")


def test_a_pod_stands_above_its_processes_and_those_that_start_them() -> None:
    row = Row("k8s.io", "p1", "alive", 7, age_s=60)
    row.processes = [
        Process("c1", "", 8, "running", "", 5),
        Process("c1", "e1", 0, "stopped", "", 5, 3),
        Process("c2", "", 0, "creating", "open streams", 1),
    ]
    row.stages = [{"stage": "0:CREATE", "pid": 9, "state": "D", "age_s": 1.0}]
    lines = [" ".join(line.split()) for line in ps.table(ps.HEADS, ps.lines_of([row]))]
    assert lines[1:] == [
        "k8s.io p1 7 shim alive 1m00s",
        "c1 8 running 5s",
        "c1 e1 - stopped 5s exit 3",
        "c2 - creating 1s after 'open streams'",
        "9 [0:CREATE] 1s D",
    ]


def test_a_dead_shims_pod_is_shown_from_its_files(run_dir: Path) -> None:
    (row,) = ps.look(str(run_dir), 1)
    assert (row.shim, row.pod, row.note) == ("dead", "p1", "the shim is dead: from its files")
    (process,) = row.processes
    assert (process.container, process.status, process.pid) == ("c1", "stopped", 0)
    assert process.age_s > 0


def test_a_create_that_was_cut_short_was_never_anything(run_dir: Path) -> None:
    file = run_dir / "pods" / "abc" / "c1" / "state.json"
    file.write_text(state_json(pid=0, start_time=0, created="nonsense"))
    (row,) = ps.look(str(run_dir), 1)
    assert (row.processes[0].status, row.processes[0].age_s) == ("stopped", 0.0)


@pytest.mark.parametrize(
    ("failure", "shim", "note"),
    [
        (RpcError(status.UNIMPLEMENTED, "service manor.ps.v1.Ps"), "alive", "an earlier version"),
        (RpcError(status.INTERNAL, "bug"), "alive", "failed: "),
        (TimeoutError("no answer on stream 1"), "no answer", "from its files: no answer in 1.5 s"),
        (ConnectionResetError(104, "reset"), "no answer", "from its files: "),
        (BlockingIOError(11, "busy"), "no answer", "from its files: "),
    ],
)
def test_of_a_shim_that_cannot_say_the_files_are_shown(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, shim: str, note: str
) -> None:
    def ask(_address: str, _timeout_s: float) -> None:
        raise failure

    monkeypatch.setattr(ps, "_ask", ask)
    (row,) = ps.look(str(run_dir), 1.5)
    assert (row.shim, [each.container for each in row.processes]) == (shim, ["c1"])
    assert row.note.startswith(note)


def test_what_cannot_be_believed_is_an_error_of_its_own(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir.chmod(0o777)
    for name, main in (("ps", ps.main), ("leaks", leaks.main)):
        assert main(["--run-dir", str(run_dir)]) == 2
        told = capsys.readouterr().err
        assert told == f"manor {name}: {run_dir}: it is not ours, or others may write to it\n"


def test_what_cannot_be_read_is_told_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pods").touch()
    for name, main in (("ps", ps.main), ("leaks", leaks.main)):
        assert main(["--run-dir", str(tmp_path)]) == 2
        assert capsys.readouterr().err == f"manor {name}: {tmp_path}/pods: Not a directory\n"


def test_where_there_is_no_pod_it_is_said_where_none_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ps.main(["--run-dir", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"manor ps: no pods in {tmp_path}\n")
    assert ps.main(["--run-dir", str(tmp_path), "--json"]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == ("[]\n", "")
