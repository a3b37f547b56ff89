"""Intel RDT: the resctrl group that bounds a container's share of caches and memory bandwidth.

What config.json asks for is decided in `plan_rdt`; `enter` makes the group or finds it, and puts init into it,
`join` is for tenants, `remove` for the end. The rules are those of config-linux.md, "IntelRdt"; what a schema
line means is the kernel's business (Documentation/filesystems/resctrl.rst).
"""

from __future__ import annotations

import os

from runtime.errors import ConfigError, ManorError, Unsupported, describe
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec.model import IntelRdt

_RESERVED = ("info", "mon_groups", "mon_data")  # what resctrl has beside groups in its root
_MONITORING = "/mon_groups/"
_MOST_BYTES = 64 * 1024
_MOUNTINFO = "/proc/self/mountinfo"


class RdtError(ManorError):
    """A group could not be made, configured, joined or removed; says which, and what the kernel says of it."""


class RdtPlan(Record):
    """The group `name` below resctrl's root, "" for the root itself.

    `must_exist`: it is somebody else's to make. `shared`: it is named by closID, and never ours to remove.
    `compared` are those of `lines` that a group found there must hold already. `monitoring` names a group of the
    container's own in it, for the counters; "" for none.
    """

    name: str
    must_exist: bool
    shared: bool
    lines: tuple[str, ...]
    compared: tuple[str, ...]
    monitoring: str


def plan_rdt(asked: IntelRdt, container_id: str) -> RdtPlan:
    """The plan for `linux.intelRdt`. Pure. ConfigError for what resctrl could not mean."""
    clos, where = asked.clos_id or "", "linux.intelRdt"
    if clos in (".", "..") or (clos != "/" and "/" in clos):
        raise ConfigError(f"{where}.closID", f"{clos[:100]!r} is not the name of a group")
    name = "" if clos == "/" else clos or container_id
    if name in _RESERVED or len(name.encode()) > 255:
        raise ConfigError(f"{where}.closID", f"{name[:100]!r} cannot be the name of a group")
    if asked.mem_bw_schema and not asked.mem_bw_schema.startswith("MB:"):
        raise ConfigError(f"{where}.memBwSchema", f"{asked.mem_bw_schema[:100]!r} does not begin with MB:")
    compared = []
    for field, line in (("l3CacheSchema", asked.l3_cache_schema), ("memBwSchema", asked.mem_bw_schema)):
        if line:
            compared.append(_one_line(line, f"{where}.{field}"))
    lines = [_one_line(line, f"{where}.schemata[{index}]") for index, line in enumerate(asked.schemata)]
    return RdtPlan(
        name=name,
        must_exist=bool(clos) and not compared and not lines,
        shared=bool(clos),
        lines=(*compared, *lines),
        compared=tuple(compared),
        monitoring=container_id if asked.enable_monitoring else "",
    )


def _one_line(text: str, path: str) -> str:
    if "\n" in text:
        raise ConfigError(path, "is more than one line")
    return text


def find_resctrl(mountinfo: str = _MOUNTINFO) -> str:
    """Where resctrl is mounted. Unsupported if it is not: who asks for its limits must not run without them."""
    try:
        fd = os.open(mountinfo, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = b""
            while part := os.read(fd, 1 << 20):
                text += part
        finally:
            os.close(fd)
    except OSError as error:
        raise RdtError(f"look for resctrl: {describe(error)}") from error
    for line in text.split(b"\n"):
        fields, _, rest = line.partition(b" - ")
        if rest.startswith(b"resctrl "):
            return _unescaped(fields.split(b" ")[4])
    raise Unsupported("linux.intelRdt is asked for, but no resctrl file system is mounted")


def _unescaped(path: bytes) -> str:
    """A path of mountinfo, which has space, tab, newline and backslash as octal numbers (proc_pid_mountinfo(5))."""
    for escaped, plain in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(escaped, plain)
    return path.decode("utf-8", "surrogateescape")


def enter(plan: RdtPlan, root: str, pid: int) -> tuple[str, bool]:
    """Put `pid` into the group of `plan` below `root`, made and configured if need be.

    Gives what `join` and `remove` take: the group (its monitoring group, if there is one), and whether the whole of
    it is ours to remove. Unsupported where the machine lacks what a schema is for; RdtError for the rest, with
    nothing of ours left.
    """
    _check_machine(plan, root)
    path = f"{root}/{plan.name}" if plan.name else root
    made = _make(plan, root, path)
    joined = f"{path}{_MONITORING}{plan.monitoring}" if plan.monitoring else path
    monitored = False
    try:
        if not made and plan.compared:
            _check_schemata(plan, root, path)
        if plan.lines:
            text = "".join(f"{line}\n" for line in plan.lines)
            _write(f"{path}/schemata", text, f"set schemata of resctrl group {path}", root)
        if plan.monitoring:
            monitored = _make_directory(joined, root)
        _join(joined, pid, root)
    except RdtError:
        if monitored:
            _try_remove(joined)
        if made:
            _try_remove(path)
        raise
    return joined, made and not plan.shared


def expected(plan: RdtPlan, root: str) -> tuple[str, bool] | None:
    """What `enter` would give, if that is to be removed one day: for who must after a crash in the middle."""
    path = f"{root}/{plan.name}" if plan.name else root
    ours = bool(plan.name) and not plan.shared and not os.path.lexists(path)
    joined = f"{path}{_MONITORING}{plan.monitoring}" if plan.monitoring else path
    return (joined, ours) if ours or (plan.monitoring and not os.path.lexists(joined)) else None


def place(group: str, ours: bool) -> str:
    """The directory that `remove` removes, "" if none: the group where it is ours, else its monitoring group."""
    parent, _, monitored = group.partition(_MONITORING)
    return parent if ours else group if monitored else ""


def is_place(path: str, root: str) -> bool:
    """Whether `path` could be a group below the resctrl file system `root`, by its name alone."""
    group, found, monitored = path.removeprefix(f"{root}/").partition(_MONITORING)
    if path.startswith(f"{root}{_MONITORING}"):
        group, found, monitored = "", _MONITORING, path.removeprefix(f"{root}{_MONITORING}")
    elif not path.startswith(f"{root}/") or not group or group in _RESERVED:
        return False
    names = [name for name, there in ((group, bool(group)), (monitored, bool(found))) if there]
    return bool(names) and all(name and "/" not in name and name not in (".", "..") for name in names)


def tasks(group: str) -> list[int]:
    """The pids in a group, as far as this PID namespace sees them; none where it is gone."""
    try:
        return [int(pid) for pid in _content(f"{group}/tasks").split()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise RdtError(f"read {group}/tasks: {describe(error)}") from error


def _check_machine(plan: RdtPlan, root: str) -> None:
    for resource, directory, field in (("L3", "L3", "l3CacheSchema"), ("MB", "MB", "memBwSchema")):
        asked = any(line.startswith(f"{resource}:") for line in plan.compared)
        if asked and not os.path.isdir(f"{root}/info/{directory}"):
            raise Unsupported(f"linux.intelRdt.{field} is asked for, but {resource} cannot be allocated here")


def _make(plan: RdtPlan, root: str, path: str) -> bool:
    """Whether the group had to be made."""
    if not plan.must_exist:
        return bool(plan.name) and _make_directory(path, root)
    if not os.path.isdir(path):
        raise RdtError(f"resctrl group {path} does not exist, and nothing is given to make it of")
    return False


def _make_directory(path: str, root: str) -> bool:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return False
    except OSError as error:
        raise RdtError(f"make resctrl group {path}: {_reason(error, root)}") from error
    return True


def join(group: str, pid: int) -> None:
    """Put `pid` into a container's group, and into its monitoring group. RdtError; a group that is gone is none."""
    root = os.path.dirname(group.partition(_MONITORING)[0])
    if os.path.isdir(group):
        _join(group, pid, root)


def _join(group: str, pid: int, root: str) -> None:
    # A monitoring group takes only tasks of the group that it belongs to.
    parent, _, monitored = group.partition(_MONITORING)
    for path in (parent, group) if monitored else (group,):
        _write(f"{path}/tasks", str(pid), f"add process {pid} to resctrl group {path}", root)


def remove(group: str, ours: bool) -> None:
    """Remove what `enter` made: the group where it is ours, else its monitoring group. Fine if it is gone. RdtError."""
    path = place(group, ours)  # monitoring groups go with theirs
    if not path:
        return
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RdtError(f"remove resctrl group {path}: {describe(error)}") from error


def _try_remove(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass  # the failure that brought us here is the one to tell


# ---- schemata ----------------------------------------------------------------------------------


def _check_schemata(plan: RdtPlan, root: str, path: str) -> None:
    """RdtError unless a group that was there already holds what is asked for: it has other users."""
    held = dict(_parsed(line) for line in _read(f"{path}/schemata", root).splitlines())
    for line in plan.compared:
        resource, wanted = _parsed(line)
        have = held.get(resource, {})
        for domain, value in wanted.items():
            if domain not in have or not _is_same(resource, value, have[domain], root):
                said = f"{resource}:{domain}={have.get(domain, 'nothing')}"
                raise RdtError(f"resctrl group {path} exists with {said}, which does not match {line!r}")


def _parsed(line: str) -> tuple[str, dict[str, str]]:
    """("L3", {"0": "ff"}) for "  L3:0=ff;…", with domains as plain numbers."""
    resource, _, domains = line.strip().partition(":")
    values = {}
    for entry in domains.split(";"):
        domain, _, value = entry.partition("=")
        values[domain.strip().lstrip("0") or "0"] = value.strip()
    return resource.strip(), values


def _is_same(resource: str, wanted: str, held: str, root: str) -> bool:
    base = 10 if resource == "MB" else 16
    try:
        asked, found = int(wanted, base), int(held, base)
    except ValueError:
        return wanted == held
    if asked == found or resource != "MB":
        return asked == found
    # The kernel rounds a bandwidth up to the next step that the machine can do.
    try:
        step = int(_read(f"{root}/info/MB/bandwidth_gran", root))
    except (RdtError, ValueError):
        return False
    return step > 0 and -(-asked // step) * step == found


# ---- files -------------------------------------------------------------------------------------


def _read(path: str, root: str) -> str:
    try:
        return _content(path)
    except OSError as error:
        raise RdtError(f"read {path}: {_reason(error, root)}") from error


def _content(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return os.read(fd, _MOST_BYTES).decode("ascii", "replace")
    finally:
        os.close(fd)


def _write(path: str, text: str, what: str, root: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise RdtError(f"{what}: {_reason(error, root)}") from error


def _reason(error: OSError, root: str) -> str:
    """The error, and what the kernel has to say of the last thing that failed."""
    try:
        said = _content(f"{root}/info/last_cmd_status").strip()[:500]
    except OSError:
        said = ""
    return f"{describe(error)}, last_cmd_status: {said}" if said and said != "ok" else describe(error)
