"""Which devices a container may use: the config's ordered rules as one policy, and how each version is told.

The policy is pure. On v1 it is a few writes to `devices.deny` and `devices.allow`; on v2 an eBPF program
(`device_program`) that replaces the container's former one in a single step. Other people's programs on the
same cgroup (systemd's) stay: the kernel allows what all of them allow.
"""

from __future__ import annotations

import os

from runtime.cgroups.device_program import device_program
from runtime.cgroups.files import read_file
from runtime.cgroups.writes import PREFIX
from runtime.errors import CgroupError, ConfigError
from runtime.linux import bpf
from runtime.linux.fds import OwnedFd
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec.model import DeviceRule

FIELD = f"{PREFIX}.devices"
PROGRAM_NAME = "manor_devices"  # what bpftool shows; at most 15 bytes
_ALL = "rwm"


class DeviceKey(Record):
    """What one rule is about: type "b" or "c"; None as a number means any."""

    type: str
    major: int | None
    minor: int | None

    def covers(self, other: DeviceKey) -> bool:
        """True if every device of `other` is one of ours."""
        return (
            self.type == other.type
            and self.major in (None, other.major)
            and self.minor in (None, other.minor)
        )

    def overlaps(self, other: DeviceKey) -> bool:
        """True if some device is in both."""
        return (
            self.type == other.type
            and (self.major is None or other.major is None or self.major == other.major)
            and (self.minor is None or other.minor is None or self.minor == other.minor)
        )

    def __str__(self) -> str:
        major, minor = ("*" if number is None else number for number in (self.major, self.minor))
        return f"{self.type} {major}:{minor}"


class DevicePolicy(Record):
    """Everything allowed, or nothing, but for `exceptions`: (key, accesses of "rwm"), the accesses in that order."""

    allow_by_default: bool
    exceptions: tuple[tuple[DeviceKey, str], ...] = ()


# What every container may use (runtime-spec, config-linux.md, "Default Devices"), making nodes included:
# without a rule for it a node leads nowhere.
_ALWAYS = (
    (DeviceKey("c", None, None), "m"),
    (DeviceKey("b", None, None), "m"),
    (DeviceKey("c", 1, 3), _ALL),  # null
    (DeviceKey("c", 1, 5), _ALL),  # zero
    (DeviceKey("c", 1, 7), _ALL),  # full
    (DeviceKey("c", 1, 8), _ALL),  # random
    (DeviceKey("c", 1, 9), _ALL),  # urandom
    (DeviceKey("c", 5, 0), _ALL),  # tty
    (DeviceKey("c", 5, 2), _ALL),  # ptmx
    (DeviceKey("c", 136, None), _ALL),  # the container's terminals
    (DeviceKey("c", 10, 200), _ALL),  # net/tun: no spec asks for it, but images count on runc's allowing it
)


def plan_devices(rules: tuple[DeviceRule, ...]) -> DevicePolicy:
    """The policy that `rules` come to, in their order, from "nothing", with the default devices at the end.

    A later rule wins over an earlier one it covers. ConfigError for one that would cut a hole into a
    broader earlier rule of the other kind: neither the v1 kernel nor we can say that.
    """
    allow_by_default = False
    exceptions: dict[DeviceKey, str] = {}
    for index, rule in enumerate(rules):
        field = f"{FIELD}[{index}]"
        access = _access(field, rule.access)
        if (
            rule.type == "a"
            and rule.major is None
            and rule.minor is None
            and (access == _ALL or not rule.allow)
        ):
            # Denying some access to everything is read as denying all of it, as the v1 kernel does.
            allow_by_default, exceptions = rule.allow, {}
            continue
        for key in _keys(field, rule):
            _apply(field, exceptions, key, access, is_exception=rule.allow != allow_by_default)
    for key, access in _ALWAYS:
        _apply(FIELD, exceptions, key, access, is_exception=not allow_by_default)
    return DevicePolicy(allow_by_default, tuple(exceptions.items()))


def _access(field: str, access: str) -> str:
    """The letters of `access` that mean something, in order. Others mean nothing to runc either, and are in use."""
    known = "".join(letter for letter in _ALL if letter in access)
    if not known:
        raise ConfigError(f"{field}.access", f"{access[:20]!r} has none of r, w and m")
    return known


def _keys(field: str, rule: DeviceRule) -> tuple[DeviceKey, ...]:
    if rule.type not in ("a", "b", "c", "u"):
        raise ConfigError(f"{field}.type", f"{rule.type[:20]!r} is not one of a, b, c, u")
    for name, number in (("major", rule.major), ("minor", rule.minor)):
        if number is not None and not -1 <= number < 1 << 32:
            raise ConfigError(f"{field}.{name}", f"{number} is no device number")
    major, minor = (None if number == -1 else number for number in (rule.major, rule.minor))
    types = {"a": ("b", "c"), "u": ("c",)}.get(rule.type, (rule.type,))
    return tuple([DeviceKey(each, major, minor) for each in types])


def _apply(
    field: str, exceptions: dict[DeviceKey, str], key: DeviceKey, access: str, *, is_exception: bool
) -> None:
    """Add to the exceptions, or take away from those that `key` covers."""
    if is_exception:
        known = exceptions.get(key, "")
        exceptions[key] = "".join(letter for letter in _ALL if letter in known or letter in access)
        return
    for other in tuple(exceptions):
        if not key.overlaps(other) or not set(access) & set(exceptions[other]):
            continue
        if not key.covers(other):
            raise ConfigError(
                field, f"{key} {access} would cut a hole into the rule {other} {exceptions[other]}"
            )
        left = "".join(letter for letter in exceptions[other] if letter not in access)
        if left:
            exceptions[other] = left
        else:
            del exceptions[other]


def write_v1(directory: int, path: str, policy: DevicePolicy, *, fresh: bool) -> None:
    """Put `policy` in force through the v1 files of the cgroup open as `directory`; CgroupError.

    For a `fresh` cgroup all is denied or allowed first: what its parent left to it must not shine through. In one
    that is in use, a device that was and stays allowed is so at every moment.
    """
    for file, rules in v1_steps(policy, "" if fresh else read_file("devices.list", directory)):
        _write_rules(directory, path, file, rules)


def v1_steps(policy: DevicePolicy, current: str = "") -> tuple[tuple[str, list[str]], ...]:
    """(file, rules to write one by one) in order, to get from the `current` devices.list to `policy`.

    Without a list, or from one that allows by default (the kernel does not show what it denies then), or to
    such a policy, everything is reset first.
    """
    rules = [f"{key} {access}" for key, access in policy.exceptions]
    if policy.allow_by_default:
        return ("devices.allow", ["a"]), ("devices.deny", rules)
    lines = current.splitlines()
    if not lines or any(line.startswith("a ") for line in lines):
        return ("devices.deny", ["a"]), ("devices.allow", rules)
    wanted = {str(key): access for key, access in policy.exceptions}
    dropped = []
    for line in lines:
        key, _blank, access = line.rpartition(" ")
        if left := "".join(letter for letter in access if letter not in wanted.get(key, "")):
            dropped.append(f"{key} {left}")
    return ("devices.allow", rules), ("devices.deny", dropped)


def _write_rules(directory: int, path: str, file: str, rules: list[str]) -> None:
    """One write(2) a rule, which is all the kernel reads."""
    if not rules:
        return
    rule = rules[0]
    try:
        with OwnedFd(os.open(file, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)) as fd:
            for rule in rules:
                os.write(fd.fileno(), rule.encode())
    except OSError as error:
        raise CgroupError(f"{FIELD}: write {rule!r} to {path}/{file}: {error.strerror}") from error


def attach_v2(directory: int, path: str, policy: DevicePolicy) -> None:
    """Put `policy` in force on the v2 cgroup open as `directory`: attach the program or swap ours for it.

    CgroupError where the kernel has no device programs (Linux 4.15) or refuses them to us.
    """
    try:
        former = [each for each in bpf.prog_query(directory, bpf.BPF_CGROUP_DEVICE) if _is_ours(each)]
        if not former and policy.allow_by_default and not policy.exceptions:
            return
        with bpf.prog_load_cgroup_device(device_program(policy), PROGRAM_NAME) as program:
            if not former:
                bpf.prog_attach(directory, program.fileno(), bpf.BPF_CGROUP_DEVICE)
                return
            with bpf.prog_get_fd_by_id(former[0]) as old:
                bpf.prog_attach(directory, program.fileno(), bpf.BPF_CGROUP_DEVICE, replace=old.fileno())
            for leftover in former[1:]:  # from an update that was killed half-way
                with bpf.prog_get_fd_by_id(leftover) as old:
                    bpf.prog_detach(directory, old.fileno(), bpf.BPF_CGROUP_DEVICE)
    except OSError as error:
        raise CgroupError(f"{FIELD}: device program of {path}: {error.strerror or error}") from error


def _is_ours(program_id: int) -> bool:
    with bpf.prog_get_fd_by_id(program_id) as program:
        return bpf.prog_name(program.fileno()) == PROGRAM_NAME
