"""Where the systemd cgroup driver is, and what is said where it is not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.errors import Unsupported
from runtime.stages.clone import spawn_placeholder
from shim import info, systemd

MODULE = "runtime.cgroups.systemd"


@pytest.fixture
def booted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    monkeypatch.setattr(systemd, "booted_with_systemd", lambda: True)


def test_it_is_not_loaded_on_a_machine_without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    monkeypatch.setattr(systemd, "booted_with_systemd", lambda: False)
    systemd.load("/nowhere")
    assert not systemd.available()
    assert info.features()["linux"]["cgroup"]["systemd"] is False  # type: ignore[index]
    with pytest.raises(Unsupported, match="not booted with systemd"):
        systemd.manager()


@pytest.mark.usefixtures("booted")
def test_a_node_without_the_library_has_shims_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)
    systemd.load("/nowhere")
    monkeypatch.delitem(sys.modules, MODULE)
    assert "/nowhere" not in sys.path
    with pytest.raises(Unsupported, match="jeepney is missing"):
        systemd.manager()


@pytest.mark.usefixtures("booted")
def test_with_it_there_is_a_manager_and_info_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = SimpleNamespace(Systemd=lambda spawn: ("manager", spawn))
    monkeypatch.setitem(sys.modules, MODULE, made)
    systemd.load(str(tmp_path))
    manager: object = systemd.manager()
    assert manager == ("manager", spawn_placeholder)
    assert info.features()["linux"]["cgroup"]["systemd"] is True  # type: ignore[index]
