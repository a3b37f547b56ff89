"""What an exec gives back when it fails before anything is cloned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime.container import ExecRequest
from runtime.operations import exec as operation
from runtime.spec.load import load_process
from runtime.stages.plan import Stdio
from runtime.waiting import run
from tests.harness.processes import descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_an_init_that_does_not_answer_at_its_gate_costs_no_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nobody_answers(_container: object) -> Iterator[Any]:
        yield from ()
        raise TimeoutError

    monkeypatch.setattr(operation, "_doors", nobody_answers)
    monkeypatch.setattr(operation, "plan_affinity", lambda *_about: None)
    container: Any = SimpleNamespace(require=lambda *_about: None)
    process = load_process(b'{"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}}')
    before = descriptors()
    with pytest.raises(TimeoutError):
        run(operation.exec_(container, ExecRequest(process, Stdio())))
    assert not descriptors() - before
