"""Hostile configs by the thousand: a whole, valid config.json, and everything that can be done to it.

Every case comes from a seed, so that one that fails can be had again. A case is bytes, as a config.json is; where
one place of the config was changed, the case knows its JSON path, which the error must name.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

IDS = [{"containerID": 0, "hostID": 100000, "size": 65536}]
HOOK = [{"path": "/bin/true", "args": ["true", "-x"], "env": ["A=b"], "timeout": 5}]
MOMENTS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
THROTTLE = [{"major": 8, "minor": 0, "rate": 600}]


def whole_config() -> dict[str, Any]:
    """A config with every field of the runtime specification 1.3, none of them at its default."""
    return {
        "ociVersion": "1.3.0",
        "process": _process(),
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "host",
        "domainname": "domain",
        "mounts": _mounts(),
        "hooks": {moment: json.loads(json.dumps(HOOK)) for moment in MOMENTS},
        "annotations": {"com.example.key": "value"},
        "linux": _linux(),
    }


def _process() -> dict[str, Any]:
    return {
        "terminal": True,
        "consoleSize": {"height": 25, "width": 80},
        "user": {"uid": 1000, "gid": 1000, "umask": 63, "additionalGids": [5, 6]},
        "args": ["sh", "-c", "true"],
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/tmp",
        "capabilities": {name: ["CAP_CHOWN"] for name in SETS},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 2048}],
        "noNewPrivileges": True,
        "oomScoreAdj": 100,
        "apparmorProfile": "profile",
        "selinuxLabel": "system_u:system_r:container_t:s0",
        "scheduler": {
            "policy": "SCHED_DEADLINE",
            "nice": 0,
            "priority": 0,
            "flags": ["SCHED_FLAG_RESET_ON_FORK"],
            "runtime": 10000000,
            "deadline": 20000000,
            "period": 30000000,
        },
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        "execCPUAffinity": {"initial": "0", "final": "0-1"},
    }


def _mounts() -> list[dict[str, Any]]:
    return [
        {
            "destination": "/data",
            "type": "bind",
            "source": "/usr",
            "options": ["rbind", "ro", "rprivate"],
            "uidMappings": json.loads(json.dumps(IDS)),
            "gidMappings": json.loads(json.dumps(IDS)),
        },
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "size=65536k"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]},
    ]


def _linux() -> dict[str, Any]:
    kinds = ("pid", "network", "uts", "mount", "cgroup", "user", "time")
    return {
        "namespaces": [{"type": "ipc", "path": "/proc/1/ns/ipc"}, *({"type": kind} for kind in kinds)],
        "uidMappings": json.loads(json.dumps(IDS)),
        "gidMappings": json.loads(json.dumps(IDS)),
        "devices": [
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 1, "gid": 2}
        ],
        "cgroupsPath": "/manor-tests/hostile",
        "resources": _resources(),
        "seccomp": _seccomp(),
        "sysctl": {"net.ipv4.ip_forward": "1"},
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "rootfsPropagation": "rslave",
        "mountLabel": "system_u:object_r:container_file_t:s0",
        "personality": {"domain": "LINUX", "flags": ["X"]},
        "intelRdt": {
            "closID": "class",
            "schemata": ["L3:0=f"],
            "l3CacheSchema": "L3:0=f",
            "memBwSchema": "MB:0=20",
            "enableMonitoring": True,
        },
        "netDevices": {"eth7": {"name": "net1"}},
        "timeOffsets": {"monotonic": {"secs": 7, "nanosecs": 5}},
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
    }


def _resources() -> dict[str, Any]:
    return {
        "devices": [{"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}],
        "memory": {
            "limit": 1 << 26,
            "reservation": 1 << 25,
            "swap": 1 << 27,
            "kernel": 1 << 24,
            "kernelTCP": 1 << 23,
            "swappiness": 10,
            "disableOOMKiller": True,
            "useHierarchy": True,
            "checkBeforeUpdate": True,
        },
        "cpu": {
            "shares": 512,
            "quota": 50000,
            "burst": 1000,
            "period": 100000,
            "realtimeRuntime": 1000,
            "realtimePeriod": 10000,
            "cpus": "0",
            "mems": "0",
            "idle": 1,
        },
        "pids": {"limit": 100},
        "blockIO": {
            "weight": 100,
            "leafWeight": 100,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 100, "leafWeight": 100}],
            **{
                f"throttle{way}Device": json.loads(json.dumps(THROTTLE))
                for way in ("ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS")
            },
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
        "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]},
        "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 1000}},
        "unified": {"hugetlb.2MB.max": "4194304"},
    }


def _seccomp() -> dict[str, Any]:
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "listenerPath": "/run/agent.sock",
        "listenerMetadata": "metadata",
        "syscalls": [
            {
                "names": ["read", "write"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 1,
                "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}],
            },
            {"names": ["execve"], "action": "SCMP_ACT_ALLOW"},
        ],
    }


def plain_config() -> dict[str, Any]:
    """The whole config without what most machines refuse (labels, resctrl, RDMA …): its plans come out."""
    config = whole_config()
    process, linux = config["process"], config["linux"]
    for name in ("apparmorProfile", "selinuxLabel", "scheduler"):
        del process[name]
    for name in ("mountLabel", "intelRdt", "netDevices"):
        del linux[name]
    del linux["seccomp"]["listenerPath"], linux["seccomp"]["listenerMetadata"]
    for name in ("network", "rdma", "unified", "hugepageLimits"):
        del linux["resources"][name]
    for name in ("realtimeRuntime", "realtimePeriod", "burst", "idle"):
        del linux["resources"]["cpu"][name]
    return config


# ---- places and values ---------------------------------------------------------------------------

Place = tuple[str | int, ...]


def places(value: Any, way: Place = ()) -> Iterator[Place]:
    """Every place of a config: of objects each key, of lists the first entry."""
    keys: list[str | int] = list(value) if isinstance(value, dict) else [0] if value else []
    for key in keys:
        yield (*way, key)
        if isinstance(value[key], dict | list):
            yield from places(value[key], (*way, key))


def shown(place: Place) -> str:
    """A place as errors name it, list indices and the keys of maps in brackets."""
    text = ""
    for index, part in enumerate(place):
        if isinstance(part, int):
            text += f"[{part}]"
        elif place[:index] in _MAPS:
            text += f"[{part!r}]"
        else:
            text += f".{part}" if text else part
    return text


_MAPS: frozenset[Place] = frozenset(
    (
        ("annotations",),
        ("linux", "sysctl"),
        ("linux", "netDevices"),
        ("linux", "timeOffsets"),
        ("linux", "resources", "rdma"),
        ("linux", "resources", "unified"),
    )
)


def put(config: Any, place: Place, value: Any) -> None:
    """Put `value` at `place`."""
    for part in place[:-1]:
        config = config[part]
    config[place[-1]] = value


class Raw:
    """A value that JSON has no form for: its text goes into the file as it is."""

    def __init__(self, text: str) -> None:
        self.text = text


WRONG: tuple[Any, ...] = (
    *(True, False, 0, 1, -1, 1.5, "", "x", [], ["x"], [[]], {}, {"x": 1}, [None], {"": None}),
    *(1 << 31, -(1 << 31) - 1, 1 << 32, 1 << 63, 1 << 64, -(1 << 63) - 1, 10**400),
    *("/", "../../etc/passwd", "/proc/self/fd/7", "a\nb", "=", "é" * 300, "\x7f", "\u2028", " ", "x" * 70000),
    *(
        [{}],
        [[["x"]]],
        ["x", 1],
        ["ro"] * 5000,
        [{"path": "/"}] * 2000,
        {str(each): each for each in range(2000)},
    ),
    *(Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("9" * 5000), Raw("-0"), Raw("1.0")),
    *(Raw('"a\\u0000b"'), Raw('"\\ud800"'), Raw('"\\udc00\\ud800"'), Raw('"\\u00"'), Raw('"\t"'), Raw("'x'")),
    *(Raw("[" * 100_000), Raw("[" * 100_000 + "]" * 100_000), Raw('{"a":' * 100_000 + "1" + "}" * 100_000)),
    *(
        Raw("[" * 60 + "]" * 60),
        Raw("undefined"),
        Raw("01"),
        Raw("+1"),
        Raw("0x10"),
        Raw("1_000"),
        Raw("\uff11"),
    ),
    *(Raw('{"x": 1, "x": 2}'), Raw("[1,]"), Raw("/* */ 1"), Raw("[" + "0," * 200_000 + "0]")),
)


@dataclass(frozen=True)
class Case:
    """One hostile file; `place` is where it was changed, if at one place; `kind` says how."""

    kind: str
    data: bytes
    place: Place | None = None
    value: Any = None

    def __str__(self) -> str:
        where = "" if self.place is None else f" at {shown(self.place)}"
        value = self.value.text if isinstance(self.value, Raw) else self.value
        return f"{self.kind}{where}: {str(value)[:80]!r}"


_MARK = "\ue000mark\ue000"


def with_value(place: Place, value: Any, base: Callable[[], dict[str, Any]] = plain_config) -> Case:
    """The config with `value` at `place`."""
    config = base()
    put(config, place, _MARK if isinstance(value, Raw) else value)
    text = json.dumps(config, ensure_ascii=False)
    if isinstance(value, Raw):
        text = text.replace(f'"{_MARK}"', value.text)
        return Case("text", text.encode("utf-8", "surrogatepass"), place, value)
    return Case("value", text.encode(), place, value)


def every_wrong_value() -> Iterator[Case]:
    """Each value of WRONG at each place of the whole config: some ten thousand."""
    for base in (plain_config, whole_config):
        seen = set() if base is plain_config else set(places(plain_config()))
        for place in places(base()):
            if place not in seen:
                for value in WRONG:
                    yield with_value(place, value, base)


def odd_files() -> Iterator[Case]:
    """Whole files that are no config, or hardly one."""
    good = json.dumps(plain_config()).encode()
    yield Case("empty", b"")
    yield Case("blank", b" \n\t " * 1000)
    yield Case("byte order mark", b"\xef\xbb\xbf" + good)
    yield Case("UTF-16", good.decode().encode("utf-16"))
    yield Case("UTF-32", good.decode().encode("utf-32"))
    yield Case("trailing text", good + b"x")
    yield Case("trailing value", good + good)
    yield Case("trailing NUL", good + b"\0")
    yield Case("null", b"null")
    yield Case("list", b"[]")
    yield Case("string", b'"config"')
    yield Case("no keys", b"{}")
    yield Case("64 MiB of blanks", good + b" " * (64 << 20))
    yield Case("64 MiB string", b'{"ociVersion": "' + b"1" * (64 << 20) + b'"}')
    yield Case("64 MiB of zeros", bytes(64 << 20))
    yield Case("9 MiB list", b'{"ociVersion": "1.2.0", "mounts": [' + b"0," * (4 << 20) + b"0]}")
    yield Case("9 MiB of objects", b'{"mounts": [' + b"{}," * (3 << 20) + b"{}]}")
    yield Case("3 MiB of objects", b'{"mounts": [' + b"{}," * (1 << 20) + b"{}]}")
    yield Case("9 MiB string", b'{"hostname": "' + b"\xc3\xa9" * (4 << 20) + b'"}')
    yield Case("a million keys", b"{" + b",".join(b'"%d":0' % each for each in range(700_000)) + b"}")
    yield Case("depth", b"[" * 100_000)
    yield Case("closed depth", b"[" * 100_000 + b"]" * 100_000)
    yield Case("depth of objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
    for text in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"):
        yield Case("invalid UTF-8", good.replace(b"host", b"ho" + text + b"st", 1))
    for name in (b"process", b"linux", b"ociVersion", b"root", b"mounts"):
        yield Case("key twice", good[:-1] + b', "' + name + b'": {}}')
    for quote in (b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\"):
        for index, _each in enumerate(good.split(quote)[1:40:7]):
            position = _nth(good, quote, index * 7 + 1)
            yield Case("one character less", good[:position] + good[position + 1 :])


def _nth(text: bytes, what: bytes, count: int) -> int:
    position = -1
    for _ in range(count):
        position = text.find(what, position + 1)
    return position


def damaged(generator: random.Random) -> Case:
    """The text of the config with some bytes lost, doubled or changed."""
    data = bytearray(json.dumps(plain_config()).encode())
    for _ in range(generator.randint(1, 4)):
        position = generator.randrange(len(data))
        length = generator.choice((1, 1, 2, 16, 300))
        what = generator.choice(("cut", "double", "change", "end"))
        if what == "cut":
            del data[position : position + length]
        elif what == "double":
            data[position:position] = data[position : position + length]
        elif what == "change":
            data[position] = generator.choice((0, 0x22, 0x5C, 0x7B, 0x80, 0xFF, generator.randrange(256)))
        else:
            del data[position:]
            break
    return Case("damaged", bytes(data))


def several(generator: random.Random, all_places: list[Place]) -> Case:
    """Two to five values out of place at once."""
    config = plain_config()
    for place in generator.sample(all_places, generator.randint(2, 5)):
        value = generator.choice([each for each in WRONG if not isinstance(each, Raw)])
        try:
            put(config, place, value)
        except (KeyError, IndexError, TypeError):
            continue  # below something that has just been replaced
    return Case("several", json.dumps(config).encode())


def cases(seed: int, count: int) -> Iterator[Case]:
    """`count` cases: all odd files, then wrong values, damage and mixtures as `seed` has it."""
    generator = random.Random(seed)
    all_places = list(places(plain_config()))
    whole_places = list(places(whole_config()))
    made = 0
    for case in odd_files():
        if made == count:
            return
        yield case
        made += 1
    while made < count:
        kind = generator.random()
        if kind < 0.15:
            yield damaged(generator)
        elif kind < 0.25:
            yield several(generator, all_places)
        elif kind < 0.85:
            yield with_value(generator.choice(all_places), generator.choice(WRONG))
        else:
            yield with_value(generator.choice(whole_places), generator.choice(WRONG), whole_config)
        made += 1
