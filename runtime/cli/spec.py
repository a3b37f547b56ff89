"""spec: a config.json to begin with.

What runc writes, with more of the host hidden: every masked path that gives away other tenants' doings (energy
counters, interrupts, thermal throttling). All of it is the file's: the runtime itself adds nothing to a config.
"""

from __future__ import annotations

import os

from runtime.cli.arguments import Option, Verb
from runtime.cli.output import SPEC_VERSION, indented
from runtime.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.cli.arguments import Call

_CONFIG = "config.json"
_CAPABILITIES = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
_NO_CODE = ["nosuid", "noexec", "nodev"]
_PTS = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
_MOUNTS: tuple[tuple[str, str, str, list[str]], ...] = (
    ("/proc", "proc", "proc", []),
    ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", _PTS),
    ("/dev/shm", "tmpfs", "shm", [*_NO_CODE, "mode=1777", "size=65536k"]),  # noqa: S108 -- the container's
    ("/dev/mqueue", "mqueue", "mqueue", _NO_CODE),
    ("/sys", "sysfs", "sysfs", [*_NO_CODE, "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", [*_NO_CODE, "relatime", "ro"]),
)
_MASKED = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"),
    "/sys/devices/virtual/powercap",
)
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_NAMESPACES = ("pid", "network", "ipc", "uts", "mount")
_UNIFIED = "/sys/fs/cgroup/cgroup.controllers"
_CPUS = "/sys/devices/system/cpu"


def _cgroup_namespace() -> tuple[str, ...]:
    """Where there is only cgroup v2. With v1 people look for a container's cgroup by the path it has on the host."""
    return ("cgroup",) if os.path.exists(_UNIFIED) else ()


def example() -> dict[str, Any]:
    """The config for a container of root's, in the order of runc's fields."""
    capabilities = {kind: list(_CAPABILITIES) for kind in ("bounding", "effective", "permitted")}
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": capabilities,
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "manor",
        "mounts": [_mount(*each) for each in _MOUNTS],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in (*_NAMESPACES, *_cgroup_namespace())],
            "maskedPaths": [*_MASKED, *_thermal_throttles()],
            "readonlyPaths": list(_READONLY),
        },
    }


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = {"destination": destination, "type": kind, "source": source}
    return made | {"options": list(options)} if options else made


def _thermal_throttles() -> list[str]:
    """One path a CPU, on machines that have them: a pattern is not to be had in maskedPaths."""
    try:
        names = [name for name in os.listdir(_CPUS) if name.startswith("cpu") and name[3:].isdecimal()]
    except OSError:
        return []
    paths = [f"{_CPUS}/{name}/thermal_throttle" for name in sorted(names, key=lambda each: int(each[3:]))]
    return [path for path in paths if os.path.isdir(path)]


def rootless(config: dict[str, Any], uid: int, gid: int) -> dict[str, Any]:
    """`config` changed so that the user `uid`, `gid` can run it: a user namespace, nothing that asks for more."""
    linux = config["linux"]
    kinds = [each for each in linux["namespaces"] if each["type"] not in ("network", "user")]
    mapped = {"uidMappings": _one(uid), "gidMappings": _one(gid), "namespaces": [*kinds, {"type": "user"}]}
    rest = {key: value for key, value in linux.items() if key not in ("resources", "namespaces")}
    mounts = [_without_ids(each) for each in config["mounts"]]
    return config | {"mounts": mounts, "linux": mapped | rest}


def _one(host_id: int) -> list[dict[str, int]]:
    return [{"containerID": 0, "hostID": host_id, "size": 1}]


def _without_ids(mount: dict[str, Any]) -> dict[str, Any]:
    if mount["destination"] == "/sys":  # sysfs belongs to the network namespace, which is the host's here
        return _mount("/sys", "none", "/sys", ["rbind", *_NO_CODE, "ro"])
    options = [word for word in mount.get("options", ()) if not word.startswith(("uid=", "gid="))]
    return mount | ({"options": options} if options else {})


def write_spec(call: Call) -> int:
    """Write config.json into the bundle; never over one that is there."""
    config = example()
    if call.options["rootless"]:
        config = rootless(config, os.geteuid(), os.getegid())
    path = os.path.join(call.options["bundle"], _CONFIG)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise InvalidArgument(f"File {_CONFIG} exists. Remove it first") from None
    with open(fd, "w", encoding="utf-8") as file:
        file.write(indented(config, "\t") + "\n")
    return 0


VERBS = {
    "spec": Verb(
        "spec",
        "",
        "create a new specification file",
        (
            Option(("--bundle", "-b"), help="path to the root of the bundle directory"),
            Option(("--rootless",), "flag", help="generate a configuration for a rootless container"),
        ),
        write_spec,
        about=f'The spec command creates the new specification file named "{_CONFIG}" for the bundle. It is\n'
        "   a starter file: its program is a shell on a terminal, and is to be edited.",
    )
}
