"""Failures on demand: what can be asked for, who may, and that every step of the code is known by name."""

from __future__ import annotations

import ast
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import runtime
from runtime import faults, trace
from runtime.cli import settings
from runtime.cli.arguments import parse
from runtime.errors import InvalidArgument, StageError
from runtime.faults import Fault, name_of, parse_delay, parse_failure, plant, plant_what_is_asked
from runtime.namespaces import KINDS
from runtime.stages.clone import Step
from runtime.trace import Timeline

SOURCES = Path(runtime.__file__).parent
# Methods of a Step that begin one, and functions and methods of stage 0 that end one.
BEGINNING, ENDING = "begin", ("mark", "passed")


@pytest.fixture(autouse=True)
def unplanted() -> Iterator[None]:
    yield
    trace.planted = None


def named_in(call: ast.Call) -> set[str]:
    """The step that a call names; each that it can name, where the kind of a namespace is part of it."""
    first = call.args[0]
    if isinstance(first, ast.Constant):
        return {str(first.value)}
    assert isinstance(first, ast.JoinedStr), ast.unparse(call)
    around = [part.value for part in first.values if isinstance(part, ast.Constant)]
    assert around == ["join ", " namespace"], ast.unparse(call)
    return {f"join {kind} namespace" for kind in KINDS}


def steps_of_the_code() -> tuple[set[str], set[str]]:
    """The steps of children, and those of stage 0, as the sources of runtime name them."""
    begun: set[str] = set()
    ended: set[str] = set()
    for path in SOURCES.rglob("*.py"):
        if path.parts[-2:-1] == ("cli",) or path.name in ("trace.py", "bus.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            if node.func.attr == BEGINNING and ast.unparse(node.func.value).endswith("step"):
                begun |= named_in(node)
            elif node.func.attr in ENDING and isinstance(node.args[0], ast.Constant | ast.JoinedStr):
                ended |= named_in(node)
    return begun, ended


def test_every_step_of_the_code_is_known() -> None:
    begun, ended = steps_of_the_code()
    known = {stage: set(steps) for stage, steps in faults.STEPS.items()}
    # A new mount namespace is a must, so that none is ever joined.
    assert (
        begun - {"join mount namespace"}
        == known["creator"] | known["inter"] | known["init"] | known["opener"]
    )
    assert ended == known["main"]


def test_names_have_no_dots_and_no_colons_and_are_told_apart() -> None:
    for stage, steps in faults.STEPS.items():
        names = [name_of(step) for step in steps]
        assert len(set(names)) == len(names), stage
        assert not {".", ":", " "} & set("".join(names))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("init.set-up-stdio", Fault("init", "set up stdio", errno.EIO)),
        ("init.set-up-stdio:ENOSPC", Fault("init", "set up stdio", errno.ENOSPC)),
        ("main.make-cgroup:28", Fault("main", "make cgroup", 28)),
        ("creator.create-container", Fault("creator", "create container", errno.EIO)),
        ("init.run-createContainer-hooks", Fault("init", "run createContainer hooks", errno.EIO)),
    ],
)
def test_a_failure_is_asked_for_by_stage_step_and_errno(text: str, expected: Fault) -> None:
    assert parse_failure(text) == expected


@pytest.mark.parametrize(("text", "delay_s"), [("main.plan:2", 2.0), ("main.plan:0.25", 0.25)])
def test_a_delay_is_asked_for_in_seconds(text: str, delay_s: float) -> None:
    assert parse_delay(text) == Fault("main", "plan", delay_s=delay_s)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no stage ''; there are main creator inter init opener"),
        ("plan", "no stage 'plan'"),
        ("boot.plan", "no stage 'boot'"),
        ("creator.plan", "stage creator has no step 'plan'; it has create-container"),
        ("main.set-up-stdio", "stage main has no step 'set-up-stdio'; it has clone-creator read-config"),
        ("main.plan:EWHAT", "'EWHAT' is no error number"),
        ("main.plan:0", "'0' is no error number"),
        ("main.plan:-5", "'-5' is no error number"),
        ("main.plan:EIO:EIO", "'EIO:EIO' is no error number"),
    ],
)
def test_an_unknown_place_is_refused_with_those_there_are(text: str, complaint: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_failure(text)
    assert str(caught.value).startswith(f"{text}: ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize("seconds", ["", "0", "-1", "1e3", "nan", "inf", "3601", "٣", ".", "1.5.5"])
def test_what_is_no_time_is_refused(seconds: str) -> None:
    with pytest.raises(InvalidArgument, match="seconds"):
        parse_delay(f"main.plan:{seconds}")


def test_a_step_of_a_child_fails_when_it_begins_and_names_both() -> None:
    plant([parse_failure("init.pivot-into:ENOSPC")])
    step = Step("2:INIT")
    step.begin("write sysctls")
    with pytest.raises(StageError, match=r"^2:INIT: pivot into: No space left on device") as caught:
        step.begin("pivot into", "/rootfs")
    assert caught.value.number == errno.ENOSPC
    assert step.operation == "pivot into"
    Step("1:INTER").begin("pivot into")  # another stage's is another step


def test_a_step_of_main_fails_when_it_is_done() -> None:
    plant([parse_failure("main.plan"), parse_failure("main.remove-cgroup")])
    timeline = Timeline()
    timeline.mark("make cgroup")
    with pytest.raises(StageError, match="^main: plan: "):
        timeline.mark("plan")
    assert [step for step, _when in timeline.marks()] == ["make cgroup", "plan"]
    with pytest.raises(StageError, match="^main: remove cgroup: "):
        trace.passed("remove cgroup")


def test_a_delay_waits_and_goes_on() -> None:
    plant([parse_delay("main.plan:0.05")])
    began = time.monotonic()
    Timeline().mark("plan")
    assert time.monotonic() - began >= 0.05


def test_nothing_planted_is_nothing_to_call() -> None:
    plant([parse_delay("main.plan:1")])
    plant([])
    assert trace.planted is None


def test_only_root_may_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InvalidArgument, match="root only"):
        plant_what_is_asked(["main.plan"], [])
    plant_what_is_asked([], [])
    assert trace.planted is None


def test_the_command_line_takes_any_number_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    words = ["--fail-at", "main.plan", "--fail-at=init.execute:EPERM", "--delay-at", "main.clone:1", "create"]
    asked = parse(words, settings.OPTIONS, first_ends=True).options
    assert asked["fail-at"] == ["main.plan", "init.execute:EPERM"]
    plant_what_is_asked(asked["fail-at"], asked["delay-at"])
    with pytest.raises(StageError, match="Operation not permitted"):
        Step("2:INIT").begin("execute")
