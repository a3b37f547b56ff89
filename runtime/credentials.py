"""Who a container's process is: ids, groups, umask and capabilities, planned from config.json and taken on.

`plan_credentials` decides and refuses, before anything is cloned; `become` carries it out in the child,
in the one order that works. Seccomp, labels and the working directory have their own modules.
"""

from __future__ import annotations

import errno
import os

from runtime.errors import ConfigError
from runtime.linux import capability
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec.model import Capabilities, Process

DEFAULT_UMASK = 0o022
_MAX_ID = 2**32 - 2  # 2**32-1 is -1 to setresuid(2): "leave it as it is", which is root here


class CapabilitySets(Record):
    """The five sets of capabilities(7), as masks."""

    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int


class Credentials(Record):
    """What `become` sets; `groups` or `capabilities` None leaves those alone. `warnings` are for the log."""

    uid: int
    gid: int
    groups: tuple[int, ...] | None
    umask: int
    capabilities: CapabilitySets | None
    warnings: tuple[str, ...] = ()


def plan_credentials(
    process: Process,
    setgroups_denied: bool = False,
    last_capability: int | None = None,
    container_umask: int | None = None,
) -> Credentials:
    """The credentials for `process`; pure once the kernel's last capability is known.

    ConfigError for ids outside 0..2**32-2 and for sets that capset(2) could never accept. A capability
    that this kernel has not is left out with a warning, as the specification allows and runc does.
    With `setgroups_denied` (a user namespace made by an unprivileged user) groups cannot be set at all.
    `container_umask` is the one of config.json, for an exec that brings none.
    """
    user = process.user
    for field, number in (("uid", user.uid), ("gid", user.gid)):
        _check_id(field, number)
    for number in user.additional_gids:
        _check_id("additionalGids", number)
    warnings: list[str] = []
    # As the config says: that the primary group should be one of them (CVE-2023-25173) is for who writes it to know.
    groups: tuple[int, ...] | None = tuple(dict.fromkeys(user.additional_gids))
    if setgroups_denied:
        groups = None
        if user.additional_gids:
            warnings.append("additional groups are left out: this user namespace does not allow setgroups")
    sets = None
    if process.capabilities is not None:
        last = capability.last_capability() if last_capability is None else last_capability
        sets = _plan_capabilities(process.capabilities, last, warnings)
    umasks = (user.umask, container_umask, DEFAULT_UMASK)
    umask = next(umask for umask in umasks if umask is not None)
    return Credentials(user.uid, user.gid, groups, umask, sets, tuple(warnings))


def _check_id(field: str, number: int) -> None:
    if not 0 <= number <= _MAX_ID:
        raise ConfigError(f"process.user.{field}", f"{number} is not an id (0 to {_MAX_ID})")


def _plan_capabilities(wanted: Capabilities, last: int, warnings: list[str]) -> CapabilitySets:
    unknown: dict[str, None] = {}

    def mask(names: tuple[str, ...]) -> int:
        total = 0
        for name in names:
            number = capability.NUMBERS.get(name)
            if number is None or number > last:
                unknown[name] = None
            else:
                total |= 1 << number
        return total

    bounding, effective, permitted = mask(wanted.bounding), mask(wanted.effective), mask(wanted.permitted)
    inheritable, ambient = mask(wanted.inheritable), mask(wanted.ambient)
    if unknown:
        warnings.append(f"ignoring unknown or unavailable capabilities: {' '.join(unknown)}")
    _require_subset(effective, permitted, "effective", "permitted")
    _require_subset(inheritable, bounding, "inheritable", "bounding")
    if refused := ambient & ~(permitted & inheritable):
        names = capability.describe(refused)
        warnings.append(f"can't raise ambient capability {names}: not permitted and inheritable")
    return CapabilitySets(bounding, effective, permitted, inheritable, ambient & permitted & inheritable)


def _require_subset(part: int, whole: int, name: str, whole_name: str) -> None:
    if missing := part & ~whole:
        message = f"{capability.describe(missing)} is not in {whole_name}"
        raise ConfigError(f"process.capabilities.{name}", message)


# What it takes to become somebody beside what he will have: his ids, the bounding set, streams and a terminal to give
# away, and a working directory that is not his to enter.
_WAY = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP")


def give_up(credentials: Credentials, needs_admin: bool) -> None:
    """Give up, for good, all capabilities that neither `become` takes nor what it leads to. OSError.

    `needs_admin`: CAP_SYS_ADMIN is still to be used. To be called before others can see who calls, or a child of it:
    who may trace it may act with all that it has left.
    """
    sets = credentials.capabilities
    if sets is None:
        return
    _limit_bounding(sets.bounding)
    kept = sets.permitted | sets.inheritable
    for name in (*_WAY, "CAP_SYS_ADMIN") if needs_admin else _WAY:
        kept |= 1 << capability.NUMBERS[name]
    kept &= capability.capget()[1]
    capability.capset(kept, kept, sets.inheritable & kept)


def become(credentials: Credentials) -> None:
    """Take on `credentials`, for good. OSError naming the step and its object.

    A change of the uid clears the parent-death signal: who set one sets it again afterwards.
    """
    os.umask(credentials.umask)
    sets = credentials.capabilities
    leaves_root = credentials.uid != 0
    if sets is not None:
        # First, as it takes CAP_SETPCAP, which need not be among the capabilities that are left in the end.
        _limit_bounding(sets.bounding)
        if leaves_root:
            capability.set_keep_capabilities(True)
    # Groups, gid, uid: each takes a capability that is effective only as long as the uid is 0.
    _set_ids(credentials)
    if sets is not None:
        if leaves_root:
            capability.set_keep_capabilities(False)
        _set_capabilities(sets)


def _limit_bounding(bounding: int) -> None:
    for number in range(capability.last_capability() + 1):
        if bounding >> number & 1:
            continue
        try:
            capability.drop_bounding(number)
        except OSError as error:
            if capability.in_bounding_set(number):  # without CAP_SETPCAP what is gone already is still fine
                cause = f"drop from the bounding set: {os.strerror(error.errno or 0)}"
                raise OSError(error.errno, cause, capability.describe(1 << number)) from error


def _set_ids(credentials: Credentials) -> None:
    if credentials.groups is not None:
        try:
            os.setgroups(credentials.groups)
        except OSError as error:
            groups = " ".join(map(str, credentials.groups[:16]))
            raise OSError(error.errno, f"setgroups: {_id_cause(error)}", f"groups {groups}") from error
    gid, uid = credentials.gid, credentials.uid
    try:
        os.setresgid(gid, gid, gid)
    except OSError as error:
        raise OSError(error.errno, f"setresgid: {_id_cause(error)}", f"gid {gid}") from error
    try:
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise OSError(error.errno, f"setresuid: {_id_cause(error)}", f"uid {uid}") from error


def _id_cause(error: OSError) -> str:
    if error.errno == errno.EINVAL:  # user_namespaces(7)
        return "not mapped in the user namespace"
    return os.strerror(error.errno or 0)


def _set_capabilities(sets: CapabilitySets) -> None:
    try:
        capability.capset(sets.effective, sets.permitted, sets.inheritable)
    except OSError as error:
        held = capability.capget()[1]
        missing = capability.describe(sets.permitted & ~held)
        cause = f"not held by the runtime: {missing}" if missing else os.strerror(error.errno or 0)
        raise OSError(error.errno, f"capset: {cause}", "capabilities") from error
    # capset has removed what is not permitted and inheritable: with none of those there is nothing to clear.
    if sets.permitted & sets.inheritable:
        capability.clear_ambient()
        for number in range(sets.ambient.bit_length()):
            if sets.ambient >> number & 1:
                capability.raise_ambient(number)
