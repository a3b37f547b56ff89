"""A config.json can be anything: it is planned, or refused in one clear line, and soon.

The short run is for every change; `MANOR_HOSTILE_CASES=N` asks for a long one, `MANOR_HOSTILE_SEED=N` for others.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from runtime.cgroups.layout import Hierarchy, Layout
from runtime.cli.explain import acts_of, make_plans
from runtime.container import Host
from runtime.errors import ConfigError, ManorError, StageError
from runtime.linux.fds import OwnedFd
from runtime.record import Record
from runtime.spec.load import load_spec
from tests.unit.runtime.spec.hostile import (
    Case,
    Raw,
    cases,
    every_wrong_value,
    places,
    plain_config,
    shown,
    whole_config,
)

COUNT = int(os.environ.get("MANOR_HOSTILE_CASES", "300"))
SEED = int(os.environ.get("MANOR_HOSTILE_SEED", "20261122"))
DEADLINE_S = 1.0  # of this process's own time: the machine may be busy

V1 = (
    "cpu,cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "net_cls,net_prio",
    "rdma",
)
LAYOUT = Layout(
    "hybrid",
    (
        *(Hierarchy(name, tuple(name.split(",")), f"/sys/fs/cgroup/{name}", 1) for name in V1),
        Hierarchy("unified", (), "/sys/fs/cgroup/unified", 2),
    ),
)
HOST = Host("/run/manor-oci", LAYOUT, "", OwnedFd(-1))


def plan(data: bytes) -> None:
    """All that is decided about a config before anything is done."""
    acts_of(make_plans(HOST, "hostile", "/bundle", load_spec(data)))


def check(case: Case) -> ManorError | None:
    """Plan or refuse `case` as it must be; the refusal."""
    began = time.process_time()
    refusal: ManorError | None = None
    try:
        plan(case.data)
    except ManorError as error:
        refusal = error
    took_s = time.process_time() - began
    assert took_s < DEADLINE_S, f"{case} took {took_s:.1f} s"
    if refusal is not None:
        text = str(refusal)
        assert not isinstance(refusal, StageError), str(case)
        assert text.isprintable(), f"{case}: {text!r}"
        assert len(text) < 1000, f"{case}: {text!r}"
        if case.place is not None and is_misplaced(case):
            assert isinstance(refusal, ConfigError), f"{case}: {text}"
            assert refusal.path.startswith(shown(case.place)), f"{case}: {text}"
    return refusal


def is_misplaced(case: Case) -> bool:
    """Whether the value is of another JSON type than what stands there, so that the error must be about it."""
    if isinstance(case.value, Raw) or case.place is None or isinstance(case.value, list | dict):
        return False
    good: Any = whole_config()
    for part in case.place:
        good = good[part]
    return type(case.value) is not type(good)


def test_hostile_configs_are_planned_or_refused_clearly_and_soon() -> None:
    refused = sum(check(case) is not None for case in cases(SEED, COUNT))
    assert refused > COUNT / 2


@pytest.mark.skipif(COUNT < 5000, reason="a long run: MANOR_HOSTILE_CASES=5000")
def test_no_field_takes_a_wrong_value_badly() -> None:
    assert sum(1 for case in every_wrong_value() if check(case) is not None) > 5000


def test_a_value_of_another_type_is_refused_at_every_place() -> None:
    """The error names the place, whatever the field; an object of strings may hold any key."""
    config = whole_config()
    for place in places(config):
        good: Any = config
        for part in place:
            good = good[part]
        wrong = [value for value in (True, 7, 1.5, "x", ["x"], {"x": "y"}) if type(value) is not type(good)]
        for value in wrong:
            with pytest.raises(ConfigError) as caught:
                load_spec(_with(place, value))
            assert caught.value.path.startswith(shown(place)), (shown(place), value, str(caught.value))


def _with(place: tuple[str | int, ...], value: Any) -> bytes:
    config = whole_config()
    target: Any = config
    for part in place[:-1]:
        target = target[part]
    target[place[-1]] = value
    return json.dumps(config).encode()


def test_the_whole_config_has_every_field_of_the_model() -> None:
    spec = load_spec(json.dumps(whole_config()).encode())
    assert not list(_at_default(spec, "spec"))


def _at_default(value: Any, path: str) -> Any:
    """The paths of fields that hold nothing."""
    for name in value.FIELD_NAMES:
        held = getattr(value, name)
        below = held[0] if isinstance(held, tuple) and held else held
        if isinstance(held, dict) and held:
            below = next(iter(held.values()))
        if isinstance(below, Record):
            yield from _at_default(below, f"{path}.{name}")
        elif held is None or held == () or held == {}:
            yield f"{path}.{name}"


def test_the_plain_config_is_planned() -> None:
    plan(json.dumps(plain_config()).encode())
