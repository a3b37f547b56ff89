"""What a shim tells `manor ps`, of things at rest and of those under way."""

from __future__ import annotations

from typing import Any

from runtime.trace import Timeline
from shim.api import ps, task
from shim.api.codec import decode, encode
from shim.api.types import Empty
from shim.ps_service import PsService
from tests.unit.shim.fake_container import CALL, Shim
from tests.unit.shim.loops import turn_until


def listed(shim: Shim) -> list[ps.ProcessShown]:
    method = PsService(shim.pod).methods()["List"]
    answer: Any = method.handler(Empty(), CALL)
    return list(decode(ps.ListResponse, encode(answer)).processes)


def test_a_pod_with_nothing_in_it(shim: Shim) -> None:
    assert listed(shim) == []


def test_a_container_is_creating_from_when_it_is_asked_for_until_it_is_there(shim: Shim) -> None:
    timeline = Timeline()
    timeline.mark("asked")
    shim.pod.reserve("c1", timeline)
    timeline.mark("open streams")
    (shown,) = listed(shim)
    assert (shown.container, shown.status, shown.step, shown.pid) == ("c1", "creating", "open streams", 0)
    shim.pod.remove("c1")
    assert listed(shim) == []


def test_a_start_that_is_under_way_says_how_far_it_is(shim: Shim) -> None:
    pid = shim.create()
    answers = shim.begin("Start", task.StartRequest("c1"))
    (shown,) = listed(shim)
    assert (answers, shown.status, shown.step, shown.pid) == ([], "starting", "asked", pid)
    turn_until(shim.loop, lambda: bool(answers))
    (shown,) = listed(shim)
    assert (shown.status, shown.step, shown.start_time) == ("running", "", 7)


def test_execs_are_told_with_their_container(shim: Shim) -> None:
    shim.create()
    shim.start()
    shim.add_exec("e1")
    shim.add_exec("e2")
    shim.start(exec_id="e2")
    told = {(each.container, each.exec_id): each.status for each in listed(shim)}
    assert told == {("c1", ""): "running", ("c1", "e1"): "created", ("c1", "e2"): "running"}
