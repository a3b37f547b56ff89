"""What the command's verbs are given of the machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from runtime.cli import host
from runtime.cli.arguments import Globals
from runtime.errors import Unsupported

if TYPE_CHECKING:
    from pathlib import Path


def test_without_a_library_of_d_bus_the_systemd_driver_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in ("runtime.cgroups.systemd", "runtime.cgroups.bus"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "jeepney.low_level", None)
    systemd = host.host(Globals(root=str(tmp_path / "root"))).systemd
    assert systemd is not None
    with pytest.raises(Unsupported, match="needs the Python package jeepney"):
        systemd()
