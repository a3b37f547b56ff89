"""Paths below a root that its contents may try to leave. Against the real kernel, without privileges."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.linux.beneath import Root
from runtime.linux.fds import OwnedFd
from tests.harness.processes import descriptors

LOOP = os.strerror(errno.ELOOP)


class Tree:
    """A root to work in, and beside it what must not be reached."""

    def __init__(self, directory: Path) -> None:
        self.inside = directory / "root"
        self.outside = directory / "outside"
        self.inside.mkdir()
        self.outside.mkdir()
        (self.outside / "secret").write_text("x")
        self.root = Root(OwnedFd(os.open(self.inside, os.O_PATH)))

    def place(self, fd: OwnedFd) -> str:
        """Where a descriptor is, seen from the root; it is closed."""
        with fd:
            return os.readlink(f"/proc/self/fd/{fd.fileno()}").removeprefix(str(self.inside))

    def escaped(self) -> bool:
        return [entry.name for entry in self.outside.iterdir()] != ["secret"]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    made = Tree(tmp_path)
    before = descriptors()
    yield made
    assert not descriptors() - before, "a descriptor was left open"
    made.root.close()
    assert not made.escaped()


@pytest.mark.parametrize("target", ["{outside}", "../../../../../../../..{outside}", "/../..{outside}"])
def test_a_symlink_to_the_outside_is_resolved_inside(tree: Tree, target: str) -> None:
    (tree.inside / "link").symlink_to(target.format(outside=tree.outside))
    with pytest.raises(FileNotFoundError):
        tree.root.open("/link/secret")
    assert tree.place(tree.root.make_directories("/link/made")) == f"{tree.outside}/made"
    assert tree.place(tree.root.make_file("/link/secret")) == f"{tree.outside}/secret"


def test_missing_directories_are_made_with_their_mode(tree: Tree) -> None:
    before = os.umask(0)
    try:
        assert tree.place(tree.root.make_directories("/a/b/c", 0o751)) == "/a/b/c"
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tree.inside / name).stat().st_mode) for name in ("a", "a/b", "a/b/c")] == [
        0o751
    ] * 3
    assert tree.place(tree.root.make_directories("/a/b/c")) == "/a/b/c"
    assert tree.place(tree.root.make_directories("/a/b/../x/./y/")) == "/a/x/y"
    assert tree.place(tree.root.make_directories("/")) == ""
    assert tree.place(tree.root.make_directories("/../../up")) == "/up"


def test_what_a_dangling_symlink_points_to_is_made(tree: Tree) -> None:
    (tree.inside / "var").mkdir()
    (tree.inside / "var/run").symlink_to("/run")
    (tree.inside / "etc-hosts").symlink_to("etc/hosts")
    assert tree.place(tree.root.make_directories("/var/run/secrets")) == "/run/secrets"
    assert tree.place(tree.root.make_file("/etc-hosts")) == "/etc/hosts"
    assert (tree.inside / "etc/hosts").read_text() == ""


def test_a_file_that_is_there_stays_as_it_is(tree: Tree) -> None:
    (tree.inside / "file").write_text("content")
    assert tree.place(tree.root.make_file("/file")) == "/file"
    assert (tree.inside / "file").read_text() == "content"


def test_a_parent_is_made_and_a_symlink_in_the_last_place_is_followed(tree: Tree) -> None:
    (tree.inside / "link").symlink_to("/new/name")
    parent, name = tree.root.make_parent("/link")
    assert (tree.place(parent), name) == ("/new", "name")
    with pytest.raises(OSError, match="no parent") as caught:
        tree.root.make_parent("/a/..")
    assert caught.value.errno == errno.EINVAL


def test_a_symlink_loop_ends(tree: Tree) -> None:
    (tree.inside / "loop").symlink_to("loop")
    (tree.inside / "one").symlink_to("two/x")
    (tree.inside / "two").symlink_to("one")
    for name in ("loop/x", "loop", "one", "two/y"):
        for function in (tree.root.open, tree.root.make_directories, tree.root.make_file):
            with pytest.raises(OSError, match=LOOP):
                function(name)


def test_something_else_in_the_way_is_an_error(tree: Tree) -> None:
    (tree.inside / "file").write_text("")
    os.mkfifo(tree.inside / "fifo")
    for name in ("file/x", "fifo/x", "file"):
        with pytest.raises(NotADirectoryError):
            tree.root.make_directories(name)
    with pytest.raises(NotADirectoryError):
        tree.root.make_file("file/x")


def test_plain_paths_allow_no_symlink_anywhere(tree: Tree) -> None:
    (tree.inside / "dir").mkdir()
    (tree.inside / "link").symlink_to("dir")
    assert tree.place(tree.root.open_plain("/dir")) == "/dir"
    for name in ("/link", "/link/.", "link"):
        with pytest.raises(OSError, match=LOOP):
            tree.root.open_plain(name)
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
        tree.root.open_plain("dir/../../outside")


def test_magic_links_are_refused() -> None:
    root = Root(OwnedFd(os.open("/", os.O_PATH)))
    try:
        with pytest.raises(OSError, match=LOOP):
            root.open("/proc/self/root/etc")
    finally:
        root.close()


def test_what_is_opened_is_close_on_exec(tree: Tree) -> None:
    (tree.inside / "file").write_text("")
    with (
        tree.root.make_directories("/d") as made,
        tree.root.make_file("/f") as file,
        tree.root.open("/file") as found,
    ):
        assert not any(os.get_inheritable(fd.fileno()) for fd in (made, file, found))


def test_a_swap_between_look_and_touch_does_not_lead_out(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst moment: the guess is made, and then a part of it becomes a symlink to the outside."""
    (tree.inside / "vol").mkdir()
    resolve = Root._resolve

    def swap(root: Root, path: str) -> list[str]:
        names = resolve(root, path)
        (tree.inside / "vol").rmdir()
        (tree.inside / "vol").symlink_to(tree.outside)
        return names

    monkeypatch.setattr(Root, "_resolve", swap)
    with pytest.raises(OSError, match=LOOP):
        tree.root.make_directories("/vol/a/b")
