"""Containers of a user without privileges in cgroups that are the user's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.rootless.conftest import Delegated, Scene


@pytest.mark.parametrize(
    ("limit", "whole", "said", "lines"),
    [(0, True, "1", 1), (1, False, "1", 1), (2, True, "2", 2), (-1, False, "max", 3)],
)
def test_a_limit_of_processes_is_the_containers_alone(
    scene: Scene, delegated: Delegated, limit: int, whole: bool, said: str, lines: int
) -> None:
    def limited(config: dict[str, Any]) -> None:
        config["linux"]["cgroupsPath"] = f"{delegated.path}/c"
        config["linux"]["resources"] = {"pids": {"limit": limit}}

    script = "echo first; (echo second); sleep 1000 & (echo third); kill -9 $!"
    bundle = scene.bundle("sh", "-c", script, whole=whole, change=limited)
    name = bundle.path.name
    scene.ok("create", "--bundle", bundle.path, name)
    try:
        assert delegated.files("c", "pids.max") == [said]
    finally:
        scene.ok("delete", "--force", name)
    done = scene.run("run", "--bundle", bundle.path, name)
    assert done.stdout.split() == ["first", "second", "third"][:lines]
    assert ("can't fork" in done.stderr) == (lines < 3)
