"""Which cgroup a tenant joins: its own, one below it that was asked for, or the landlord's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.joining import LANDLORD, LANDLORD_POLICY, OWN, STRICT_POLICY, SUB, parse_sub_cgroups
from runtime.cgroups.layout import Hierarchy, Layout, make_layout
from runtime.errors import CgroupError, InvalidArgument
from tests.harness.processes import descriptors


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ([], {}),
        (["below"], {"": "below"}),
        (["/below/it/"], {"": "below/it"}),
        (["/"], {"": ""}),
        (["cpu,memory:a", "pids:/b"], {"cpu": "a", "memory": "a", "pids": "b"}),
        (["name=systemd:a"], {"name=systemd": "a"}),
    ],
)
def test_options_name_cgroups_by_their_controllers(options: list[str], paths: dict[str, str]) -> None:
    assert parse_sub_cgroups(options) == paths


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["a", "b"], "missing <controller>: prefix"),
        (["cpu:a", "b"], "missing <controller>: prefix"),
        ([":a"], "empty <controller> prefix"),
        (["cpu,,pids:a"], "empty <controller> prefix"),
        (["cpu:a", "pids,cpu:b"], "controller cpu specified multiple times"),
        ([".."], "bad sub cgroup path"),
        (["../other"], "bad sub cgroup path"),
        (["a/../../b"], "bad sub cgroup path"),
        (["cpu:/../a"], "bad sub cgroup path"),
        (["a\0b"], "bad sub cgroup path"),
        (["a\nb"], "bad sub cgroup path"),
    ],
)
def test_a_wrong_option_is_told(options: list[str], problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        parse_sub_cgroups(options)


def layout_of(tmp_path: Path, v2: tuple[str, ...] | None, *v1: str) -> Layout:
    """Directories in place of hierarchies, each with the cgroup c and c/below in it."""
    made = []
    for name in v1:
        mountpoint = tmp_path / name.replace("=", "_")
        made.append(
            Hierarchy(name=name, controllers=tuple(name.split(",")), mountpoint=str(mountpoint), version=1)
        )
    if v2 is not None:
        made.append(Hierarchy(name="unified", controllers=v2, mountpoint=f"{tmp_path}/unified", version=2))
    for each in made:
        below = Path(each.mountpoint) / "c/below"
        below.mkdir(parents=True)
        for directory in (below, below.parent):
            (directory / "tasks").touch()
    return make_layout(tuple(made))


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    before = descriptors()
    yield
    assert not descriptors() - before


def joined(layout: Layout, sub: dict[str, str]) -> tuple[list[str], str]:
    with Cgroup(layout, "c").open_join(1, sub) as join:
        fds = [*join.fds(), *([] if join.v2_dir is None else [join.v2_dir.fileno()])]
        assert not join.may_fall_back
        return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in fds), join.place


def test_one_path_is_meant_in_every_hierarchy(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, ("hugetlb",), "cpu,cpuacct", "memory")
    assert joined(layout, {"": "below"}) == (
        [
            f"{tmp_path}/{each}"
            for each in ("cpu,cpuacct/c/below/tasks", "memory/c/below/tasks", "unified/c/below")
        ],
        SUB,
    )


def test_a_path_for_a_controller_leaves_the_others_where_they_are(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, ("hugetlb",), "cpu,cpuacct", "memory", "name=systemd")
    files, place = joined(layout, {"cpuacct": "below", "systemd": "below"})
    assert files == [
        f"{tmp_path}/{each}"
        for each in ("cpu,cpuacct/c/below/tasks", "memory/c/tasks", "name_systemd/c/below/tasks", "unified/c")
    ]
    assert place == SUB


def test_on_a_unified_machine_it_is_one_path(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, ("cpu", "memory"))
    assert joined(layout, {"": "below"}) == ([f"{tmp_path}/unified/c/below"], SUB)
    with pytest.raises(InvalidArgument, match="one path for all"):
        joined(layout, {"cpu": "below"})


def test_beside_v1_controllers_the_path_need_not_be_in_v2(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, ("hugetlb",), "cpu")
    (tmp_path / "unified/c/below/tasks").unlink()
    (tmp_path / "unified/c/below").rmdir()
    assert joined(layout, {"": "below"})[0] == [f"{tmp_path}/cpu/c/below/tasks", f"{tmp_path}/unified/c"]


@pytest.mark.parametrize("sub", [{"": "gone"}, {"cpu": "gone"}])
def test_a_cgroup_that_is_not_there_is_an_error_with_its_path(tmp_path: Path, sub: dict[str, str]) -> None:
    with pytest.raises(CgroupError, match=r"cpu/c/gone.*No such file"):
        joined(layout_of(tmp_path, None, "cpu"), sub)


def test_a_cgroup_of_v2_that_is_not_there_never_becomes_the_landlords(tmp_path: Path) -> None:
    with pytest.raises(CgroupError, match=r"unified/c/gone: No such file"):
        joined(layout_of(tmp_path, ("cpu",)), {"": "gone"})


def test_a_join_that_fails_half_way_is_an_error_and_keeps_nothing_open(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, ("hugetlb",), "cpu")
    (tmp_path / "unified/c").rename(tmp_path / "unified/other")
    with pytest.raises(CgroupError, match=r"unified/c/below: No such file"):
        joined(layout, {"": "below"})


def test_a_cgroup_behind_a_link_is_none(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, ("cpu",))
    (tmp_path / "unified/other").mkdir()
    (tmp_path / "unified/c/link").symlink_to("../other")
    with pytest.raises(CgroupError, match="link"):
        joined(layout, {"": "link"})


def test_unknown_and_contradicting_controllers_are_told(tmp_path: Path) -> None:
    layout = layout_of(tmp_path, None, "cpu,cpuacct")
    with pytest.raises(InvalidArgument, match="unknown controller rdma"):
        joined(layout, {"rdma": "below"})
    with pytest.raises(InvalidArgument, match="cpu,cpuacct, which go together"):
        joined(layout, {"cpu": "below", "cpuacct": "other"})


def test_the_container_itself_may_be_asked_for(tmp_path: Path) -> None:
    assert joined(layout_of(tmp_path, None, "cpu"), {"": ""}) == ([f"{tmp_path}/cpu/c/tasks"], OWN)


def test_only_a_tenant_of_the_landlord_policy_falls_back(tmp_path: Path) -> None:
    cgroup = Cgroup(layout_of(tmp_path, ("cpu",)), "c")
    for landlord, policy, may in (
        (7, LANDLORD_POLICY, True),
        (7, STRICT_POLICY, False),
        (0, LANDLORD_POLICY, False),
    ):
        with cgroup.open_join(landlord, policy=policy) as join:
            assert (join.place, join.may_fall_back) == (OWN, may)


def test_a_cgroup_that_is_gone_becomes_the_landlords_unless_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = layout_of(tmp_path, ("cpu",))
    monkeypatch.setattr("runtime.cgroups.joining.unified_path", lambda _text, _root: "c/below")
    gone = Cgroup(layout, "gone")
    with gone.open_join(os.getpid()) as join:
        assert join.place == LANDLORD
        assert join.v2_dir is not None
        assert os.readlink(f"/proc/self/fd/{join.v2_dir.fileno()}") == f"{tmp_path}/unified/c/below"
    with pytest.raises(FileNotFoundError):
        gone.open_join(os.getpid(), policy=STRICT_POLICY)
