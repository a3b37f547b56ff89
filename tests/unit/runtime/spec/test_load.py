"""config.json becomes a Spec, or an error that says where it is wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import ConfigError, Unsupported
from runtime.rootfs.plan import plan_rootfs
from runtime.spec import model
from runtime.spec.load import load_process, load_resources, load_spec
from runtime.sysctls import plan_sysctls
from tests.unit.runtime.rootfs.views import HYBRID

SAMPLE = Path(__file__).with_name("cri_container.json").read_bytes()


def config() -> dict[str, Any]:
    """A config that has something of everything, without the length of a real seccomp profile."""
    made: dict[str, Any] = json.loads(SAMPLE)
    made["linux"]["seccomp"]["syscalls"] = made["linux"]["seccomp"]["syscalls"][1:4]
    del made["process"]["env"][3:]
    made["hostname"] = "web-0"
    made["hooks"] = {"createRuntime": [{"path": "/bin/hook", "args": ["hook"], "env": ["A=b"], "timeout": 5}]}
    made["process"] |= {
        "consoleSize": {"height": 25, "width": 80},
        "execCPUAffinity": {"initial": "0", "final": "0-1"},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        "scheduler": {"policy": "SCHED_OTHER", "nice": 5},
    }
    made["linux"] |= {
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}],
        "sysctl": {"net.ipv4.ip_forward": "1"},
        "timeOffsets": {"boottime": {"secs": -10, "nanosecs": 5}},
        "personality": {"domain": "LINUX"},
        "rootfsPropagation": "rslave",
        "netDevices": {"eth7": {"name": "net1"}},
        "intelRdt": {"closID": "guaranteed"},
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"},
    }
    made["linux"]["resources"] |= {
        "blockIO": {"weight": 10, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 9}],
        "network": {"classID": 1, "priorities": [{"name": "eth0", "priority": 5}]},
        "rdma": {"mlx5_1": {"hcaHandles": 3}},
        "pids": {"limit": 100},
    }
    made["linux"]["namespaces"].append({"type": "time"})
    return made


def load(value: object) -> model.Spec:
    return load_spec(json.dumps(value).encode())


def changed(path: str, value: object) -> dict[str, Any]:
    """The config with `value` at a path such as "mounts.3.destination"."""
    made = config()
    *way, last = path.split(".")
    place: Any = made
    for name in way:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[int(last) if isinstance(place, list) else last] = value
    return made


def test_a_config_of_containerds_is_loaded_whole() -> None:
    spec = load_spec(SAMPLE)
    assert spec.oci_version == "1.3.0"
    assert spec.process.args == ("/bin/busybox", "httpd", "-f", "-p", "8080")
    assert spec.process.user == model.User(uid=1000, gid=1000, additional_gids=(1000, 2000))
    assert spec.process.capabilities is not None
    assert spec.process.capabilities.ambient == ()
    assert spec.process.rlimits == (model.Rlimit("RLIMIT_NOFILE", soft=1024, hard=1024),)
    assert spec.process.apparmor_profile is None  # an empty string is nothing
    assert spec.mounts[6] == model.Mount(
        destination="/etc/hosts",
        type="bind",
        source="/var/lib/kubelet/pods/0d2c7d3e-5a6f-4a5b-a1b1-7f6d2a3d9b10/etc-hosts",
        options=("rbind", "rprivate", "rw"),
    )
    assert spec.linux.namespaces[1] == model.Namespace("ipc", "/proc/4711/ns/ipc")
    assert spec.linux.resources.devices == (model.DeviceRule(allow=False, access="rwm"),)
    assert spec.linux.resources.cpu == model.Cpu(shares=204, quota=50000, period=100000)
    assert spec.linux.seccomp is not None
    assert spec.linux.seccomp.syscalls[-1] == model.SeccompRule(("clone3",), "SCMP_ACT_ERRNO", errno_ret=38)
    assert spec.linux.seccomp.flags is None
    assert spec.annotations is not None
    assert spec.annotations["io.kubernetes.cri.container-type"] == "container"


def test_every_part_of_the_specification_is_loaded() -> None:
    spec = load(config())
    linux = spec.linux
    assert spec.hooks == model.Hooks(
        create_runtime=(model.Hook("/bin/hook", args=("hook",), env=("A=b",), timeout=5),)
    )
    assert spec.process.console_size == model.ConsoleSize(height=25, width=80)
    assert spec.process.exec_cpu_affinity == model.ExecCpuAffinity("0", "0-1")
    assert spec.process.io_priority == model.IoPriority("IOPRIO_CLASS_BE", 4)
    assert spec.process.scheduler == model.Scheduler("SCHED_OTHER", nice=5)
    assert linux.devices == (model.Device("/dev/fuse", "c", 10, 229, file_mode=0o666),)
    assert linux.time_offsets == {"boottime": model.TimeOffset(-10, 5)}
    assert linux.net_devices == {"eth7": model.NetDevice("net1")}
    assert linux.intel_rdt == model.IntelRdt(clos_id="guaranteed")
    assert linux.memory_policy == model.MemoryPolicy("MPOL_BIND", "0")
    assert linux.resources.block_io == model.BlockIo(
        weight=10, throttle_read_bps_device=(model.ThrottleDevice(8, 0, 600),)
    )
    assert linux.resources.network == model.Network(1, (model.InterfacePriority("eth0", 5),))
    assert linux.resources.rdma == {"mlx5_1": model.Rdma(hca_handles=3)}
    assert linux.resources.unified == {"memory.oom.group": "1", "memory.swap.max": "0"}
    assert linux.resources.hugepage_limits == (model.HugepageLimit("2MB", 9),)


def test_the_least_config_gets_the_defaults_of_the_specification() -> None:
    spec = load(
        {"ociVersion": "1.0.2-dev", "process": {"cwd": "/", "args": ["sh"]}, "root": {"path": "rootfs"}}
    )
    assert spec == model.Spec("1.0.2-dev", model.Process(args=("sh",)), model.Root("rootfs"))
    assert spec.linux.resources == model.Resources()


def test_unknown_keys_are_ignored_and_null_is_absent() -> None:
    made = config() | {"windows": {"x": [1.5]}, "hooks": None, "PROCESSES": 7}
    made["linux"]["seccomp"] = None
    spec = load(made)
    assert spec.hooks is None
    assert spec.linux.seccomp is None
    assert spec.process.args[0] == "/bin/busybox"


def test_a_keys_letter_case_means_nothing() -> None:
    made = config()
    made["Root"] = made.pop("root") | {"readOnly": True}
    made["linux"]["resources"]["hugepageLimits"] = [{"pagesize": "2MB", "LIMIT": 9}]
    spec = load(made)
    assert spec.root.readonly
    assert spec.linux.resources.hugepage_limits == (model.HugepageLimit("2MB", 9),)
    made["Root"] = {"Path": 7}
    with pytest.raises(ConfigError, match=r"root.path: must be a string"):
        load(made)


def test_two_spellings_of_a_key_are_one_whose_objects_are_merged() -> None:
    made = config()
    made["linux"]["resources"] |= {"cpu": {"shares": 7, "cpus": "0"}, "CPU": {"Cpus": "1", "mems": "0"}}
    made["HostName"] = "other"
    spec = load(made)
    assert spec.linux.resources.cpu == model.Cpu(shares=7, cpus="1", mems="0")
    assert spec.hostname == "other"


def test_seccomp_without_action_and_rules_is_no_seccomp() -> None:
    assert load(changed("linux.seccomp", {})).linux.seccomp is None
    with pytest.raises(ConfigError, match="linux.seccomp.defaultAction: is missing"):
        load(changed("linux.seccomp", {"syscalls": [{"names": ["x"], "action": "SCMP_ACT_ALLOW"}]}))


REFUSED = [
    ("ociVersion", "2.0.0", "ociVersion: '2.0.0' is not a version 1"),
    ("ociVersion", 1, "ociVersion: must be a string, not an integer"),
    ("root.path", "", "root.path: must not be empty"),
    ("process", None, "process: is missing"),
    ("process.args", [], "process.args: must not be empty"),
    ("process.args", None, "process.args: must not be empty"),
    ("process.args.1", 5, r"process.args\[1\]: must be a string, not an integer"),
    ("process.cwd", "work", "process.cwd: must be an absolute path"),
    ("process.cwd", None, "process.cwd: is missing"),
    ("process.env.1", "PATH", r"process.env\[1\]: must be NAME=value"),
    ("process.env.1", "=x", r"process.env\[1\]: must be NAME=value"),
    ("process.terminal", 1, "process.terminal: must be true or false, not an integer"),
    ("process.user.uid", -1, "process.user.uid: out of range"),
    ("process.user.uid", 4294967295, "process.user.uid: out of range"),
    ("process.user.uid", 4294967296, "process.user.uid: out of range"),
    ("process.user.uid", True, "process.user.uid: must be an integer, not a boolean"),
    ("process.user.uid", 1.0, "process.user.uid: must be an integer, not a fraction"),
    ("process.user.uid", "1000", "process.user.uid: must be an integer, not a string"),
    ("process.user.additionalGids.1", 1 << 70, r"process.user.additionalGids\[1\]: out of range"),
    ("process.rlimits.0.hard", None, r"process.rlimits\[0\].hard: is missing"),
    ("process.rlimits.0.soft", 1 << 64, r"process.rlimits\[0\].soft: out of range"),
    ("process.oomScoreAdj", 1001, "process.oomScoreAdj: out of range"),
    ("process.ioPriority.priority", 8, "process.ioPriority.priority: out of range"),
    ("process.ioPriority.class", "BE", "process.ioPriority.class: 'BE' is none of"),
    ("process.scheduler.nice", 20, "process.scheduler.nice: out of range"),
    ("process.scheduler.priority", 1, "process.scheduler.priority: has no meaning with 'SCHED_OTHER'"),
    ("process.scheduler.runtime", 1, "process.scheduler: runtime, deadline and period have no meaning"),
    (
        "process.capabilities.bounding",
        "CAP_KILL",
        "process.capabilities.bounding: must be a list, not a string",
    ),
    ("mounts.3.destination", "", r"mounts\[3\].destination: must not be empty"),
    ("mounts.3.options", {"ro": True}, r"mounts\[3\].options: must be a list, not an object"),
    ("hooks.createRuntime.0.path", "hook", r"hooks.createRuntime\[0\].path: must be an absolute path"),
    ("hooks.createRuntime.0.path", "", r"hooks.createRuntime\[0\].path: must not be empty"),
    ("hooks.createRuntime.0.timeout", 0, r"hooks.createRuntime\[0\].timeout: out of range"),
    ("linux.namespaces.0.type", "net", r"linux.namespaces\[0\].type: 'net' is none of"),
    ("linux.namespaces.0.type", "ipc", r"linux.namespaces\[1\].type: ipc appears twice"),
    ("linux.namespaces.1.path", "ns/ipc", r"linux.namespaces\[1\].path: must be an absolute path"),
    ("linux.maskedPaths.2", "proc/kcore", r"linux.maskedPaths\[2\]: must be an absolute path"),
    ("linux.readonlyPaths.0", "", r"linux.readonlyPaths\[0\]: must not be empty"),
    ("linux.devices.0.major", 4096, r"linux.devices\[0\].major: out of range"),
    ("linux.devices.0.type", "x", r"linux.devices\[0\].type: 'x' is none of b, c, u, p"),
    ("linux.resources.devices.0.access", "ax", r"linux.resources.devices\[0\].access: 'ax' has none of"),
    ("linux.resources.devices.0.access", "", r"linux.resources.devices\[0\].access: must not be empty"),
    ("linux.resources.devices.0.major", -2, r"linux.resources.devices\[0\].major: out of range"),
    (
        "linux.resources.unified",
        {"../x": "1"},
        r"linux.resources.unified\['../x'\]: '../x' is not a file name",
    ),
    ("linux.resources.unified", {"..": "1"}, r"linux.resources.unified\['..'\]: '..' is not a file name"),
    ("linux.resources.hugepageLimits.0.pageSize", "../2MB", r"hugepageLimits\[0\].pageSize: '../2MB' is not"),
    (
        "linux.seccomp.syscalls.0.args.0.index",
        6,
        r"linux.seccomp.syscalls\[0\].args\[0\].index: out of range",
    ),
    ("linux.rootfsPropagation", "hidden", "linux.rootfsPropagation: 'hidden' is none of"),
    ("linux.timeOffsets", {"realtime": {}}, r"linux.timeOffsets\['realtime'\]: 'realtime' is none of"),
    ("linux.netDevices", {"eth7": {"name": "a/b"}}, r"linux.netDevices\['eth7'\].name: 'a/b' is not a name"),
    ("linux.netDevices", {"x" * 16: {}}, r"linux.netDevices\['x+'\]: is not a name"),
    (
        "linux.uidMappings",
        [{"containerID": 0, "hostID": 1, "size": 1}],
        "linux.uidMappings: there is no user",
    ),
    ("linux.annotations", [], None),
    ("annotations", {"a": 1}, r"annotations\['a'\]: must be a string, not an integer"),
]


@pytest.mark.parametrize(("path", "value", "complaint"), REFUSED)
def test_a_rejection_names_the_json_path(path: str, value: object, complaint: str | None) -> None:
    if complaint is None:
        load(changed(path, value))
        return
    with pytest.raises(ConfigError, match=f"config invalid: .*{complaint}"):
        load(changed(path, value))


@pytest.mark.parametrize(
    ("namespace", "complaint"),
    [
        ("uts", "hostname: cannot be set without a UTS namespace"),
        ("mount", "linux.maskedPaths: cannot be set without a mount namespace"),
        ("time", "linux.timeOffsets: there is no time namespace"),
        ("network", "linux.netDevices: cannot be moved without a network namespace"),
    ],
)
def test_what_needs_a_namespace_is_refused_without_it(namespace: str, complaint: str) -> None:
    made = config()
    made["linux"]["namespaces"] = [each for each in made["linux"]["namespaces"] if each["type"] != namespace]
    with pytest.raises(ConfigError, match=complaint):
        load(made)


def test_a_new_user_namespace_needs_mappings_and_a_joined_one_does_not() -> None:
    made = config()
    made["linux"]["namespaces"].append({"type": "user"})
    with pytest.raises(ConfigError, match=r"linux.uidMappings: a new user namespace needs id mappings"):
        load(made)
    made["linux"]["namespaces"][-1]["path"] = "/proc/7/ns/user"
    load(made)


def test_time_offsets_cannot_be_set_in_a_joined_time_namespace() -> None:
    made = config()
    made["linux"]["namespaces"][-1]["path"] = "/proc/7/ns/time"
    with pytest.raises(
        ConfigError, match="linux.timeOffsets: cannot be set in a time namespace that is joined"
    ):
        load(made)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"7", b"null", b"{", b'{"ociVersion":"1.0.0","ociVersion":"1.0.0"}']
)
def test_what_is_no_object_is_refused(text: bytes) -> None:
    for function in (load_spec, load_process, load_resources):
        with pytest.raises(ConfigError, match="^config invalid: "):
            function(text)


def test_a_process_is_loaded_by_itself() -> None:
    process = load_process(b'{"cwd":"/","args":["ls"],"user":{"uid":0,"gid":0}}')
    assert process == model.Process(args=("ls",))
    with pytest.raises(ConfigError, match="config invalid: user.uid: must be an integer"):
        load_process(b'{"cwd":"/","args":["ls"],"user":{"uid":"0"}}')


def test_resources_are_loaded_by_themselves() -> None:
    resources = load_resources(
        b'{"memory":{"limit":-1},"pids":{"limit":0},"devices":[{"allow":true,"access":"m","major":-1}]}'
    )
    assert resources.memory == model.Memory(limit=-1)
    assert resources.pids == model.Pids(limit=0)
    assert resources.devices == (model.DeviceRule(allow=True, access="m"),)
    assert load_resources(b"{}") == model.Resources()


HOSTILE: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1 << 31,
        1 << 64,
        1.5,
        "",
        "x",
        "/",
        "../../etc",
        "/proc/self/fd/7",
        "a\nb",
        "=",
        "é" * 300,
    ),
    *([], [[]], ["x", 1], {}, {"": ""}, {"type": "x"}, [{"path": "/"}], ["ro"] * 50, "\x7f", 10**400),
]


def places_of(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below `value`; of a list the first two and the last entry."""
    found: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else sorted({0, 1, len(value) - 1} & set(range(len(value))))
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found += places_of(value[key])
    return found


def test_a_hostile_value_anywhere_is_planned_or_refused_with_a_clear_error() -> None:
    base = config()
    del base["linux"]["seccomp"]["syscalls"][1:]
    del base["mounts"][3:]
    tried = 0
    for container, key in places_of(base):
        good = container[key]
        for value in HOSTILE:
            container[key] = value
            tried += 1
            try:
                spec = load(base)
                plan_rootfs(spec, "/bundle", HYBRID)
                plan_sysctls(spec, network_is_host=False)
            except (ConfigError, Unsupported) as error:
                text = str(error)
                assert len(text) < 600, (key, value)
                assert text.isprintable(), (key, value)
        container[key] = good
    assert tried > 3000


def test_loading_a_usual_config_takes_well_under_a_millisecond() -> None:
    times = []
    for _ in range(30):
        before = time.perf_counter()
        load_spec(SAMPLE)
        times.append(time.perf_counter() - before)
    assert min(times) < 0.001
