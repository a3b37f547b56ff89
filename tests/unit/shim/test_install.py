"""What an installation has beside its programs."""

from __future__ import annotations

import sys
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from shim import install


def library(place: Path) -> Path:
    """A D-Bus library in `place`; one module of it."""
    (place / "jeepney").mkdir(parents=True)
    module = place / "jeepney" / "wrappers.py"
    module.write_text("NAME = 1\n")
    return module


@pytest.mark.parametrize(
    ("where", "compiled"), [("code", True), ("env/lib/site-packages", True), ("dist-packages", False)]
)
def test_the_library_for_systemd_is_compiled_where_it_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, compiled: bool
) -> None:
    """A copy beside our code, or in our own environment; a distribution's is the distribution's."""
    module = library(tmp_path / where)
    monkeypatch.setattr(install, "libraries", lambda: str(tmp_path / where))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    install.compile_library(tmp_path / "code")
    assert Path(cache_from_source(str(module), optimization=2)).exists() == compiled


def test_an_environment_that_is_the_machines_own_python_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = library(tmp_path / "lib")
    monkeypatch.setattr(install, "libraries", lambda: str(tmp_path / "lib"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    install.compile_library(tmp_path / "code")
    assert not Path(cache_from_source(str(module), optimization=2)).exists()
