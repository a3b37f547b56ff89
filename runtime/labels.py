"""AppArmor profile and SELinux label of a process, set for its next execve; and its session keyring.

All writes go to our own task's `attr` directory in a procfs that is one: what an image or a volume has put
at /proc must not swallow a label (CVE-2019-16884, CVE-2025-52881). A label that is asked for and cannot be
set is an error, never a process without it. Labels of mounts are `runtime/rootfs`' business.
"""

from __future__ import annotations

import errno
import os

from runtime.errors import ManorError, Unsupported
from runtime.linux import constants as c
from runtime.linux import keyring
from runtime.linux.beneath import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from runtime.linux.fds import OwnedFd
from runtime.linux.mount import filesystem_magic, fsconfig_create, fsmount, fsopen

_SELINUX_MAGIC = 0xF97CFF8C
_PROC_ROOT_INODE = 1


class LabelError(ManorError):
    """A label could not be set; names it."""


# ---- in stage 0, where the host's files are ----------------------------------------------------


def require_available(apparmor_profile: str | None, selinux_label: str | None) -> None:
    """Unsupported when a label is asked for whose security module this machine does not run."""
    if apparmor_profile and not apparmor_enabled():
        raise Unsupported(
            f"AppArmor profile {apparmor_profile[:300]!r} is asked for, but AppArmor is not enabled"
        )
    if selinux_label and not selinux_enabled():
        raise Unsupported(f"SELinux label {selinux_label[:300]!r} is asked for, but SELinux is not enabled")


def apparmor_enabled(parameter: str = "/sys/module/apparmor/parameters/enabled") -> bool:
    """Whether the kernel says that AppArmor is on."""
    try:
        fd = os.open(parameter, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.read(fd, 1) == b"Y"
    finally:
        os.close(fd)


def selinux_enabled(selinuxfs: str = "/sys/fs/selinux") -> bool:
    """Whether SELinux's own file system is mounted at its place, which it is where a policy is loaded."""
    try:
        with OwnedFd(os.open(selinuxfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            return filesystem_magic(fd.fileno()) == _SELINUX_MAGIC
    except OSError:
        return False


# ---- in stage 2 --------------------------------------------------------------------------------


def apply(apparmor_profile: str | None, selinux_label: str | None) -> None:
    """Have our next execve run under `apparmor_profile` or with `selinux_label`; LabelError if that fails.

    Without either nothing is opened. It takes CAP_SYS_ADMIN to get a procfs of our own; where a user
    namespace may not have one, the /proc that is there is checked instead.
    """
    if not (apparmor_profile or selinux_label):
        return
    with _own_task() as task:
        if selinux_label:
            _write_attribute(task, ("exec",), selinux_label, f"SELinux label {selinux_label}")
        if apparmor_profile:
            # attr/exec belongs to the first security module there is; AppArmor has its own since Linux 5.8.
            names = ("apparmor/exec", "exec")
            _write_attribute(task, names, f"exec {apparmor_profile}", f"AppArmor profile {apparmor_profile}")


def _own_task() -> OwnedFd:
    """Our task's directory in a procfs that nobody can have prepared for us."""
    with _procfs() as procfs:
        # thread-self is a symlink, but an ordinary one inside the procfs.
        return openat2(procfs.fileno(), "thread-self", os.O_PATH | os.O_DIRECTORY, RESOLVE_BENEATH)


def _procfs() -> OwnedFd:
    try:
        with fsopen("proc") as context:
            fsconfig_create(context.fileno())
            return fsmount(context.fileno())
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS):
            raise LabelError(f"mount a procfs for labels: {os.strerror(error.errno or 0)}") from error
    procfs = OwnedFd(os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
    status = os.fstat(procfs.fileno())
    if filesystem_magic(procfs.fileno()) != c.PROC_SUPER_MAGIC or status.st_ino != _PROC_ROOT_INODE:
        procfs.close()
        raise LabelError("set a label: what is mounted at /proc is not a procfs")
    return procfs


def _write_attribute(task: OwnedFd, names: tuple[str, ...], value: str, subject: str) -> None:
    resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS  # nothing mounted over it either
    for index, name in enumerate(names):
        try:
            with openat2(task.fileno(), f"attr/{name}", os.O_WRONLY, resolve) as attribute:
                if filesystem_magic(attribute.fileno()) != c.PROC_SUPER_MAGIC:
                    raise LabelError(f"set {subject}: attr/{name} is not procfs's")
                os.write(attribute.fileno(), value.encode())
                return
        except OSError as error:
            is_missing = isinstance(error, FileNotFoundError) and error.filename is not None
            if is_missing and index + 1 < len(names):
                continue
            cause = os.strerror(error.errno or 0)
            if error.errno == errno.ENOENT and not is_missing:
                cause = "it is not loaded"  # the write's answer, not the open's
            raise LabelError(f"set {subject}: {cause}") from error


# ---- the session keyring -----------------------------------------------------------------------


def make_session_keyring(container_id: str, in_user_namespace: bool, selinux_label: str | None) -> None:
    """For a landlord: leave the runtime's session keyring for one of the container's, which tenants may join.

    To be called as root of the container's user namespace, as the tenants do. Without keys in the kernel
    there is nothing to protect and nothing is done. LabelError otherwise.
    """
    serial = _join(container_id, selinux_label)
    if not serial:
        return
    search = keyring.KEY_USR_SEARCH
    if in_user_namespace:  # as runc has it: a tenant may come with an id that has no place in there
        search |= keyring.KEY_OTH_SEARCH
    try:
        keyring.set_permissions(serial, keyring.permissions(serial) | search)
    except OSError as error:
        cause = os.strerror(error.errno or 0)
        raise LabelError(f"set permissions of the session keyring of {container_id}: {cause}") from error


def join_session_keyring(container_id: str, selinux_label: str | None) -> None:
    """For a tenant: take the session keyring that its landlord has made."""
    _join(container_id, selinux_label)


def _join(container_id: str, selinux_label: str | None) -> int:
    """Its serial number; 0 if there was nothing to do."""
    if selinux_label:  # keys made from here on, this keyring too
        with _own_task() as task:
            _write_attribute(task, ("keycreate",), selinux_label, f"SELinux key label {selinux_label}")
    try:
        return keyring.join_session_keyring(f"_ses.{container_id}")
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return 0
        cause = os.strerror(error.errno or 0)
        raise LabelError(f"join session keyring of {container_id}: {cause}") from error
