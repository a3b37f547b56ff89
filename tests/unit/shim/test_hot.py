"""The list of code that a warden lays together: whatever it names is there."""

from __future__ import annotations

import importlib

import pytest

from shim.hot import HOT

OURS = sorted(module for module in HOT if module.startswith(("runtime.", "shim.")))


@pytest.mark.parametrize("module", OURS)
def test_what_is_named_exists(module: str) -> None:
    """If not: `make hot`."""
    for name in HOT[module].split():
        place: object = importlib.import_module(module)
        for word in name.partition(".<locals>")[0].split("."):
            assert word in vars(place), f"{module} has no {name}"
            place = vars(place)[word]


def test_the_loop_and_what_it_calls_are_named() -> None:
    named = {f"{module}.{name}" for module in OURS for name in HOT[module].split()}
    assert len(named) > 300
    assert {"shim.loop.Loop.turn", "shim.tasks.Task.resume", "shim.container.Container.add_exec"} <= named
