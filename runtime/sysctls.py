"""Sysctls of a container: which ones it may set, and writing them.

/proc/sys is only partly namespaced: a container may set what belongs to a namespace of its own and nothing
else (the list is runc's). They are written through a procfs that nobody has mounted anywhere: what an image
or a volume has put on /proc cannot catch them or send them elsewhere (CVE-2025-52881).
"""

from __future__ import annotations

import os

from runtime.errors import ConfigError, ManorError, describe
from runtime.linux import constants as c
from runtime.linux import mount as m
from runtime.linux.beneath import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    openat2,
)
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.linux.fds import OwnedFd
    from runtime.spec.model import Spec

_IPC = frozenset(
    f"kernel.{name}"
    for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)
_STRICT = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_PROC_ROOT_INODE = 1  # proc_ns.h: only the root of a procfs has it
_AT_FDCWD = -100


class SysctlError(ManorError):
    """A sysctl could not be written; names it and its value."""


class SysctlWrite(Record):
    """`value`, to be written to the file `path` below /proc."""

    name: str
    path: str
    value: str


def plan_sysctls(spec: Spec, network_is_host: bool | None = None) -> tuple[SysctlWrite, ...]:
    """The writes for `linux.sysctl`, in its order. ConfigError names the one that is not allowed.

    Whether a network namespace that is joined by path is the one we run in is looked up, unless
    `network_is_host` tells.
    """
    asked = spec.linux.sysctl
    if not asked:
        return ()
    namespaces = {namespace.type: namespace.path for namespace in spec.linux.namespaces}
    made = []
    for written, value in asked.items():
        where = f"linux.sysctl[{written[:100]!r}]"
        name = _with_dots(written)
        parts = name.split(".")
        if any(part in ("", "/") or part.startswith("/") for part in parts) or ".." in name.split("/"):
            raise ConfigError(where, "is not a name of a sysctl")
        if any(bad in value for bad in "\n\r+\0") or any(bad in written for bad in "\n\r\0 "):
            raise ConfigError(
                where, "a newline, a blank in the name or a plus sign in the value is not allowed"
            )
        _check_allowed(where, name, namespaces, network_is_host)
        path = "/".join(part.replace("/", ".") for part in parts)
        made.append(SysctlWrite(name=name, path=f"sys/{path}", value=value))
    return tuple(made)


def _with_dots(name: str) -> str:
    """sysctl.d(5): where the first separator is a slash, slashes separate and dots belong to names."""
    slash, dot = name.find("/"), name.find(".")
    if slash < 0 or 0 <= dot < slash:
        return name
    return name.translate({ord("/"): ".", ord("."): "/"})


def _check_allowed(
    where: str, name: str, namespaces: dict[str, str | None], network_is_host: bool | None
) -> None:
    if name in _IPC or name.startswith("fs.mqueue."):
        if "ipc" not in namespaces:
            raise ConfigError(where, "is not allowed in the host's IPC namespace")
    elif name.startswith("net."):
        if "network" not in namespaces or _is_host_network(namespaces["network"], network_is_host):
            raise ConfigError(where, "is not allowed in the host's network namespace")
    elif name == "kernel.domainname" and "uts" in namespaces:
        pass
    elif name == "kernel.hostname" and "uts" in namespaces:
        raise ConfigError(where, "is not allowed: the field hostname is for that")
    elif name.startswith("user."):
        if "user" not in namespaces:
            raise ConfigError(where, "is not allowed without a user namespace of the container's own")
    else:
        raise ConfigError(where, "does not belong to a namespace of the container's own")


def _is_host_network(path: str | None, known: bool | None) -> bool:
    if known is not None:
        return known
    if path is None:
        return False
    try:
        return os.path.samestat(os.stat(path), os.stat("/proc/self/ns/net"))
    except OSError as error:
        raise ConfigError("linux.namespaces", f"network namespace {describe(error)}") from error


def apply_sysctls(writes: tuple[SysctlWrite, ...]) -> None:
    """Write them, in the namespaces of the container. SysctlError names the first that the kernel refuses."""
    if not writes:
        return
    with _trusted_procfs() as procfs:
        for write in writes:
            try:
                with openat2(procfs.fileno(), write.path, os.O_WRONLY, _STRICT) as file:
                    os.write(file.fileno(), os.fsencode(write.value))
            except OSError as error:
                cause = error.strerror or "failed"
                raise SysctlError(f"sysctl {write.name} = {write.value!r}: {cause}") from error


def _trusted_procfs() -> OwnedFd:
    """A procfs of our PID namespace that is mounted nowhere; in a user namespace that cannot, /proc, verified."""
    try:
        with m.fsopen("proc") as context:
            m.fsconfig_create(context.fileno())
            return m.fsmount(context.fileno(), m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC)
    except PermissionError:
        pass
    found = openat2(_AT_FDCWD, "/proc", os.O_PATH | os.O_DIRECTORY, RESOLVE_NO_SYMLINKS)
    if (
        m.filesystem_magic(found.fileno()) != c.PROC_SUPER_MAGIC
        or os.fstat(found.fileno()).st_ino != _PROC_ROOT_INODE
    ):
        found.close()
        raise SysctlError("/proc is not a procfs: sysctls cannot be written safely")
    return found
