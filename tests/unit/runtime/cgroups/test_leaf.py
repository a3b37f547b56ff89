"""A cgroup for one exec, with plain directories in the place of cgroups: rmdir(2) takes the empty ones of both."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.cgroups import leaf as leaves
from runtime.cgroups.layout import Hierarchy
from runtime.cgroups.leaf import CpuTime, Leaf, make_leaf
from runtime.linux.fds import OwnedFd
from tests.harness.processes import descriptors


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[tuple[Hierarchy, OwnedFd, Path]]:
    """A container's cgroup, open; no descriptor may be left."""
    before = descriptors()
    path = tmp_path / "pod" / "c1"
    path.mkdir(parents=True)
    (path / "cgroup.subtree_control").write_text("\n")
    with OwnedFd(os.open(path, os.O_PATH | os.O_DIRECTORY)) as directory:
        yield Hierarchy("unified", (), str(tmp_path), 2), directory, path
    assert not descriptors() - before


Parent = tuple[Hierarchy, OwnedFd, Path]


def made(parent: Parent) -> Leaf:
    hierarchy, directory, _path = parent
    leaf = make_leaf(hierarchy, "pod/c1", directory)
    assert leaf is not None
    return leaf


def below(parent: Parent) -> list[str]:
    return sorted(path.name for path in parent[2].iterdir() if path.is_dir())


def test_it_is_made_below_the_container_and_removed(parent: Parent) -> None:
    leaf = made(parent)
    assert below(parent) == [leaf.name]
    assert leaf.remove()
    assert below(parent) == []
    assert leaf.remove()  # by somebody else, it may have been
    leaf.close()


def test_a_name_that_is_taken_is_left_to_whoever_has_it(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter([b"aaaa", b"aaaa", b"bbbb"])
    monkeypatch.setattr(os, "urandom", lambda _count: next(names))
    (parent[2] / f"exec-{b'aaaa'.hex()}").mkdir()
    leaf = made(parent)
    assert leaf.name == f"exec-{b'bbbb'.hex()}"
    leaf.discard()
    assert below(parent) == [f"exec-{b'aaaa'.hex()}"]


def test_a_container_that_hands_controllers_down_has_none(parent: Parent) -> None:
    hierarchy, directory, path = parent
    (path / "cgroup.subtree_control").write_text("pids\n")
    assert make_leaf(hierarchy, "pod/c1", directory) is None
    assert below(parent) == []


def test_a_container_that_is_gone_has_none(parent: Parent) -> None:
    hierarchy, directory, path = parent
    (path / "cgroup.subtree_control").unlink()
    path.rmdir()
    assert make_leaf(hierarchy, "pod/c1", directory) is None


def test_one_that_cannot_be_opened_is_not_left(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    hierarchy, directory, _path = parent
    really = os.open

    def opened(name: str, *about: int, dir_fd: int | None = None) -> int:
        if name.startswith("exec-"):
            raise OSError(errno.EMFILE, "")
        return really(name, *about, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", opened)
    assert make_leaf(hierarchy, "pod/c1", directory) is None
    monkeypatch.undo()
    assert below(parent) == []


def test_who_has_taken_its_name_is_not_killed_for_it(parent: Parent) -> None:
    leaf = made(parent)
    place = parent[2] / leaf.name
    place.rmdir()
    place.mkdir()
    (place / "cgroup.kill").write_text("")
    assert not leaf.kill()
    assert (place / "cgroup.kill").read_text() == ""
    assert leaf.remove()  # the stranger is in use, and not ours to wait for
    assert place.exists()
    leaf.close()


def test_a_kill_goes_to_all_at_once(parent: Parent) -> None:
    leaf = made(parent)
    (parent[2] / leaf.name / "cgroup.kill").write_text("")
    assert leaf.kill()
    assert (parent[2] / leaf.name / "cgroup.kill").read_text() == "1"
    leaf.close()


def test_before_cgroup_kill_they_are_listed(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[str, ...], int]] = []
    monkeypatch.setattr(leaves, "signal_members", lambda places, number: asked.append((places, number)))
    leaf = made(parent)
    (parent[2] / leaf.name / "cgroup.procs").touch()
    leaf.kill()
    assert asked == [((str(parent[2] / leaf.name),), 9)]
    leaf.close()


@pytest.mark.parametrize(
    ("where", "inside"),
    [
        ("{leaf}", True),
        ("{leaf}/made/below", True),
        ("{leaf}2", False),
        ("", False),
        ("/elsewhere", False),
    ],
)
def test_who_is_in_it(parent: Parent, monkeypatch: pytest.MonkeyPatch, where: str, inside: bool) -> None:
    leaf = made(parent)
    text = f"1:name=systemd:/pod/c1/{leaf.name}\n0::/pod/c1{where.format(leaf=f'/{leaf.name}')}\n"
    monkeypatch.setattr(leaves, "read_file", lambda _file: text)
    assert leaf.holds(1) is inside
    leaf.close()


def test_a_process_that_is_gone_is_in_none(parent: Parent) -> None:
    leaf = made(parent)
    assert not leaf.holds(1 << 30)
    leaf.close()


def test_what_it_has_used(parent: Parent) -> None:
    leaf = made(parent)
    file = parent[2] / leaf.name / "cpu.stat"
    file.write_text("usage_usec 30\nuser_usec 10\nsystem_usec 20\nnice_usec 0\n")
    assert leaf.cpu_time() == CpuTime(30, 10, 20)
    file.unlink()
    assert leaf.cpu_time() is None
    leaf.close()


def test_whether_somebody_is_in_it(parent: Parent) -> None:
    leaf = made(parent)
    file = parent[2] / leaf.name / "cgroup.events"
    for text, populated in (("populated 1\nfrozen 0\n", True), ("populated 0\nfrozen 0\n", False)):
        file.write_text(text)
        assert leaf.populated() is populated
        with leaf.open_events() as events:
            assert [leaf.populated(events), leaf.populated(events)] == [populated] * 2
    file.unlink()
    assert not leaf.populated()
    leaf.close()
