"""A container's terminal: a pty of its own devpts, found and checked through file descriptors.

Nothing in the container's /dev is taken at its word: it may be a symlink into /proc, or a file system that
only looks right (CVE-2025-52565). Moving bytes to and from the master is the shim's business.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import termios

from runtime.errors import ManorError
from runtime.linux import constants as c
from runtime.linux.beneath import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from runtime.linux.fds import OwnedFd
from runtime.linux.mount import clone_tree, filesystem_magic, move_mount

_TIOCGPTPEER = 0x5441  # asm-generic/ioctls.h; Linux 4.13
_TIOCSPTLCK = 0x40045431
_PTMX = os.makedev(5, 2)
_PTY_MAJORS = range(136, 144)
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_CURRENT_DIRECTORY = -100  # AT_FDCWD


class TerminalError(ManorError):
    """The container's /dev/pts or /dev/console is not what it must be."""


def open_console(uid: int, size: tuple[int, int] | None, control: bool = True) -> tuple[OwnedFd, OwnedFd]:
    """A new pty as (master, slave), the slave ours as controlling terminal and owned by `uid`.

    `size` is (rows, columns). For a session leader without a terminal, inside the container's root. Who makes it for
    another process leaves it to that to take `control`.
    OSError or TerminalError where /dev/pts is no devpts. Both ends are close-on-exec.
    """
    master = _open_master()
    try:
        slave = _open_slave(master)
    except BaseException:
        master.close()
        raise
    try:
        if size is not None:
            resize(master.fileno(), *size)
        _give_to(slave, uid)
        if control:
            take_control(slave)
    except BaseException:
        master.close()
        slave.close()
        raise
    return master, slave


def take_control(slave: OwnedFd) -> None:
    """Make it our controlling terminal; for a session leader without one."""
    fcntl.ioctl(slave.fileno(), termios.TIOCSCTTY, 0)


def resize(fd: int, rows: int, columns: int) -> None:
    """TIOCSWINSZ on either end of a pty; its foreground process group gets SIGWINCH."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


def _open_master() -> OwnedFd:
    """Open ptmx of the devpts at /dev/pts: by its name in a directory that is known to be one, never by a link."""
    with openat2(_CURRENT_DIRECTORY, "/dev/pts", _DIRECTORY, RESOLVE_NO_SYMLINKS) as devpts:
        if filesystem_magic(devpts.fileno()) != c.DEVPTS_SUPER_MAGIC:
            raise TerminalError("/dev/pts is not a devpts: it gives no terminal")
        # NO_XDEV: nor anything that is mounted over it.
        resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS
        master = openat2(devpts.fileno(), "ptmx", os.O_RDWR | os.O_NOCTTY, resolve)
    status = os.fstat(master.fileno())
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _PTMX:
        master.close()
        raise TerminalError("/dev/pts/ptmx is not the device it must be")
    return master


def _open_slave(master: OwnedFd) -> OwnedFd:
    """The other end by TIOCGPTPEER: a path such as /dev/pts/0 could lead anywhere by now."""
    fcntl.ioctl(master.fileno(), _TIOCSPTLCK, struct.pack("i", 0))
    slave = OwnedFd(fcntl.ioctl(master.fileno(), _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    status = os.fstat(slave.fileno())
    if not stat.S_ISCHR(status.st_mode) or os.major(status.st_rdev) not in _PTY_MAJORS:
        slave.close()
        raise TerminalError("the peer of /dev/pts/ptmx is not a terminal")
    return slave


def _give_to(slave: OwnedFd, uid: int) -> None:
    """Let `uid` open its own terminal; the group stays as the mount option gid= of devpts has set it."""
    try:
        os.fchown(slave.fileno(), uid, -1)
    except OSError as error:
        # Not mapped in our user namespace, or a read-only devpts: the descriptor works all the same.
        if error.errno not in (errno.EINVAL, errno.EPERM, errno.EROFS):
            raise


def mount_console(slave: int) -> None:
    """Bind the terminal `slave` onto /dev/console, for a container's init.

    To be called when everything else is mounted and masked. A missing /dev/console becomes an empty file
    to mount on; anything but a file or a device in its place, a symlink above all, is refused.
    """
    with _console_target() as target, clone_tree(slave) as console:
        move_mount(console.fileno(), target.fileno())


def _console_target() -> OwnedFd:
    """An O_PATH descriptor of /dev/console, which is made where it is missing."""
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
    with openat2(_CURRENT_DIRECTORY, "/dev", _DIRECTORY, RESOLVE_NO_SYMLINKS) as dev:
        try:
            target = openat2(dev.fileno(), "console", os.O_PATH | os.O_NOFOLLOW, resolve)
        except FileNotFoundError:
            flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDONLY
            target = openat2(dev.fileno(), "console", flags, resolve, 0o620)
    mode = os.fstat(target.fileno()).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
        target.close()
        raise TerminalError("/dev/console is neither a file nor a device: no terminal is mounted on it")
    return target
