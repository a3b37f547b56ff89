"""The command line itself: what is refused, how, with which exit code, and where it is said."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.oci.conftest import Oci
from tests.harness.paths import VENV


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], ["h"], []])
def test_help_lists_the_verbs_and_succeeds(oci: Oci, words: list[str]) -> None:
    done = oci.run([str(oci.program), *words])
    assert done.code == 0
    assert not done.stderr
    for verb in ("create", "delete", "events", "exec", "features", "kill", "list", "pause", "ps", "resume"):
        assert re.search(rf"^ +{verb} ", done.stdout, re.MULTILINE)
    for option in ("--debug", "--log value", "--log-format value", "--root value", "--systemd-cgroup"):
        assert option in done.stdout


@pytest.mark.parametrize(
    "words", [["state", "--help"], ["state", "-h"], ["help", "state"], ["state", "x", "-h"]]
)
def test_a_verb_has_a_help_text_of_its_own(oci: Oci, words: list[str]) -> None:
    done = oci.run([str(oci.program), *words])
    assert done.code == 0
    assert f"   {oci.name} state - output the state of a container" in done.stdout
    assert f"   {oci.name} state <container-id>" in done.stdout


@pytest.mark.parametrize("word", ["--version", "-v"])
def test_version_names_the_specification(oci: Oci, word: str) -> None:
    done = oci.run([str(oci.program), word])
    assert done.code == 0
    assert done.stdout.splitlines()[0].startswith(f"{oci.name} version ")
    assert "spec: 1.3.0" in done.stdout.splitlines()


def test_an_unknown_verb_has_exit_code_3(oci: Oci) -> None:
    done = oci("frobnicate")
    assert done.code == 3
    assert "No help topic for 'frobnicate'" in done.error


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--frob"], "flag provided but not defined: -frob"),
        (["state", "--frob", "x"], "flag provided but not defined: -frob"),
        (["state", "-f", "x"], "flag provided but not defined: -f"),
        (["exec", "--frob", "x", "ls"], "flag provided but not defined: -frob"),
        (["list", "--format"], "flag needs an argument: -format"),
        (["delete", "--force=maybe", "x"], 'invalid boolean value "maybe" for -force: parse error'),
        (["update", "--pids-limit", "many", "x"], 'invalid value "many" for flag -pids-limit: parse error'),
        (["events", "--interval", "5x", "x"], 'invalid value "5x" for flag -interval: parse error'),
        (["state", "---x"], "bad flag syntax: ---x"),
        (["--log-format", "xml", "list"], "invalid log-format: xml"),
        (["--root", "/", "list"], "Option --root argument should not be set to /"),
        (["list", "--format", "xml"], "invalid format option"),
    ],
)
def test_a_wrong_option_is_named(oci: Oci, words: list[str], error: str) -> None:
    oci.root.mkdir()
    done = oci(*words)
    assert done.code == 1
    assert done.error == error


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["state"], '"state" requires exactly 1 argument(s)'),
        (["state", "a", "b"], '"state" requires exactly 1 argument(s)'),
        (["list", "a"], '"list" requires exactly 0 argument(s)'),
        (["kill"], '"kill" requires a minimum of 1 argument(s)'),
        (["kill", "a", "9", "b"], '"kill" requires a maximum of 2 argument(s)'),
        (["delete"], '"delete" requires exactly 1 argument(s)'),
        (["exec"], '"exec" requires a minimum of 1 argument(s)'),
        (["ps"], '"ps" requires a minimum of 1 argument(s)'),
        (["start"], '"start" requires exactly 1 argument(s)'),
        (["create"], '"create" requires exactly 1 argument(s)'),
        (["run"], '"run" requires exactly 1 argument(s)'),
        (["spec", "x"], '"spec" requires exactly 0 argument(s)'),
        (["features", "x"], '"features" requires exactly 0 argument(s)'),
    ],
)
def test_a_wrong_number_of_arguments_shows_the_usage(oci: Oci, words: list[str], wanted: str) -> None:
    done = oci(*words)
    assert done.code == 1
    assert done.error.endswith(wanted)
    assert done.stdout.startswith(f"Incorrect Usage.\n\nNAME:\n   {oci.name} {words[0]} - ")


def test_options_may_follow_the_arguments_and_take_one_or_two_dashes(oci: Oci) -> None:
    for words in (["delete", "x", "--force"], ["delete", "-force", "x"], ["delete", "x", "-f=true"]):
        assert oci(*words).code == 0
    assert "does not exist" in oci("delete", "x", "--force=false").error
    assert "requires exactly 1" in oci("delete", "--", "x", "--force").error


def test_errors_go_to_the_log_file_and_to_standard_error(oci: Oci) -> None:
    log = oci.directory / "log"
    done = oci("--log", log, "state", "nobody")
    assert done.code == 1
    assert "does not exist" in done.stderr
    assert "level=" not in done.stderr
    assert re.fullmatch(r'time="[^"]+" level=error msg=".*does not exist"\n', log.read_text())


def test_a_json_log_has_one_object_a_line(oci: Oci) -> None:
    log = oci.directory / "log"
    for name in ("a", "b"):
        assert oci("--log", log, "--log-format", "json", "state", name).code == 1
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["level"] for line in lines] == ["error", "error"]
    assert all("does not exist" in line["msg"] for line in lines)
    assert all(re.fullmatch(r"[-0-9]{10}T[0-9:]{8}(Z|[-+][0-9:]{5})", line["time"]) for line in lines)


def test_a_json_log_on_standard_error_is_json_too(oci: Oci) -> None:
    assert json.loads(oci("--log-format", "json", "state", "x").stderr)["level"] == "error"


def test_a_log_that_cannot_be_opened_ends_the_command(oci: Oci) -> None:
    done = oci("--log", "/nowhere/log", "list")
    assert done.code == 1
    assert "no such file or directory" in done.error


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "a b", "ä", "x" * 5000])
def test_an_id_that_is_none_is_refused(oci: Oci, name: str) -> None:
    for verb in ("state", "kill", "pause"):
        done = oci(verb, name)
        assert done.code == 1
        assert "Traceback" not in done.stderr
        assert re.search("invalid|does not exist|file name too long|cannot be empty", done.error)


def test_only_root_of_the_machine_has_the_default_root_directory(oci: Oci) -> None:
    runtime_dir = oci.directory / "xdg"
    runtime_dir.mkdir()
    done = oci.run([str(oci.program), "list"], env={"XDG_RUNTIME_DIR": str(runtime_dir)})
    assert done.code == 0
    assert list(runtime_dir.iterdir()) == []


def test_another_user_has_a_root_below_the_runtime_directory(oci: Oci) -> None:
    runtime_dir = oci.directory / "xdg"
    runtime_dir.mkdir()
    # In a user namespace of one's own: this user's Python need not be for others to read.
    words = ["unshare", "--user", "--map-root-user", str(oci.program), "list"]
    done = oci.run(words, env={"XDG_RUNTIME_DIR": str(runtime_dir), "USER": "somebody"})
    assert done.code == 0, done.stderr
    (made,) = runtime_dir.iterdir()
    assert (made.name, made.stat().st_mode & 0o7777) == (oci.name, 0o1700)


def test_nobody_reading_the_output_is_no_disaster(oci: Oci) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([oci.program, "features"], stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert done.returncode != 0
    assert done.stderr == b""


# ---- how the program is started, which is ours alone -------------------------------------------

ours_alone = pytest.mark.manor_only("runc is one file and reads no other")


@ours_alone
def test_it_is_found_by_path_by_a_link_and_as_a_verb_of_manor(oci: Oci) -> None:
    link = oci.directory / "another-name"
    link.symlink_to(oci.program)
    (oci.directory / "bin").mkdir()
    (oci.directory / "bin" / "manor-oci").symlink_to(oci.program)
    for words in ([str(link)], ["manor-oci"], [str(VENV / "bin" / "manor"), "oci"]):
        done = oci.run([*words, "--version"], env={"PATH": f"{oci.directory}/bin:/usr/bin:/bin"})
        assert (done.code, done.stdout.split()[:2]) == (0, ["manor-oci", "version"]), done.stderr


@ours_alone
def test_nothing_is_imported_from_the_working_directory_or_by_the_environment(oci: Oci) -> None:
    trap = oci.directory / "trap"
    trap.mkdir()
    for name in ("os", "json", "runtime", "errno", "fcntl", "sitecustomize", "encodings", "jeepney"):
        (trap / f"{name}.py").write_text(f"open({str(trap / 'sprung')!r}, 'a').write({name!r})")
    environment = {
        "PYTHONPATH": str(trap),
        "PYTHONSTARTUP": str(trap / "os.py"),
        "PYTHONHOME": str(trap),
        "PYTHONUSERBASE": str(trap),
        "PYTHONINSPECT": "1",
        "PYTHONOPTIMIZE": "x",
    }
    for words in (["list"], ["features"], ["state", "x"], ["kill", "x"], ["run", "x"]):
        done = oci.run([str(oci.program), "--root", str(oci.directory), *words], cwd=trap, env=environment)
        assert "Python" not in done.stderr
    assert not (trap / "sprung").exists()


@ours_alone
def test_what_enters_a_container_runs_from_a_sealed_copy(oci: Oci) -> None:
    seen = oci.directory / "seen"
    script = f"readlink /proc/$PPID/exe > {seen}"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script]}
    oci.started(change=lambda config: config.update(hooks={"createRuntime": [hook]}))
    assert seen.read_text().startswith("/memfd:manor-python")


@ours_alone
def test_a_traceback_is_for_debugging_only(oci: Oci, tmp_path: Path) -> None:
    root = tmp_path / "state"
    (root / "x").mkdir(parents=True)
    (root / "x" / "state.json").mkdir()
    done = oci("state", "x")
    assert done.code == 1
    assert "Traceback" not in done.stderr
