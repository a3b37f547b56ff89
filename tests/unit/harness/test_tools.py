"""Which Go the tools are built with, and what is said to one that cannot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness import tools

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the only `go` of PATH would be."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin" / "go"


def be(go: Path, version: str, toolchain: str = "auto") -> None:
    go.write_text(
        f"""#!/bin/sh
case "$*" in
version) echo "go version {version} linux/amd64" ;;
"env GOTOOLCHAIN") echo "{toolchain}" ;;
*) echo "{go} $*"; exit 3 ;;
esac
"""
    )
    go.chmod(0o755)


@pytest.mark.parametrize(
    ("version", "toolchain"),
    [
        ("go1.26.3", "local"),
        ("go1.26.8", "auto"),
        ("go1.27", "local"),
        ("go2.0.1", "local"),
        ("go1.21.0", "auto"),
        ("go1.25.4", "go1.26.3+auto"),
        ("devel +2f3a9c1", "local"),
        ("devel go1.28-2f3a9c1", "local"),
    ],
)
def test_a_go_that_is_new_enough_or_may_fetch_one_is_taken(go: Path, version: str, toolchain: str) -> None:
    be(go, version, toolchain)
    assert tools.go_command() == str(go)


@pytest.mark.parametrize(
    ("version", "toolchain", "told"),
    [
        ("go1.19.8", "", "is Go 1.19.8: containerd .* Go 1.26.3 or newer; any from 1.21 on fetches"),
        ("go1.20", "", "is Go 1.20.0: containerd .* Go 1.26.3 or newer; any from 1.21 on fetches"),
        ("go1.24.4", "local", "is Go 1.24.4: containerd .* Go 1.26.3 or newer, .* GOTOOLCHAIN=local forbids"),
        ("go1.26.2", "local", "is Go 1.26.2: containerd .* Go 1.26.3 or newer, .* GOTOOLCHAIN=local forbids"),
    ],
)
def test_a_go_that_is_too_old_is_told_so_before_anything_is_made(
    go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, toolchain: str, told: str
) -> None:
    be(go, version, toolchain)
    made: list[str] = []
    tool = tools.Built("thing", "1", ("thing",), lambda _target: made.append("built"))
    monkeypatch.setattr(tools, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(tools, "BUILT", (tool,))
    monkeypatch.setattr(tools, "PACKAGES", {"a-package": "/no/such/file"})
    monkeypatch.setattr(tools, "UNPACKED", {})
    monkeypatch.setattr(tools, "_install_packages", made.extend)
    with pytest.raises(tools.ToolError, match=told) as caught:
        tools.ensure()
    assert "\n" not in str(caught.value)
    assert made == []


def test_no_go_at_all_is_told_which_one_it_takes(go: Path) -> None:
    with pytest.raises(tools.ToolError, match=r"Go is not installed: .* Go 1\.26\.3 or newer"):
        tools.go_command()


@pytest.mark.parametrize("file", ["README.md", "Makefile"])
def test_who_reads_before_typing_finds_the_same_version(file: str) -> None:
    named = re.findall(r"Go (\d+\.\d+\.\d+)", (ROOT / file).read_text(encoding="utf-8"))
    assert named == [".".join(map(str, tools.GO))]


def test_where_all_is_built_no_go_is_asked_for(
    go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(go, "go1.19.8", "")
    tool = tools.Built("thing", "1", ("thing",), lambda _target: pytest.fail("built again"))
    monkeypatch.setattr(tools, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(tools, "BUILT", (tool,))
    monkeypatch.setattr(tools, "PACKAGES", {})
    monkeypatch.setattr(tools, "UNPACKED", {})
    tool.directory.mkdir(parents=True)
    (tool.directory / "thing").touch()
    tools.ensure()
