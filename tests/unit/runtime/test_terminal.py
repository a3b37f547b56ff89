"""Terminals of a devpts that may be an attacker's, and their way to whoever asked for them."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import termios
from typing import TYPE_CHECKING, Any

import pytest

from runtime import terminal
from runtime.linux import constants as c
from runtime.linux.mount import MS_BIND, mount
from runtime.terminal import TerminalError
from tests.unit.runtime.forked import enter_user_namespace, in_child, needs_user_namespaces

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = needs_user_namespaces


def in_container(work: Callable[[], Any], devpts: bool = True) -> Any:
    """`work` as leader of a session of its own, with a /dev as containers have one."""

    def child() -> Any:
        enter_user_namespace(c.CLONE_NEWNS)
        os.setsid()
        mount("tmpfs", "/dev", "tmpfs", 0, "mode=755")
        if devpts:
            os.mkdir("/dev/pts")
            mount("devpts", "/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666,mode=0620")
        return work()

    return in_child(child)


def refusal(work: Callable[[], Any]) -> str:
    try:
        work()
    except (OSError, TerminalError) as error:
        return str(error)
    return "done"


def test_the_pty_is_the_containers_own_and_our_controlling_terminal() -> None:
    def work() -> list[Any]:
        master, slave = terminal.open_console(0, (24, 80))
        tty = os.open("/dev/pts/0", os.O_RDWR | os.O_NOCTTY)
        size = struct.unpack("4H", fcntl.ioctl(tty, termios.TIOCGWINSZ, b"\0" * 8))
        os.write(slave.fileno(), b"hello\n")
        return [
            os.read(master.fileno(), 100).decode(),
            size,
            os.tcgetpgrp(slave.fileno()) == os.getpgrp(),
            os.ttyname(slave.fileno()),
            os.get_inheritable(slave.fileno()),
            os.get_inheritable(master.fileno()),
        ]

    assert in_container(work) == ["hello\r\n", [24, 80, 0, 0], True, "/dev/pts/0", False, False]


def test_without_a_size_the_kernels_own_stays() -> None:
    def work() -> list[int]:
        master, _slave = terminal.open_console(0, None)
        return list(struct.unpack("4H", fcntl.ioctl(master.fileno(), termios.TIOCGWINSZ, b"\0" * 8)))

    assert in_container(work) == [0, 0, 0, 0]


def test_a_dev_pts_that_is_no_devpts_gives_no_terminal() -> None:
    def work() -> list[str]:
        os.mkdir("/dev/pts")
        os.mkfifo("/dev/pts/ptmx")
        return [refusal(lambda: terminal.open_console(0, None)), str(len(os.listdir("/proc/self/fd")))]

    before = len(os.listdir("/proc/self/fd"))
    message, fds = in_container(work, devpts=False)
    assert message == "/dev/pts is not a devpts: it gives no terminal"
    assert int(fds) <= before + 2  # the child's own pipe, and the directory being listed


def test_a_symlink_to_somebody_elses_devpts_is_not_followed() -> None:
    def work() -> str:
        os.mkdir("/dev/elsewhere")
        mount("devpts", "/dev/elsewhere", "devpts", 0, "newinstance,ptmxmode=0666")
        os.symlink("elsewhere", "/dev/pts")
        return refusal(lambda: terminal.open_console(0, None))

    assert "Too many levels of symbolic links" in in_container(work, devpts=False)


def test_what_is_mounted_over_ptmx_is_not_opened() -> None:
    def work() -> str:
        os.mkfifo("/dev/fifo")
        mount("/dev/fifo", "/dev/pts/ptmx", None, MS_BIND)
        return refusal(lambda: terminal.open_console(0, None))

    assert "Invalid cross-device link" in in_container(work)


def test_resize_is_seen_by_the_slave() -> None:
    def work() -> list[int]:
        master, slave = terminal.open_console(0, None)
        terminal.resize(master.fileno(), 50, 132)
        return list(struct.unpack("4H", fcntl.ioctl(slave.fileno(), termios.TIOCGWINSZ, b"\0" * 8)))[:2]

    assert in_container(work) == [50, 132]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has another owner to give it to")
def test_the_terminal_belongs_to_the_user() -> None:
    def work() -> int:
        os.setsid()
        return os.fstat(terminal.open_console(1000, None)[1].fileno()).st_uid

    assert in_child(work) == 1000


def test_a_user_who_is_not_mapped_leaves_it_as_it_is() -> None:
    assert in_container(lambda: os.fstat(terminal.open_console(1000, None)[1].fileno()).st_uid) == 0


# ---- /dev/console ------------------------------------------------------------------------------


def mounted_console() -> list[Any]:
    _master, slave = terminal.open_console(0, None)
    terminal.mount_console(slave.fileno())
    console, ours = os.stat("/dev/console"), os.fstat(slave.fileno())
    return [console.st_rdev == ours.st_rdev, stat.S_ISCHR(console.st_mode)]


def test_the_terminal_is_mounted_on_a_console_that_is_made() -> None:
    assert in_container(mounted_console) == [True, True]


def test_a_console_that_is_there_is_mounted_over() -> None:
    def work() -> list[Any]:
        with open("/dev/console", "w", encoding="ascii") as stream:
            stream.write("the image's")
        return mounted_console()

    assert in_container(work) == [True, True]


def test_a_console_that_is_a_symlink_is_refused_and_its_target_untouched(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")

    def work() -> list[str]:
        _master, slave = terminal.open_console(0, None)
        refusals = []
        for target in (str(canary), str(tmp_path / "new"), "/proc/sys/kernel/core_pattern"):
            os.symlink(target, "/dev/console")
            refusals.append(refusal(lambda: terminal.mount_console(slave.fileno())))
            os.unlink("/dev/console")
        return refusals

    assert ["neither a file nor a device" in message for message in in_container(work)] == [True] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["canary"]
    assert canary.read_text() == "alive"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_console_that_is_no_file_is_refused(make: Callable[[str], None]) -> None:
    def work() -> str:
        make("/dev/console")
        return refusal(mounted_console)

    assert "neither a file nor a device" in in_container(work)
