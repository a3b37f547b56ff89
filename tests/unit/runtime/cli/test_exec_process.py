"""What an exec runs, from its options and the container's config."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.cli.arguments import Call, Globals, parse
from runtime.cli.exec import VERBS
from runtime.cli.exec_process import wanted_process, wanted_user, widened
from runtime.errors import ConfigError, InvalidArgument
from runtime.spec.model import Capabilities, Process, User
from tests.harness.bundles import default_config


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    """A bundle whose config can be changed; the working directory is put back, as a command does not."""
    before = Path.cwd()
    (tmp_path / "config.json").write_text(json.dumps(default_config(["init"], "")))
    yield tmp_path
    os.chdir(before)


def _wanted(bundle: Path, *words: str) -> Process:
    verb = VERBS["exec"]
    parsed = parse(words, verb.options, verb.own_command)
    call = Call(verb, parsed.options, parsed.arguments, Globals("/run/x"), parsed.given)
    return wanted_process(call, str(bundle))


def test_it_is_the_containers_process_with_other_arguments(bundle: Path) -> None:
    process = _wanted(bundle, "c", "ls", "-l", "--tty")
    assert process.args == ("ls", "-l", "--tty")
    assert process.cwd == "/"
    assert not process.terminal
    assert process.no_new_privileges
    assert process.rlimits[0].type == "RLIMIT_NOFILE"


def test_options_change_what_they_name(bundle: Path) -> None:
    words = "--cwd /x -e A=1 -e B=2 -t -u 3:4 -g 5 --apparmor p --process-label l --no-new-privs=false c ls"
    process = _wanted(bundle, *words.split())
    assert process.cwd == "/x"
    assert process.env[-2:] == ("A=1", "B=2")
    assert process.terminal
    assert process.user == User(3, 4, None, (5,))
    assert (process.apparmor_profile, process.selinux_label) == ("p", "l")
    assert not process.no_new_privileges


def test_a_terminal_is_not_taken_from_the_config(bundle: Path) -> None:
    config: dict[str, Any] = default_config(["init"], "")
    config["process"]["terminal"] = True
    (bundle / "config.json").write_text(json.dumps(config))
    assert not _wanted(bundle, "c", "ls").terminal


def test_a_process_file_leaves_the_options_out(bundle: Path) -> None:
    (bundle / "p.json").write_text(json.dumps({"args": ["x"], "cwd": "/y"}))
    process = _wanted(bundle, "--process", str(bundle / "p.json"), "--cwd", "/z", "-t", "c", "ignored")
    assert (process.args, process.cwd, process.terminal) == (("x",), "/y", False)


def test_a_process_file_has_a_limit(bundle: Path) -> None:
    (bundle / "p.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="more than 1048576 bytes"):
        _wanted(bundle, "--process", str(bundle / "p.json"), "c")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["c"], "exec args cannot be empty"),
        (["--cwd", "x", "c", "ls"], "Cwd must be an absolute path"),
        (["-u", "x", "c", "ls"], "bad uid"),
    ],
)
def test_what_is_wrong_is_told(bundle: Path, words: list[str], told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        _wanted(bundle, *words)


@pytest.mark.parametrize(
    ("asked", "made"),
    [("", (7, 8)), ("1", (1, 8)), ("1:2", (1, 2)), ("01:02", (1, 2)), ("4294967294:0", (4294967294, 0))],
)
def test_ids_are_read(asked: str, made: tuple[int, int]) -> None:
    user = wanted_user(User(7, 8), asked, [])
    assert (user.uid, user.gid) == made


@pytest.mark.parametrize(
    "asked",
    [
        "-1",
        "+1",
        " 1",
        "1 ",
        "1_0",
        "0x1",
        "\uff11",
        "4294967295",
        "99999999999999999999",
        ":1",
        "1:",
        "1:1:1",
        "root",
    ],
)
def test_what_is_no_id_is_never_another(asked: str) -> None:
    with pytest.raises(InvalidArgument, match="bad [ug]id"):
        wanted_user(User(7, 8), asked, [])


@pytest.mark.parametrize("group", [-1, 4294967295])
def test_groups_are_ids(group: int) -> None:
    with pytest.raises(InvalidArgument, match="additional-gids must be a positive number"):
        wanted_user(User(), "", [group])


def test_capabilities_are_added_and_never_inherited() -> None:
    added = ("CAP_KILL",)
    assert widened(None, added) == Capabilities(bounding=added, effective=added, permitted=added)
    own = Capabilities(inheritable=("CAP_CHOWN",), ambient=("CAP_CHOWN",))
    assert widened(own, added).ambient == ("CAP_CHOWN", "CAP_KILL")
    assert widened(own, added).inheritable == ("CAP_CHOWN",)
