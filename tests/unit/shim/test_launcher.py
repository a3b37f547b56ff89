"""The launcher: what it loads, what tells one warden from another, and what it does without any."""

from __future__ import annotations

import _socket
import os
import posix
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shim import fingerprint, install, launcher
from tests.unit.shim.installed import Manor, as_python, make_code, own_shim

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def manor(tmp_path: Path) -> Iterator[Manor]:
    made = Manor(tmp_path, make_code(tmp_path / "code"))
    yield made
    made.end()


def imported(command: list[str], environ: dict[str, str]) -> set[str]:
    done = subprocess.run(
        command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return {
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }


def test_it_loads_nothing_but_builtin_modules_and_socket(manor: Manor) -> None:
    manor.run("-v")  # a warden, so that what is counted is an ordinary start
    python = [sys.executable, install.FLAGS, "-X", "importtime"]
    bare = imported([*python, "-c", "pass"], manor.environ)
    loaded = imported([*python, str(manor.launcher), "-v"], manor.environ)
    assert loaded - bare - set(sys.builtin_module_names) == {"_socket"} - set(sys.builtin_module_names)
    assert "posix" in bare | loaded


def test_its_first_line_is_the_real_interpreter_with_one_cluster_of_flags(manor: Manor) -> None:
    first, _newline, _rest = manor.launcher.read_text(encoding="utf-8").partition("\n")
    python, flags = first.removeprefix("#!").split(" ")
    assert flags == "-ISB"
    assert Path(python).is_file()
    assert not Path(python).is_symlink()
    assert Path(python).read_bytes()[:4] == b"\x7fELF"
    assert manor.launcher.stat().st_mode & 0o777 == 0o755


def test_its_text_is_that_of_the_module() -> None:
    # The constants are replaced by name; a line that was renamed would keep its default in what is installed.
    code = Path(install.__file__).parents[1]
    text = install.launcher_text(sys.executable, code, "a.daemon")
    assert repr(str(code)).strip("'") in text
    assert "a.daemon" in text


@pytest.mark.parametrize("name", launcher.NAMESPACES)
def test_every_namespace_has_wardens_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = launcher.key()
    real = posix.readlink

    def readlink(path: str) -> str:
        return "other:[1]" if path == f"/proc/self/ns/{name}" else real(path)

    monkeypatch.setattr(posix, "readlink", readlink)
    assert launcher.key() != before


@pytest.mark.parametrize("line", [*launcher.CREDENTIALS, *launcher.CONFINEMENT])
def test_credentials_and_confinement_tell_wardens_apart(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    before = launcher.key()
    real = launcher.read

    def read(path: str) -> bytes:
        lines = real(path).splitlines(keepends=True)
        return b"".join(
            each.replace(b"\n", b"1\n") if each.startswith(line + b":") else each for each in lines
        )

    monkeypatch.setattr(launcher, "read", read)
    assert (launcher.key() != before) == (line in launcher.read("/proc/self/status"))


def test_label_and_code_version_tell_wardens_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    before = launcher.key()
    assert launcher.warden_name(before, "one") != launcher.warden_name(before, "another")
    real = launcher.read
    label = "/proc/self/attr/current"
    monkeypatch.setattr(launcher, "read", lambda path: b"confined" if path == label else real(path))
    assert launcher.key() != before


def test_the_same_key_has_the_same_name_in_every_process() -> None:
    source = "from shim import launcher; print(launcher.warden_name(b'key', '1'))"
    names = {subprocess.run(as_python(source), capture_output=True, check=True).stdout for _ in range(2)}
    assert names == {launcher.warden_name(b"key", "1").encode() + b"\n"}
    assert launcher.warden_name(b"another key", "1") != launcher.warden_name(b"key", "1")


def test_a_change_of_any_file_changes_the_code_version(tmp_path: Path) -> None:
    code = make_code(tmp_path / "code")
    own_shim(code)
    before = fingerprint.code_version(str(code))
    with open(code / "shim" / "warden.py", "a", encoding="utf-8") as file:
        file.write("\n")
    assert fingerprint.code_version(str(code)) != before


def test_a_run_directory_that_others_may_write_to_is_not_used(manor: Manor) -> None:
    manor.run_dir.chmod(0o730)
    assert "others may write to it" in manor.say()["alone_because"]
    assert list(manor.run_dir.iterdir()) == []


def test_a_missing_run_directory_is_made_for_its_owner_alone(manor: Manor) -> None:
    manor.run_dir.rmdir()
    assert manor.say()["alone_because"] == ""
    assert manor.run_dir.stat().st_mode & 0o777 == 0o700


def test_a_run_directory_that_cannot_be_made_leaves_the_launcher_to_itself(manor: Manor) -> None:
    manor.environ["MANOR_RUN_DIR"] = str(manor.directory / "not" / "there")
    facts = manor.say()
    assert facts["alone_because"].endswith("/not/there: No such file or directory")
    assert facts["seal"] == "sealed"


def test_a_run_directory_with_a_name_longer_than_a_socket_address_will_do(manor: Manor) -> None:
    long = manor.directory / ("long" * 40)
    manor.environ["MANOR_RUN_DIR"] = str(long)
    manor.run_dir = long
    first, second = manor.say(), manor.say()
    assert (first["alone_because"], first["parent"]) == ("", second["parent"])


def test_a_warden_that_is_stopped_is_done_without_and_does_nothing_later(tmp_path: Path) -> None:
    code = make_code(tmp_path / "code")
    own_shim(code, ACCEPT_S=1.5)
    manor = Manor(tmp_path, code)
    try:
        manor.run("-v")
        (warden,) = manor.wardens()
        subprocess.run(["kill", "-STOP", str(warden)], check=True)
        assert manor.say()["alone_because"] == "no answer in time"
        done = manor.run("start", "-id", f"{manor.name}-x")
        assert done.stdout == b"unix:///address"
        assert len(manor.shims()) == 1
        subprocess.run(["kill", "-CONT", str(warden)], check=True)
        assert manor.say()["parent"] == warden  # it has got round to the two that were given up
        assert len(manor.shims()) == 1
    finally:
        manor.end()


def test_a_refusal_is_heard_although_the_request_was_not_read() -> None:
    ours, theirs = socketpair()
    ours.send(b"unread")
    theirs.send(b"-because")
    theirs.close()
    assert launcher.hear(ours) == b"-because"
    assert launcher.hear(ours) == b""
    ours.close()


def socketpair() -> tuple[_socket.socket, _socket.socket]:
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)


def test_install_refuses_an_interpreter_that_is_a_script(tmp_path: Path) -> None:
    script = tmp_path / "python3"
    script.write_text("#!/bin/sh\n", encoding="ascii")
    with pytest.raises(install.InstallError, match="a script, give the interpreter that it runs"):
        install.real_interpreter(str(script))


def test_install_refuses_a_first_line_that_the_kernel_would_cut(tmp_path: Path) -> None:
    with pytest.raises(install.InstallError, match="too long"):
        install.real_interpreter(str(tmp_path / ("x" * 120)))


def test_install_leaves_the_old_launcher_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / install.NAME
    target.write_text("old", encoding="ascii")

    def fail(*_arguments: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        install.write_launcher(tmp_path, Path(install.__file__).parents[1])
    assert [path.name for path in tmp_path.iterdir()] == [install.NAME]
    assert target.read_text(encoding="ascii") == "old"
