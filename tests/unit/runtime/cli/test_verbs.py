"""The table of verbs is whole, its help texts are there, and a question costs few imports."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from runtime.cli import help as help_texts
from runtime.cli.arguments import Verb, parse
from runtime.cli.verbs import TABLE, find
from runtime.version import VERSION

ROOT = Path(__file__).resolve().parents[4]
EVERY = (
    *(
        "create",
        "delete",
        "events",
        "exec",
        "features",
        "kill",
        "list",
        "pause",
        "ps",
        "resume",
        "run",
        "spec",
    ),
    *("start", "state", "update"),
)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_each_verb_is_where_the_table_says(name: str) -> None:
    verb = find(name)
    assert isinstance(verb, Verb)
    assert verb.name == name
    assert verb.summary
    names = [each for option in verb.options for each in option.names]
    assert len(names) == len(set(names)), "an option twice"
    assert all(option.names[0].startswith("--") for option in verb.options), "the long name is the first"
    assert {option.kind for option in verb.options} <= {"value", "flag", "int", "ints", "list", "seconds"}
    assert verb.most is None or verb.least <= verb.most


def test_all_of_runcs_verbs_but_checkpoints_are_there() -> None:
    assert set(EVERY) <= set(TABLE)
    assert find("checkpoint") is None


def test_a_default_that_help_shows_is_a_value_that_the_option_takes() -> None:
    verb = find("events")
    assert verb is not None
    shown = re.search(r"--interval value +set .* \(default: (\S+)\)", help_texts.text("events", "prog") or "")
    assert shown is not None
    assert shown[1] == "5s"
    given = parse(("--interval", shown[1], "id"), verb.options, False).options
    assert given == parse(("id",), verb.options, False).options


@pytest.mark.parametrize("name", sorted(TABLE))
def test_the_help_text_names_the_options_that_are_not_hidden(name: str) -> None:
    text = help_texts.text(name, "prog")
    verb = find(name)
    assert text is not None
    assert verb is not None
    assert text.startswith(f"NAME:\n   prog {name} - {verb.summary}\n")
    for option in verb.options:
        assert (f"   {option.names[0]}" in text) is not option.hidden


def test_the_programs_help_text_names_verbs_and_options() -> None:
    text = help_texts.text("", "prog")
    assert text is not None
    for name in TABLE:
        assert f"\n   {name} " in text
    assert "--fail-at" not in text
    assert '(default: "/run/manor-oci")' in text
    assert help_texts.text("nothing", "prog") is None


def test_there_is_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
    assert f"VERSION:\n   {VERSION}\n" in (help_texts.text("", "prog") or "")


def loaded_by(*words: str) -> set[str]:
    """The modules that are loaded at the end of a command."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        f"from runtime.cli import main; main({list(words)!r}); sys.stderr.write('\\n' + ' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-ISBc", program], capture_output=True, text=True, check=True, cwd="/"
    )
    return set(done.stderr.splitlines()[-1].split())


HEAVY = {"re", "typing", "dataclasses", "enum", "json", "subprocess", "functools", "collections", "argparse"}


@pytest.mark.parametrize("words", [["state", "x"], ["list"]])
def test_a_question_loads_neither_operations_nor_ctypes(tmp_path: Path, words: list[str]) -> None:
    loaded = loaded_by("--root", str(tmp_path), *words)
    assert not loaded & (HEAVY | {"ctypes", "_ctypes", "_socket", "struct"})
    assert {each for each in loaded if each.startswith("runtime.")} == {
        *("runtime.cli", "runtime.cli.arguments", "runtime.cli.command", "runtime.cli.inspect"),
        *("runtime.cli.logs", "runtime.cli.output", "runtime.cli.settings", "runtime.status"),
        *("runtime.cli.verbs", "runtime.errors", "runtime.linux", "runtime.linux.procstat", "runtime.record"),
        *("runtime.linux.trees", "runtime.spec", "runtime.spec.json", "runtime.state"),
    }


@pytest.mark.parametrize(
    "words", [["kill", "x"], ["delete", "x"], ["update", "x"], ["features"], ["spec", "x"]]
)
def test_no_verb_loads_anything_heavy(tmp_path: Path, words: list[str]) -> None:
    assert not loaded_by("--root", str(tmp_path), *words) & HEAVY
