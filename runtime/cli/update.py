"""update: other limits for a container that is there."""

from __future__ import annotations

import os

from runtime import rdt, state
from runtime.cgroups.resources import ignored_fields
from runtime.cli import logs
from runtime.cli.arguments import Option, Verb
from runtime.cli.host import sole
from runtime.errors import CgroupError, ConfigError, InvalidArgument, InvalidState, Unsupported
from runtime.linux.fds import OwnedFd
from runtime.operations.update import update as update_container
from runtime.spec.json import dump, parse
from runtime.spec.load import load_resources
from runtime.undo import Undo
from runtime.waiting import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.cli.arguments import Call
    from runtime.spec.model import Resources

# option: where in `resources` it goes.
_UNSIGNED = {
    "cpu-burst": ("cpu", "burst"),
    "cpu-period": ("cpu", "period"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-share": ("cpu", "shares"),
}
_SIGNED = {
    "cpu-quota": ("cpu", "quota"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpu-idle": ("cpu", "idle"),
}
_SIZES = {
    "memory": ("memory", "limit"),
    "memory-swap": ("memory", "swap"),
    "memory-reservation": ("memory", "reservation"),
}
_OBSOLETE = ("kernel-memory", "kernel-memory-tcp")
_TEXTS = {"cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems")}
# option: what resctrl calls it, and what runc says where the machine lacks it.
_SCHEMAS = {
    "l3-cache-schema": ("L3", "Intel RDT/CAT: l3 cache schema is not enabled"),
    "mem-bw-schema": ("MB", "Intel RDT/MBA: memory bandwidth schema is not enabled"),
}
_POWERS = {"k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_MOST_BYTES = 1 << 20


def update(call: Call) -> int:
    """Set what is named and leave the rest as it is."""
    asked = _from_file(call.options["resources"]) if call.options["resources"] else from_options(call)
    schemata = _schemata(call)
    lock, found = sole(call)
    with lock:
        if found.status == state.STOPPED:
            raise InvalidState("container not running")
        resources = settle(asked)
        for warning in ignored_fields(resources):
            logs.warn(warning)
        with Undo() as undo:
            if schemata:
                if found.terms.rdt is None:
                    raise InvalidState("updating a non-existent Intel RDT configuration is not supported")
                undo.push(set_schemata, found.terms.rdt[0], former_schemata(found.terms.rdt[0], schemata))
                set_schemata(found.terms.rdt[0], schemata)
            run(update_container(found, resources))
            undo.keep()
    return 0


def _schemata(call: Call) -> list[str]:
    """The lines for resctrl that are asked for. Unsupported for one that this machine has no use for."""
    asked = [(call.options[option], *about) for option, about in _SCHEMAS.items() if call.options[option]]
    lines = []
    for line, resource, refusal in asked:
        try:
            known = os.path.isdir(f"{rdt.find_resctrl()}/info/{resource}")
        except Unsupported:
            known = False
        if not known:
            raise Unsupported(refusal)
        if "\n" in line:
            raise InvalidArgument(f"a schema for {resource} is one line")
        lines.append(line)
    return lines


def _schemata_file(group: str) -> str:
    return f"{group.partition('/mon_groups/')[0]}/schemata"  # a monitoring group has its parent's


def former_schemata(group: str, lines: list[str]) -> list[str]:
    """The schemata that the group has for the resources of `lines`. CgroupError."""
    path = _schemata_file(group)
    wanted = tuple(f"{line.partition(':')[0].strip()}:" for line in lines)
    try:
        with OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)) as file:
            content = os.read(file.fileno(), _MOST_BYTES).decode()
    except OSError as error:
        raise CgroupError(f"read {path}: {error.strerror}") from error
    return [line for line in map(str.strip, content.splitlines()) if line.startswith(wanted)]


def set_schemata(group: str, lines: list[str]) -> None:
    """Give the resctrl group that init is in other schemata. CgroupError with what the kernel says."""
    path = _schemata_file(group)
    try:
        with OwnedFd(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)) as file:
            os.write(file.fileno(), "".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise CgroupError(f"set {path} to {' '.join(lines)!r}: {error.strerror}") from error


def from_options(call: Call) -> dict[str, Any]:
    """The `resources` that the options ask for. InvalidArgument names an option whose value is none."""
    made: dict[str, dict[str, Any]] = {"memory": {}, "cpu": {}, "blockIO": {}, "pids": {}}
    given = {
        name: value for name, value in call.options.items() if value not in ("", 0) or name in call.given
    }
    for name, value in given.items():
        if name in _UNSIGNED or name in _SIGNED:
            part, field = _UNSIGNED.get(name) or _SIGNED[name]
            if value:
                made[part][field] = _number(name, value, signed=name in _SIGNED)
        elif name in _SIZES and value:
            part, field = _SIZES[name]
            made[part][field] = -1 if value == "-1" else size(name, value)
        elif name in _TEXTS and value:
            part, field = _TEXTS[name]
            made[part][field] = value
        elif name in _OBSOLETE and value:
            logs.warn("Kernel memory settings are ignored and will be removed")
    if call.options["blkio-weight"]:
        made["blockIO"]["weight"] = call.options["blkio-weight"]
    if "pids-limit" in call.given:
        made["pids"]["limit"] = call.options["pids-limit"]
    return {part: fields for part, fields in made.items() if fields}


def settle(asked: dict[str, Any]) -> Resources:
    """The checked resources of `asked`. ConfigError names the JSON path of what is wrong."""
    return load_resources(dump(asked))


def _number(option: str, text: str, *, signed: bool) -> int:
    digits = text[1:] if signed and text[:1] in ("-", "+") else text
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 20):  # those of 64 bits
        kind = "ParseInt" if signed else "ParseUint"
        raise InvalidArgument(f'invalid value for {option}: strconv.{kind}: parsing "{text}": invalid syntax')
    return int(text)


def size(option: str, text: str) -> int:
    """Bytes of "64M", "1.5 GiB", "4096": units are powers of 1024, as docker's. InvalidArgument."""
    end = max(text.rfind(each) for each in "0123456789. ") + 1
    number, unit = text[:end].rstrip(" "), text[end:].lower()
    refused = InvalidArgument(f"invalid value for {option}: invalid size: '{text}'")
    if not number or not set(number) <= set("0123456789."):
        raise refused
    try:
        amount = float(number)
    except ValueError:
        raise refused from None
    power = 0 if unit in ("", "b") else _POWERS.get(unit[0], -1)
    if power < 0 or unit[1:] not in ("", "b", "ib"):
        raise InvalidArgument(f"invalid value for {option}: invalid suffix: '{unit}'")
    return int(amount * (1 << power))


def _from_file(path: str) -> dict[str, Any]:
    """What the file `path`, or standard input for "-", holds as JSON."""
    with OwnedFd(os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        data = b""
        while part := os.read(fd.fileno(), 65536):
            data += part
            if len(data) > _MOST_BYTES:
                raise ConfigError("", f"{path} has more than {_MOST_BYTES} bytes")
    asked = parse(data)
    if type(asked) is not dict:
        raise ConfigError("", "must be an object")
    # Not the devices, as with runc, which leaves alone what a plugin may have allowed meanwhile.
    return {key: value for key, value in asked.items() if key.casefold() != "devices"}


def _value(name: str, text: str) -> Option:
    return Option((f"--{name}",), help=text)


VERBS = {
    "update": Verb(
        "update",
        "<container-id>",
        "update container resource constraints",
        (
            Option(
                ("--resources", "-r"),
                help="path to the file with the resources to update (as linux.resources of a config.json) or '-' "
                "for standard input; all other options but the schemas are ignored then",
            ),
            Option(("--blkio-weight",), "int", help="Specifies per cgroup weight, range is from 10 to 1000"),
            _value("cpu-period", "CPU CFS period to be used for hardcapping (in usecs)"),
            _value("cpu-quota", "CPU CFS hardcap limit (in usecs). Allowed cpu time in a given period"),
            _value("cpu-burst", "CPU CFS hardcap burst limit (in usecs)"),
            _value("cpu-share", "CPU shares (relative weight vs. other containers)"),
            _value("cpu-rt-period", "CPU realtime period to be used for hardcapping (in usecs)"),
            _value("cpu-rt-runtime", "CPU realtime hardcap limit (in usecs)"),
            _value("cpuset-cpus", "CPU(s) to use"),
            _value("cpuset-mems", "Memory node(s) to use"),
            Option(("--kernel-memory",), help="(obsoleted; do not use)", hidden=True),
            Option(("--kernel-memory-tcp",), help="(obsoleted; do not use)", hidden=True),
            _value("memory", "Memory limit (in bytes)"),
            _value("cpu-idle", "set cgroup SCHED_IDLE or not, 0: default behavior, 1: SCHED_IDLE"),
            _value("memory-reservation", "Memory reservation or soft_limit (in bytes)"),
            _value("memory-swap", "Total memory usage (memory + swap); set '-1' to enable unlimited swap"),
            Option(("--pids-limit",), "int", help="Maximum number of pids allowed in the container"),
            _value("l3-cache-schema", "The string of Intel RDT/CAT L3 cache schema"),
            _value("mem-bw-schema", "The string of Intel RDT/MBA memory bandwidth schema"),
        ),
        update,
        least=1,
        most=1,
    )
}
