"""linux.intelRdt on a machine without resctrl: nobody runs with less than was asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.rdt.conftest import Oci

pytestmark = pytest.mark.skipif(os.path.isdir("/sys/fs/resctrl/info"), reason="this machine has resctrl")


def with_rdt(**asked: Any) -> Any:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["intelRdt"] = asked

    return change


@pytest.mark.parametrize("asked", [{}, {"closID": "/"}, {"schemata": ["L3:0=f"]}, {"enableMonitoring": True}])
def test_a_container_that_asks_for_it_is_not_made(oci: Oci, asked: dict[str, Any]) -> None:
    bundle = oci.bundle("touch", "/ran", change=with_rdt(**asked))
    done = oci("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code == 1
    assert "intelRdt" in done.error
    assert not (bundle.rootfs / "ran").exists()


@pytest.mark.manor_only("runc asks for resctrl first")
def test_what_it_could_not_mean_is_named_where_it_stands(oci: Oci) -> None:
    bundle = oci.bundle("true", change=with_rdt(closID="../up"))
    done = oci("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code == 1
    assert "linux.intelRdt.closID" in done.error


def test_a_container_that_does_not_ask_runs(oci: Oci) -> None:
    bundle = oci.bundle("true")
    assert oci("run", "--bundle", bundle.path, bundle.path.name).code == 0
