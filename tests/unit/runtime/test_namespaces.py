"""Which namespaces are joined and which are made, and when one clone is enough for them."""

from __future__ import annotations

import os

import pytest

from runtime.errors import StageError
from runtime.linux import constants as c
from runtime.namespaces import Join, open_joins, plan_namespaces
from runtime.spec.model import Namespace
from runtime.stages.landlord import choose_shape
from runtime.stages.plan import DIRECT, STAGED
from tests.harness.processes import descriptors

MOUNT = Namespace("mount")


def test_new_and_joined_namespaces_are_told_apart() -> None:
    plan = plan_namespaces((MOUNT, Namespace("pid"), Namespace("network", "/run/netns/a")))
    assert plan.new == c.CLONE_NEWNS | c.CLONE_NEWPID
    assert plan.joins == (Join("network", c.CLONE_NEWNET, "/run/netns/a"),)
    assert plan.kinds == c.CLONE_NEWNS | c.CLONE_NEWPID | c.CLONE_NEWNET


def test_a_path_that_is_not_there_is_named_and_the_others_are_closed() -> None:
    plan = plan_namespaces((MOUNT, Namespace("ipc", "/proc/self/ns/ipc"), Namespace("uts", "/no/where")))
    before = descriptors()
    with pytest.raises(StageError, match="open uts namespace /no/where: No such file"):
        open_joins(plan)
    assert not descriptors() - before


def test_the_user_namespace_that_we_are_in_already_is_not_joined() -> None:
    plan = plan_namespaces(
        (MOUNT, Namespace("user", "/proc/self/ns/user"), Namespace("uts", "/proc/self/ns/uts"))
    )
    opened = open_joins(plan)
    assert [join.name for join, _fd in opened] == ["uts"]
    for _join, fd in opened:
        fd.close()


@pytest.mark.parametrize(
    ("namespaces", "euid", "shape"),
    [
        ((MOUNT, Namespace("pid")), 0, DIRECT),
        ((MOUNT, Namespace("network", "/n")), 0, DIRECT),
        ((MOUNT, Namespace("network", "/n"), Namespace("pid", "/p")), 0, STAGED),
        ((MOUNT, Namespace("user")), 0, DIRECT),
        ((MOUNT, Namespace("user"), Namespace("pid", "/p")), 0, DIRECT),
        ((MOUNT, Namespace("user"), Namespace("network", "/n")), 0, STAGED),
        ((MOUNT, Namespace("user", "/u")), 0, STAGED),
        ((MOUNT, Namespace("pid")), 1000, STAGED),
    ],
)
def test_the_direct_shape_is_taken_where_one_clone_is_enough(
    monkeypatch: pytest.MonkeyPatch, namespaces: tuple[Namespace, ...], euid: int, shape: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    assert choose_shape(plan_namespaces(namespaces)) == shape
