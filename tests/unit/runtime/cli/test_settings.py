"""What the options before the verb come to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.cli import settings
from runtime.cli.arguments import Globals, parse
from runtime.errors import InvalidArgument


def completed(*words: str) -> Globals:
    return settings.complete(parse(words, settings.OPTIONS, first_ends=True))


@pytest.fixture(autouse=True)
def no_runtime_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


def test_the_defaults() -> None:
    assert completed() == Globals(root="/run/manor-oci")


def test_everything_given(tmp_path: Path) -> None:
    words = "--debug --log l --log-format json --root /r/../s --systemd-cgroup --rootless=True"
    assert completed(*words.split()) == Globals(
        root="/s",
        root_given=True,
        log="l",
        log_format="json",
        debug=True,
        systemd_cgroup=True,
        rootless="true",
    )


@pytest.mark.parametrize("root", ["/", "//", "/..", "/a/.."])
def test_the_root_directory_of_the_machine_is_refused(root: str) -> None:
    with pytest.raises(InvalidArgument, match="should not be set to /"):
        completed("--root", root)


def test_a_relative_root_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert completed("--root", "x/y").root == f"{tmp_path}/x/y"
    assert completed("--root=").root == str(tmp_path)


@pytest.mark.parametrize(
    ("given", "wanted"), [("", "auto"), ("auto", "auto"), ("1", "true"), ("false", "false")]
)
def test_rootless_is_true_false_or_auto(given: str, wanted: str) -> None:
    assert completed(f"--rootless={given}").rootless == wanted


def test_and_nothing_else() -> None:
    with pytest.raises(InvalidArgument, match="'maybe'"):
        completed("--rootless", "maybe")
    with pytest.raises(InvalidArgument, match="invalid log-format: xml"):
        completed("--log-format", "xml")


def test_who_is_not_root_has_a_directory_of_his_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert completed().root == f"{tmp_path}/manor-oci"
    assert (tmp_path / "manor-oci").stat().st_mode & 0o7777 == 0o1700
    assert completed("--root", "/x").root == "/x"


def test_root_does_not_look_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(settings, "_in_user_namespace", lambda: False)
    assert completed().root == "/run/manor-oci"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("said", "euid", "rootless"), [("true", 0, True), ("false", 1000, False), ("auto", 1000, True)]
)
def test_rootless_is_what_was_said_or_who_one_is(
    monkeypatch: pytest.MonkeyPatch, said: str, euid: int, rootless: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    assert settings.is_rootless(Globals(root="/x", rootless=said)) is rootless
