"""The id maps of a new user namespace: checked and laid out beforehand, written by stage 0 on request.

A privileged caller writes any map. Anybody else may write one line for its own id, and needs newuidmap and
newgidmap (which know /etc/subuid and /etc/subgid) for more. user_namespaces(7) has all the rules.
"""

from __future__ import annotations

import os
import stat

from runtime.errors import ConfigError, ManorError
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.spec.model import IdMapping, Spec
    from runtime.waiting import Operation

_MAX_LINES = 340  # Linux 4.15
_MAX_BYTES = 4095  # the kernel takes less than a page, in one write
_ID_COUNT = 2**32 - 1  # the last id stands for "none"
_DIRECTORIES = ("/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/run/wrappers/bin")


class MappingError(ManorError):
    """The kernel, or newuidmap or newgidmap, did not accept a map."""


class Caller(Record):
    """Who writes the maps, if that is not a privileged user: its ids outside."""

    uid: int
    gid: int


def caller() -> Caller | None:
    """Us, where we are not root."""
    return None if os.geteuid() == 0 else Caller(os.geteuid(), os.getegid())


def groups_are_denied(own: Caller | None, setgroups: str = "/proc/self/setgroups") -> bool:
    """Whether what we start may not set its groups: nobody's may who is not root, with runc, nor where the kernel has
    denied it to the user namespace that we are in, which those below it inherit (user_namespaces(7)).
    """
    if own is not None:
        return True
    try:
        with open(setgroups, "rb") as stream:
            return stream.read(16).strip() == b"deny"
    except OSError:
        return False  # a kernel without user namespaces


def check_rootless(spec: Spec) -> None:
    """ConfigError for what `spec` asks of who is not root and cannot give it; the rules are runc's. Pure."""
    linux = spec.linux
    if all(namespace.type != "user" for namespace in linux.namespaces):
        raise ConfigError("linux.namespaces", "who is not root needs a user namespace")
    if linux.net_devices:
        raise ConfigError("linux.netDevices", "only root can move network devices")
    if spec.process.user.additional_gids:
        raise ConfigError("process.user.additionalGids", "who is not root cannot set additional groups")
    mappings = {"uid": linux.uid_mappings, "gid": linux.gid_mappings}
    for index, mount in enumerate(spec.mounts):
        if mount.uid_mappings or mount.gid_mappings:
            raise ConfigError(f"mounts[{index}].uidMappings", "only root can map the ids of a mount")
        for option in mount.options:
            kind, _, number = option.partition("=")
            if kind in mappings and number.isdecimal() and not _is_mapped(mappings[kind], int(number)):
                raise ConfigError(f"mounts[{index}].options", f"{option}: not mapped in the user namespace")


def _is_mapped(mappings: tuple[IdMapping, ...], inside: int) -> bool:
    # None are given for a namespace that is joined by path: it has its own, and the kernel knows them.
    return not mappings or any(0 <= inside - each.container_id < each.size for each in mappings)


class UserMapping(Record):
    """Maps in the kernel's format, and what an unprivileged caller needs to get them written.

    `deny_setgroups`: setgroups(2) must be given up in the namespace first, or the kernel refuses the gid
    map (CVE-2014-8989): a group could be dropped that denies something. `tools`: the map's file and the
    program that can write it.
    """

    uid_map: str
    gid_map: str
    deny_setgroups: bool = False
    tools: tuple[tuple[str, str], ...] = ()


def plan_mapping(
    uid_mappings: tuple[IdMapping, ...], gid_mappings: tuple[IdMapping, ...], caller: Caller | None = None
) -> UserMapping:
    """The maps for `linux.uidMappings` and `linux.gidMappings`; `caller` for an unprivileged one. Pure.

    ConfigError for maps that the kernel would refuse, and for one without id 0, which sets up the container.
    """
    uid_map = _layout("linux.uidMappings", uid_mappings)
    gid_map = _layout("linux.gidMappings", gid_mappings)
    if caller is None:
        return UserMapping(uid_map, gid_map)
    tools = []
    if not _is_own_id(uid_mappings, caller.uid):
        tools.append(("uid_map", "newuidmap"))
    own_gid = _is_own_id(gid_mappings, caller.gid)
    if not own_gid:
        tools.append(("gid_map", "newgidmap"))
    return UserMapping(uid_map, gid_map, own_gid, tuple(tools))


def _layout(path: str, mappings: tuple[IdMapping, ...]) -> str:
    if not mappings:
        raise ConfigError(path, "a new user namespace needs it")
    if len(mappings) > _MAX_LINES:
        raise ConfigError(path, f"{len(mappings)} ranges, the kernel takes {_MAX_LINES}")
    for index, mapping in enumerate(mappings):
        if mapping.size < 1:
            raise ConfigError(f"{path}[{index}].size", "an empty range")
        for first in (mapping.container_id, mapping.host_id):
            if not 0 <= first <= _ID_COUNT - mapping.size:
                raise ConfigError(
                    f"{path}[{index}]", f"{first} and the {mapping.size} ids from it are no ids"
                )
    _check_overlap(path, [(mapping.container_id, mapping.size) for mapping in mappings], "containerID")
    _check_overlap(path, [(mapping.host_id, mapping.size) for mapping in mappings], "hostID")
    if not any(mapping.container_id == 0 for mapping in mappings):
        raise ConfigError(path, "no mapping for id 0 of the container")
    lines = "".join(f"{mapping.container_id} {mapping.host_id} {mapping.size}\n" for mapping in mappings)
    if len(lines) > _MAX_BYTES:
        raise ConfigError(path, f"{len(lines)} bytes, the kernel takes {_MAX_BYTES}")
    return lines


def _check_overlap(path: str, ranges: list[tuple[int, int]], field: str) -> None:
    end = 0
    for first, size in sorted(ranges):
        if first < end:
            raise ConfigError(path, f"ranges overlap at {field} {first}")
        end = first + size


def _is_own_id(mappings: tuple[IdMapping, ...], own: int) -> bool:
    return len(mappings) == 1 and mappings[0].size == 1 and mappings[0].host_id == own


def write_mapping(pid: int, mapping: UserMapping, procfs: str = "/proc") -> None:
    """Write the maps of `pid`'s user namespace that need no tool; MappingError names the file.

    In this order: setgroups can no longer be denied once there is a gid map.
    """
    by_tool = {name for name, _tool in mapping.tools}
    if mapping.deny_setgroups:
        _write(f"{procfs}/{pid}/setgroups", "deny")
    for name, text in (("uid_map", mapping.uid_map), ("gid_map", mapping.gid_map)):
        if name not in by_tool:
            _write(f"{procfs}/{pid}/{name}", text)


def _write(path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, text.encode())  # one write: the kernel takes the whole map at once, and once only
        finally:
            os.close(fd)
    except OSError as error:
        raise MappingError(f"write {text.strip()!r} to {path}: {os.strerror(error.errno or 0)}") from error


def find_tool(name: str, directories: tuple[str, ...] = _DIRECTORIES) -> str:
    """The absolute path of newuidmap or newgidmap. MappingError when there is none that only root could change.

    $PATH is not asked: what it names would be run with ids that are not ours.
    """
    for directory in directories:
        path = f"{directory}/{name}"
        try:
            status = os.stat(path)
        except OSError:
            continue
        others_may_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if stat.S_ISREG(status.st_mode) and status.st_uid == 0 and not others_may_write:
            return path
    raise MappingError(f"more than one's own id takes {name}, which is in none of {' '.join(directories)}")


def write_by_tools(
    pid: int,
    mapping: UserMapping,
    run_tool: Callable[[tuple[str, ...]], Operation[str]],
    directories: tuple[str, ...] = _DIRECTORIES,
) -> Operation[None]:
    """Have newuidmap and newgidmap write what `write_mapping` left out, if anything.

    `run_tool` runs a command line and gives what went wrong, "" for nothing. MappingError with that.
    """
    maps = {"uid_map": mapping.uid_map, "gid_map": mapping.gid_map}
    for name, tool in mapping.tools:
        arguments = (find_tool(tool, directories), str(pid), *maps[name].split())
        failure = yield from run_tool(arguments)
        if failure:
            raise MappingError(f"write {name} of process {pid}: {arguments[0]}: {failure}")
