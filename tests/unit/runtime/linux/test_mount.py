"""The mount system calls, in a user namespace of the test's own: no privilege is needed, nothing is left."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.linux import constants as c
from runtime.linux import mount as m
from runtime.linux.fds import OwnedFd
from runtime.linux.process import unshare
from tests.harness.mountinfo import mounts_of
from tests.unit.runtime.forked import enter_user_namespace, in_child, needs_user_namespaces

if TYPE_CHECKING:
    from collections.abc import Callable

AT_FDCWD = -100
pytestmark = needs_user_namespaces


def in_mount_namespace(work: Any) -> Any:
    """What `work` returns from a child with a user and a mount namespace of its own."""

    def child() -> Any:
        enter_user_namespace(c.CLONE_NEWNS)
        return work()

    return in_child(child)


def test_a_new_file_system_is_made_detached_and_moved_to_its_place(tmp_path: Path) -> None:
    def work() -> list[Any]:
        with m.fsopen("tmpfs") as context:
            m.fsconfig_set(context.fileno(), "source", "name")
            m.fsconfig_set(context.fileno(), "size", "1m")
            m.fsconfig_create(context.fileno())
            mount = m.fsmount(context.fileno(), m.MOUNT_ATTR_NOSUID)
        target = os.open(tmp_path, os.O_PATH)
        with mount:
            made = m.filesystem_magic(mount.fileno())
            before = m.filesystem_magic(target)
            m.move_mount(mount.fileno(), target)
            m.mount_setattr(mount.fileno(), set_=m.MOUNT_ATTR_RDONLY, propagation=m.MS_SHARED)
        line = mounts_of(tmp_path)[0]
        m.umount2(str(tmp_path), m.MNT_DETACH)
        options = sorted(line.split()[5].split(","))
        return [
            made == c.TMPFS_MAGIC,
            before != made,
            options,
            "shared" in line,
            line.split(" - ")[1].split()[1],
        ]

    assert in_mount_namespace(work) == [True, True, ["nosuid", "relatime", "ro"], True, "name"]


def test_the_kernels_reason_can_be_read_once() -> None:
    def work() -> list[str]:
        with m.fsopen("tmpfs") as context:
            try:
                m.fsconfig_set(context.fileno(), "size", "lots")
            except OSError as error:
                return [
                    os.strerror(error.errno or 0),
                    m.fs_message(context.fileno()),
                    m.fs_message(context.fileno()),
                ]
        return []

    assert in_mount_namespace(work) == ["Invalid argument", "tmpfs: Bad value for 'size'", ""]


def test_errors_name_the_call_and_the_path() -> None:
    def work() -> list[Any]:
        found = []
        for call in (
            lambda: m.clone_tree(AT_FDCWD, "/no/such"),
            lambda: m.umount2("/no/such"),
            lambda: m.mount("none", "/no/such", "tmpfs", 0),
            lambda: m.fsopen("nofs"),
            lambda: m.mount_setattr(AT_FDCWD, path="/no/such", set_=m.MOUNT_ATTR_RDONLY),
        ):
            try:
                call()
            except OSError as error:
                found.append([error.errno, (error.strerror or "").split(":")[0], error.filename])
        return found

    assert in_mount_namespace(work) == [
        [errno.ENOENT, "open_tree", "/no/such"],
        [errno.ENOENT, "umount2", "/no/such"],
        [errno.ENOENT, "mount", "/no/such"],
        [errno.ENODEV, "fsopen", "nofs"],
        [errno.ENOENT, "mount_setattr", "/no/such"],
    ]


def test_descriptors_of_mounts_are_close_on_exec() -> None:
    def work() -> list[bool]:
        with m.clone_tree(AT_FDCWD, "/proc", recursive=True) as tree, m.fsopen("tmpfs") as context:
            m.fsconfig_create(context.fileno())
            with m.fsmount(context.fileno()) as mount:
                return [os.get_inheritable(fd.fileno()) for fd in (tree, context, mount)]

    assert in_mount_namespace(work) == [False, False, False]


def test_procfs_is_told_by_its_magic() -> None:
    fd = os.open("/proc", os.O_PATH)
    try:
        assert m.filesystem_magic(fd) == c.PROC_SUPER_MAGIC
    finally:
        os.close(fd)


def test_a_detached_mount_is_id_mapped_through_a_user_namespace(tmp_path: Path) -> None:
    def work() -> list[bool]:
        with m.fsopen("tmpfs") as context:
            m.fsconfig_create(context.fileno())
            mount = m.fsmount(context.fileno())
        started, finished = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:
            unshare(c.CLONE_NEWUSER)
            os.write(started[1], b"x")
            os.read(finished[0], 1)
            os._exit(0)
        os.read(started[0], 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text("0 0 1")
        with mount, OwnedFd(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)) as namespace:
            m.map_ids(mount.fileno(), namespace.fileno())
            m.move_mount(mount.fileno(), os.open(tmp_path, os.O_PATH))
            refused = refuses(lambda: m.map_ids(mount.fileno(), namespace.fileno()))
        os.write(finished[1], b"x")
        os.waitpid(pid, 0)
        (line,) = mounts_of(tmp_path)
        return ["idmapped" in line.split()[5].split(","), refused]

    assert in_mount_namespace(work) == [True, True]


def refuses(act: Callable[[], None]) -> bool:
    try:
        act()
    except PermissionError:
        return True  # EPERM: it is mapped already
    return False


def test_a_mount_point_is_told_from_a_directory_and_from_a_symlink_to_one(tmp_path: Path) -> None:
    for name in ("tmpfs", "bound", "plain"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("tmpfs")

    def work() -> list[bool]:
        m.mount("", "/", None, m.MS_PRIVATE | m.MS_REC)
        m.mount("x", str(tmp_path / "tmpfs"), "tmpfs", 0)
        m.mount(str(tmp_path / "plain"), str(tmp_path / "bound"), None, m.MS_BIND)  # of the same file system
        (tmp_path / "tmpfs" / "inner").mkdir()
        names = ("tmpfs", "bound", "plain", "link", "tmpfs/inner")
        return [m.is_mount_point(str(tmp_path / name)) for name in names]

    assert in_mount_namespace(work) == [True, True, False, False, False]
