"""Log lines as logrus writes them, for those who read runc's."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from runtime.cli import logs
from runtime.cli.arguments import Globals
from runtime.errors import ConfigError


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> logs.Log:
    made = logs.Log()
    monkeypatch.setattr(logs, "log", made)
    monkeypatch.setenv("TZ", "UTC")
    return made


def opened(log: logs.Log, path: Path, **changes: object) -> Path:
    file = path / "log"
    log.open(Globals(root="/x", log=str(file), **changes))  # type: ignore[arg-type]
    return file


def test_text_is_quoted_where_logfmt_demands_it(log: logs.Log, tmp_path: Path) -> None:
    file = opened(log, tmp_path)
    for message in (
        "plain",
        "two words",
        'a "quote" \\',
        "line\nbreak\t\x1b",
        "",
        "ä€",
        "a=b",
        "a/b-c_d.e@f^g+h",
    ):
        logs.error(message)
    found = re.findall(r'^time="[^"]+" level=error msg=(.*)$', file.read_text(), re.MULTILINE)
    assert found == [
        "plain",
        '"two words"',
        r'"a \"quote\" \\"',
        r'"line\nbreak\t\u001b"',
        '""',
        '"ä€"',
        '"a=b"',
        "a/b-c_d.e@f^g+h",
    ]


def test_json_is_one_sorted_object_a_line(log: logs.Log, tmp_path: Path) -> None:
    file = opened(log, tmp_path, log_format="json")
    logs.warn('a "b"\n')
    logs.error("broken \udcff")
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert list(first) == ["level", "msg", "time"]
    assert (first["level"], first["msg"]) == ("warning", 'a "b"\n')
    assert second["msg"].startswith("broken ")


def test_it_is_appended_to_what_is_there_and_not_inherited(log: logs.Log, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    file = opened(log, tmp_path)
    logs.error("after")
    assert file.read_text().startswith("before\ntime=")
    assert not os.get_inheritable(log._fd)


def test_debug_needs_to_be_asked_for(log: logs.Log, tmp_path: Path) -> None:
    file = opened(log, tmp_path)
    logs.debug("x")
    assert file.read_text() == ""
    log.debugging = True
    logs.debug("x")
    assert "level=debug" in file.read_text()


def test_what_was_noted_before_the_log_was_open_is_in_it(log: logs.Log, tmp_path: Path) -> None:
    log.note("early")
    assert "level=warning msg=early" in opened(log, tmp_path).read_text()


def test_a_fatal_error_is_told_in_both_places(
    log: logs.Log, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = opened(log, tmp_path)
    assert logs.fatal("it broke") == 1
    assert logs.fatal("it broke", 255) == 255
    assert capfd.readouterr().err == "it broke\nit broke\n"
    assert file.read_text().count('msg="it broke"') == 2


def test_without_a_file_it_is_told_once(log: logs.Log, capfd: pytest.CaptureFixture[str]) -> None:
    logs.fatal("it broke")
    assert re.fullmatch(r'time="[^"]+" level=error msg="it broke"\n', capfd.readouterr().err)


def test_a_log_that_is_full_stops_nothing(log: logs.Log) -> None:
    log._fd = os.open("/dev/full", os.O_WRONLY)
    logs.error("x")
    os.close(log._fd)


def test_a_fifo_that_nobody_reads_does_not_hold_the_command_up(log: logs.Log, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(OSError, match="No such device"):
        opened(log, tmp_path)


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: no such file or directory"),
        (PermissionError(1, "Operation not permitted"), "operation not permitted"),
        (ConfigError("process.args", "must not be empty"), "config invalid: process.args: must not be empty"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_a_failure_is_one_line(failure: BaseException, text: str) -> None:
    assert logs.explain(failure) == text


@pytest.mark.parametrize(("zone", "ending"), [("UTC", "Z"), ("ABC-05:30", "+05:30"), ("ABC+03", "-03:00")])
def test_the_time_has_the_local_offset(
    log: logs.Log, monkeypatch: pytest.MonkeyPatch, zone: str, ending: str
) -> None:
    import time

    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d" + re.escape(ending), logs._now())
    finally:
        monkeypatch.undo()
        time.tzset()
