"""What of a container is its own: by inode numbers and by what others say, whatever stands on record."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from manor import belongings, ledger
from manor.belongings import Claims, cgroup_of, claims, group_of, mounts_of
from manor.ledger import Mount, Pod
from runtime import rdt, state
from runtime.cgroups.layout import Hierarchy, Layout
from runtime.state import State
from tests.unit.states import state_json

ROOTFS = "/b/rootfs"


class Node:
    """One pod of one container, whose hierarchies and resctrl are directories."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.pod_directory = top / "pod"
        self.directory = self.pod_directory / "c1"
        self.directory.mkdir(parents=True)
        self.bundle = top / "bundle"
        self.bundle.mkdir()
        places = []
        for name in ("cpu", "memory"):
            (top / name).mkdir()
            places.append(Hierarchy(name, (name,), str(top / name), 1, "/"))
        self.layout = Layout("legacy", tuple(places))
        self.resctrl = top / "resctrl"
        self.resctrl.mkdir()

    def announce(self, **more: object) -> State:
        (self.directory / ".create").unlink(missing_ok=True)
        state.announce(str(self.directory), str(self.bundle), "/own", more)
        return self.known()

    def known(self) -> State:
        found = ledger._state(str(self.pod_directory), "c1")
        assert found is not None
        return found

    def save(self, **changes: object) -> State:
        told = json.loads(state_json()) | {"bundle": str(self.bundle)} | changes
        (self.directory / "state.json").write_text(json.dumps(told))
        return self.known()

    @property
    def pod(self) -> Pod:
        return Pod(str(self.pod_directory), None, "", {"c1": self.known()})

    def make_cgroup(self, *hierarchies: str) -> list[Path]:
        made = [self.top / name / "own" for name in hierarchies]
        for each in made:
            each.mkdir()
            (each / "cgroup.procs").write_text("")
        return made

    def cgroup_paths(self) -> list[str]:
        found = cgroup_of(self.layout, self.pod, self.known())
        return [] if found is None else sorted(found.paths)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node(tmp_path)
    monkeypatch.setattr(rdt, "find_resctrl", lambda: str(made.resctrl))
    return made


def made_anew(path: Path) -> None:
    """The same name, another inode."""
    os.rename(path, path.with_name("before"))
    path.mkdir()


# ---- mounts ------------------------------------------------------------------------------------


def points(found: Iterable[Mount]) -> list[str]:
    return [each.point for each in found]


def mount(number: int, point: str, parent: int = 1, inside: str = "/", device: str = "0:9") -> Mount:
    return Mount(number, point, "overlay", "overlay", parent, device, inside)


def without_a_namespace(node: Node) -> tuple[State, list[Mount]]:
    """A root that is bound onto itself, with what is mounted below it, and what is beside it."""
    rootfs = f"{node.bundle}/rootfs"
    known = node.announce(root_on_host=rootfs)
    table = [
        mount(2, rootfs),
        mount(3, rootfs, 2),
        mount(4, f"{rootfs}/proc", 3),
        mount(5, f"{rootfs}/proc/sys", 4),
        mount(6, f"{rootfs}-2"),
        mount(7, f"{rootfs}/volume", 2),
    ]
    return known, table


def test_who_has_no_mount_namespace_has_all_that_hangs_below_its_root(node: Node) -> None:
    known, table = without_a_namespace(node)
    found = mounts_of(node.pod, known, table, ())
    assert [each.id for each in found.tops] == [3, 2]
    assert [each.id for each in found.below] == [4, 5]


def test_a_root_that_shows_something_else_was_mounted_by_somebody_else(node: Node) -> None:
    root = f"{node.bundle}/elsewhere"
    known = node.announce(root_on_host=root)
    for table in (
        [mount(2, root)],
        [mount(2, root), mount(3, root, 2, device="0:10")],
        [mount(2, root, inside="/other")],
    ):
        assert mounts_of(node.pod, known, table, ()).tops == ()
    bound = [mount(2, root, inside=root)]
    assert points(mounts_of(node.pod, known, bound, ()).tops) == [root]


def test_a_bundle_that_was_made_anew_is_another_containers(node: Node) -> None:
    known, table = without_a_namespace(node)
    made_anew(node.bundle)
    assert mounts_of(node.pod, known, table, ()) == belongings.Mounts((), ())
    assert claims(node.pod) == set(node.pod.files.mounts)
    outside = node.announce(root_on_host="/elsewhere")
    made_anew(node.bundle.rename(node.top / "moved"))
    node.bundle.mkdir()
    assert points(mounts_of(node.pod, outside, [mount(9, "/elsewhere", inside="/elsewhere")], ()).tops) == [
        "/elsewhere"
    ]


def test_what_another_pod_lays_claim_to_is_nobodys_to_remove(node: Node) -> None:
    known, table = without_a_namespace(node)
    assert mounts_of(node.pod, known, table, {f"{node.bundle}/rootfs"}).tops == ()
    assert f"{node.bundle}/rootfs" in claims(node.pod)


def test_what_pods_lay_claim_to_is_read_once_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be thousands that are dead, and each is held against all others."""
    asked: list[str] = []

    def claimed_by(pod: Pod) -> set[str]:
        asked.append(pod.directory)
        return {pod.directory, "/of-two"} if pod.directory != "/2" else {pod.directory}

    monkeypatch.setattr(belongings, "claims", claimed_by)
    pods = [Pod(f"/{number}", None, "") for number in range(3)]
    claimed = Claims(pods)
    assert asked == []
    foreign = [claimed.foreign_to(pod) for pod in pods]
    assert ["/of-two" in each for each in foreign] == [True, True, True]
    assert [["/0" in each, "/1" in each, "/2" in each, "/3" in each] for each in foreign] == [
        [False, True, True, False],
        [True, False, True, False],
        [True, True, False, False],
    ]
    assert len(asked) == len(pods)


def test_an_earlier_version_has_not_noted_whose_bundle_it_was(node: Node) -> None:
    (node.directory / ".create").write_text(json.dumps([str(node.bundle), "/own"]))
    made_anew(node.bundle)
    rootfs = f"{node.bundle}/rootfs"
    assert points(mounts_of(node.pod, node.known(), [mount(2, rootfs)], ()).tops) == [rootfs]


def test_the_processes_that_have_a_directory_for_their_root_are_its_users() -> None:
    assert os.getpid() in belongings.users_of("/")
    assert belongings.users_of("/proc") == []
    assert belongings.users_of("/nowhere") == []


# ---- cgroups -----------------------------------------------------------------------------------


def test_only_those_directories_are_its_own_that_were_noted(node: Node) -> None:
    node.announce()
    made = node.make_cgroup("cpu", "memory")
    state.note_cgroup(str(node.directory), map(str, made))
    assert node.cgroup_paths() == ["cpu", "memory"]
    made_anew(made[1])
    assert node.cgroup_paths() == ["cpu"]
    made_anew(made[0])
    assert node.cgroup_paths() == []
    node.save(cgroup_directories=[["memory", str(made[1])]])
    state.note_cgroup(str(node.directory), [str(made[1])])
    assert node.cgroup_paths() == ["memory"]


def test_an_earlier_version_has_noted_the_first_one_alone(node: Node) -> None:
    node.announce()
    made = node.make_cgroup("cpu", "memory")
    state.note_cgroup(str(node.directory), [str(made[0])])
    assert node.cgroup_paths() == ["cpu", "memory"]
    made_anew(made[0])
    assert node.cgroup_paths() == []


def test_one_that_was_not_noted_is_its_own_only_as_long_as_nobody_could_miss_it(node: Node) -> None:
    node.announce()
    made = node.make_cgroup("cpu", "memory")
    assert node.cgroup_paths() == ["cpu", "memory"]
    (made[1] / "cgroup.procs").write_text("1\n")
    assert node.cgroup_paths() == []
    (made[1] / "cgroup.procs").write_text("")
    (made[1] / "somebodys").mkdir()
    assert node.cgroup_paths() == []


def test_a_state_is_that_of_its_directory_whatever_id_stands_in_it(node: Node) -> None:
    (node.pod_directory / "c2").mkdir()
    assert node.save(id="c2").id == "c1"


# ---- resctrl -----------------------------------------------------------------------------------


def group(node: Node) -> str:
    found = group_of(node.pod, node.known(), ())
    return "" if found is None else os.path.relpath(found.path, node.resctrl)


def test_the_group_that_was_made_is_found_by_what_was_said_before(node: Node) -> None:
    node.announce(rdt=(f"{node.resctrl}/c1", True))
    assert group(node) == ""
    (node.resctrl / "c1").mkdir()
    assert group(node) == "c1"
    state.note_rdt(str(node.directory), str(node.resctrl / "c1"))
    node.save(terms={"rdt": [f"{node.resctrl}/c1", True]}, pid=2**22)
    assert group(node) == "c1"
    assert group_of(node.pod, node.known(), {f"{node.resctrl}/c1"}) is None


def test_a_group_that_was_made_anew_or_that_somebody_is_in_is_somebody_elses(node: Node) -> None:
    node.announce(rdt=(f"{node.resctrl}/c1", True))
    (node.resctrl / "c1").mkdir()
    (node.resctrl / "c1" / "tasks").write_text("1\n2\n")
    assert group(node) == ""
    state.note_rdt(str(node.directory), str(node.resctrl / "c1"))
    found = group_of(node.pod, node.known(), ())
    assert found is not None
    assert found.tasks == (1, 2)
    made_anew(node.resctrl / "c1")
    assert group(node) == ""


def test_of_a_shared_class_the_monitoring_group_alone_is_its_own(node: Node) -> None:
    (node.resctrl / "gold" / "mon_groups" / "c1").mkdir(parents=True)
    node.announce(rdt=(f"{node.resctrl}/gold", False))
    assert group(node) == ""
    node.announce(rdt=(f"{node.resctrl}/gold/mon_groups/c1", False))
    assert group(node) == "gold/mon_groups/c1"
    node.announce(rdt=(f"{node.resctrl}/c1/mon_groups/c1", True))
    (node.resctrl / "c1").mkdir()
    assert group(node) == "c1"
    (node.resctrl / "mon_groups" / "c1").mkdir(parents=True)
    node.announce(rdt=(f"{node.resctrl}/mon_groups/c1", False))
    assert group(node) == "mon_groups/c1"


@pytest.mark.parametrize(
    "path", ["", "/", "/..", "/.", "/info", "/mon_groups", "/a/b", "/../bundle", "/mon_groups/.."]
)
def test_a_place_that_could_be_no_group_is_none(node: Node, path: str) -> None:
    for name in ("info", "mon_groups", "a/b", "c1/mon_groups"):
        (node.resctrl / name).mkdir(parents=True, exist_ok=True)
    for ours in (True, False):
        node.announce(rdt=(f"{node.resctrl}{path}", ours))
        assert group_of(node.pod, node.known(), ()) is None
    node.announce(rdt=(f"{node.resctrl}/c1/mon_groups/..", False))
    assert group_of(node.pod, node.known(), ()) is None
    node.announce(rdt=(str(node.bundle), True))
    assert group_of(node.pod, node.known(), ()) is None


@pytest.mark.parametrize("said", [1, [1], ["/x"], [None, True], [["/x"], True], {"a": 1, "b": 2}])
def test_nonsense_is_no_group(node: Node, said: object) -> None:
    node.announce(rdt=said, root_on_host=said)
    assert group_of(node.pod, node.known(), ()) is None
    assert mounts_of(node.pod, node.known(), ledger.mounts(), ()).tops == ()
