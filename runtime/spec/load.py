"""config.json, process.json and resources.json, checked and built into the records of `model`.

One table per record says which key goes to which field, through which check. Every rejection is a
ConfigError that names the JSON path ("mounts[3].destination"). Unknown keys are ignored, as the
specification demands; null is the same as absent and a key's letter case means nothing, as in Go. What is valid
follows runc 1.5 where the specification leaves room. What a field *means* is its user's business: mount
options, capability names or seccomp actions are only text here.
"""

from __future__ import annotations

from runtime.errors import ConfigError
from runtime.spec import model
from runtime.spec.checks import (
    Wrong,
    absolute,
    file_name,
    filled,
    flag,
    i32,
    i64,
    integer,
    list_of,
    map_of,
    numeric_id,
    one_of,
    optional,
    optional_absolute,
    record,
    same,
    shown,
    text,
    texts,
    u16,
    u32,
    u64,
)
from runtime.spec.consistency import check_consistency
from runtime.spec.json import JsonError, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.spec.checks import Check


# More than a kubelet can ask for, and little enough to be parsed in less than a second, whatever it is.
MAX_CONFIG_BYTES = 4 << 20


def load_spec(data: bytes) -> model.Spec:
    """The Spec in the text of a config.json; ConfigError names what is wrong and where."""
    spec: model.Spec = _load(data, _SPEC)
    check_consistency(spec)
    return spec


def load_process(data: bytes) -> model.Process:
    """The Process in the text of a process.json, or of containerd's exec request; ConfigError as above."""
    process: model.Process = _load(data, _PROCESS)
    return process


def load_resources(data: bytes) -> model.Resources:
    """The Resources in the text of an update request; ConfigError as above."""
    resources: model.Resources = _load(data, _RESOURCES)
    return resources


def _load(data: bytes, check: Check) -> Any:
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError("", f"it has {len(data)} bytes, more than {MAX_CONFIG_BYTES}")
    try:
        return check(parse(data))
    except JsonError as error:
        raise ConfigError("", str(error)) from None
    except Wrong as wrong:
        raise ConfigError(wrong.path, wrong.message) from None


# ---- process -----------------------------------------------------------------------------------


def _environment(value: Any) -> tuple[str, ...]:
    variables = texts(value)
    for index, each in enumerate(variables):
        if each.find("=") < 1:
            raise Wrong("must be NAME=value", f"[{index}]")
    return variables


def _runnable(process: model.Process) -> model.Process:
    if not process.args:
        raise Wrong("must not be empty", "args")
    return process


def _schedulable(scheduler: model.Scheduler) -> model.Scheduler:
    policy = scheduler.policy
    if policy in ("SCHED_OTHER", "SCHED_BATCH") and not -20 <= scheduler.nice <= 19:
        raise Wrong("out of range: it must be -20 to 19", "nice")
    if scheduler.priority and policy not in ("SCHED_FIFO", "SCHED_RR"):
        raise Wrong(f"has no meaning with {shown(policy)}", "priority")
    if policy != "SCHED_DEADLINE" and (scheduler.runtime or scheduler.deadline or scheduler.period):
        raise Wrong(f"runtime, deadline and period have no meaning with {shown(policy)}")
    return scheduler


_USER = record(
    model.User,
    same(uid=numeric_id, gid=numeric_id, umask=u32)
    | {"additionalGids": ("additional_gids", list_of(numeric_id))},
)
_CAPABILITIES = record(
    model.Capabilities,
    same(bounding=texts, effective=texts, inheritable=texts, permitted=texts, ambient=texts),
)
_RLIMIT = record(model.Rlimit, same(type=filled, soft=u64, hard=u64), "type", "soft", "hard")
_SCHEDULER = record(
    model.Scheduler,
    same(policy=filled, nice=i32, priority=i32, flags=texts, runtime=u64, deadline=u64, period=u64),
    "policy",
    then=_schedulable,
)
_IO_CLASS = one_of("IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE")
_IO_PRIORITY = record(
    model.IoPriority, {"class": ("io_class", _IO_CLASS), "priority": ("priority", integer(0, 7))}, "class"
)
_CONSOLE_SIZE = record(model.ConsoleSize, same(height=u16, width=u16), "height", "width")
_EXEC_CPU_AFFINITY = record(model.ExecCpuAffinity, same(initial=optional, final=optional))
_PROCESS = record(
    model.Process,
    same(terminal=flag, user=_USER, args=texts, env=_environment, cwd=absolute, scheduler=_SCHEDULER)
    | {
        "consoleSize": ("console_size", _CONSOLE_SIZE),
        "capabilities": ("capabilities", _CAPABILITIES),
        "rlimits": ("rlimits", list_of(_RLIMIT)),
        "noNewPrivileges": ("no_new_privileges", flag),
        "oomScoreAdj": ("oom_score_adj", integer(-1000, 1000)),
        "apparmorProfile": ("apparmor_profile", optional),
        "selinuxLabel": ("selinux_label", optional),
        "ioPriority": ("io_priority", _IO_PRIORITY),
        "execCPUAffinity": ("exec_cpu_affinity", _EXEC_CPU_AFFINITY),
    },
    "cwd",
    then=_runnable,
)
_HOOKS = list_of(
    record(model.Hook, same(path=absolute, args=texts, env=_environment, timeout=integer(1, 1 << 31)), "path")
)

# ---- linux.resources ---------------------------------------------------------------------------


def _access(value: Any) -> str:
    made = filled(value)
    if not {"r", "w", "m"} & set(made):  # other letters mean nothing, as to runc
        raise Wrong(f"{shown(made)} has none of r, w and m")
    return made


def _device_number(value: Any) -> int | None:
    # runc and containerd write -1 for "any", which the specification says by leaving the key out.
    number: int = integer(-1, (1 << 63) - 1)(value)
    return None if number == -1 else number


_WEIGHT_DEVICES = list_of(
    record(
        model.WeightDevice,
        same(major=u32, minor=u32, weight=u16) | {"leafWeight": ("leaf_weight", u16)},
        "major",
        "minor",
    )
)
_THROTTLES = list_of(
    record(model.ThrottleDevice, same(major=u32, minor=u32, rate=u64), "major", "minor", "rate")
)
_BLOCK_IO = record(
    model.BlockIo,
    {
        "weight": ("weight", u16),
        "leafWeight": ("leaf_weight", u16),
        "weightDevice": ("weight_device", _WEIGHT_DEVICES),
        "throttleReadBpsDevice": ("throttle_read_bps_device", _THROTTLES),
        "throttleWriteBpsDevice": ("throttle_write_bps_device", _THROTTLES),
        "throttleReadIOPSDevice": ("throttle_read_iops_device", _THROTTLES),
        "throttleWriteIOPSDevice": ("throttle_write_iops_device", _THROTTLES),
    },
)
_MEMORY = record(
    model.Memory,
    same(limit=i64, reservation=i64, swap=i64, kernel=i64, swappiness=u64)
    | {
        "kernelTCP": ("kernel_tcp", i64),
        "disableOOMKiller": ("disable_oom_killer", flag),
        "useHierarchy": ("use_hierarchy", flag),
        "checkBeforeUpdate": ("check_before_update", flag),
    },
)
_CPU = record(
    model.Cpu,
    same(shares=u64, quota=i64, burst=u64, period=u64, cpus=optional, mems=optional, idle=i64)
    | {"realtimeRuntime": ("realtime_runtime", i64), "realtimePeriod": ("realtime_period", u64)},
)
_DEVICE_RULES = list_of(
    record(
        model.DeviceRule,
        same(
            allow=flag, type=one_of("a", "b", "c"), major=_device_number, minor=_device_number, access=_access
        ),
        "access",
    )
)
_PRIORITIES = list_of(record(model.InterfacePriority, same(name=filled, priority=u32), "name", "priority"))
_NETWORK = record(model.Network, {"classID": ("class_id", u32), "priorities": ("priorities", _PRIORITIES)})
_RDMA = record(model.Rdma, {"hcaHandles": ("hca_handles", u32), "hcaObjects": ("hca_objects", u32)})
_HUGEPAGE = record(
    model.HugepageLimit, {"pageSize": ("page_size", file_name), "limit": ("limit", u64)}, "pageSize", "limit"
)
_RESOURCES = record(
    model.Resources,
    {
        "devices": ("devices", _DEVICE_RULES),
        "memory": ("memory", _MEMORY),
        "cpu": ("cpu", _CPU),
        "pids": ("pids", record(model.Pids, same(limit=i64))),
        "blockIO": ("block_io", _BLOCK_IO),
        "hugepageLimits": ("hugepage_limits", list_of(_HUGEPAGE)),
        "network": ("network", _NETWORK),
        "rdma": ("rdma", map_of(_RDMA)),
        "unified": ("unified", map_of(text, file_name)),
    },
)

# ---- linux -------------------------------------------------------------------------------------


def _useful(seccomp: model.Seccomp) -> model.Seccomp | None:
    if seccomp.default_action:
        return seccomp
    if seccomp.syscalls:
        raise Wrong("is missing", "defaultAction")
    return None  # neither an action nor a rule: runc takes that as no seccomp at all


_NAMESPACE_TYPE = one_of("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")
_NAMESPACE = record(model.Namespace, same(type=_NAMESPACE_TYPE, path=optional_absolute), "type")
_ID_MAPPINGS = list_of(
    record(
        model.IdMapping,
        {
            "containerID": ("container_id", u32),
            "hostID": ("host_id", u32),
            "size": ("size", integer(1, (1 << 32) - 1)),
        },
        "containerID",
        "hostID",
        "size",
    )
)
# The kernel's dev_t has 12 and 20 bits; mknod(2) would silently make another device of larger numbers.
_DEVICE = record(
    model.Device,
    same(
        path=absolute,
        type=one_of("b", "c", "u", "p"),
        major=integer(0, (1 << 12) - 1),
        minor=integer(0, (1 << 20) - 1),
        uid=numeric_id,
        gid=numeric_id,
    )
    | {"fileMode": ("file_mode", u32)},
    "path",
    "type",
)
_SECCOMP_ARGUMENT = record(
    model.SeccompArgument,
    same(index=integer(0, 5), value=u64, op=filled) | {"valueTwo": ("value_two", u64)},
    "index",
    "value",
    "op",
)
_SECCOMP_RULE = record(
    model.SeccompRule,
    same(names=texts, action=filled, args=list_of(_SECCOMP_ARGUMENT)) | {"errnoRet": ("errno_ret", u16)},
    "names",
    "action",
)
_SECCOMP = record(
    lambda **found: model.Seccomp(**({"default_action": ""} | found)),
    same(architectures=texts, flags=texts, syscalls=list_of(_SECCOMP_RULE))
    | {
        "defaultAction": ("default_action", text),
        "defaultErrnoRet": ("default_errno_ret", u16),
        "listenerPath": ("listener_path", optional_absolute),
        "listenerMetadata": ("listener_metadata", optional),
    },
    then=_useful,
)
_INTEL_RDT = record(
    model.IntelRdt,
    {
        "closID": ("clos_id", optional),
        "schemata": ("schemata", texts),
        "l3CacheSchema": ("l3_cache_schema", optional),
        "memBwSchema": ("mem_bw_schema", optional),
        "enableMonitoring": ("enable_monitoring", flag),
    },
)
_PERSONALITY = record(model.Personality, same(domain=one_of("LINUX", "LINUX32"), flags=texts), "domain")
_TIME_OFFSET = record(model.TimeOffset, same(secs=i64, nanosecs=integer(0, 999_999_999)))
_PROPAGATIONS = ("private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable")
_LINUX = record(
    model.Linux,
    same(
        namespaces=list_of(_NAMESPACE),
        devices=list_of(_DEVICE),
        resources=_RESOURCES,
        seccomp=_SECCOMP,
        sysctl=map_of(text, filled),
        personality=_PERSONALITY,
    )
    | {
        "uidMappings": ("uid_mappings", _ID_MAPPINGS),
        "gidMappings": ("gid_mappings", _ID_MAPPINGS),
        "cgroupsPath": ("cgroups_path", optional),
        "maskedPaths": ("masked_paths", list_of(absolute)),
        "readonlyPaths": ("readonly_paths", list_of(absolute)),
        "rootfsPropagation": ("rootfs_propagation", one_of("", *_PROPAGATIONS)),
        "mountLabel": ("mount_label", optional),
        "intelRdt": ("intel_rdt", _INTEL_RDT),
        "netDevices": ("net_devices", map_of(record(model.NetDevice, same(name=optional)), filled)),
        "timeOffsets": ("time_offsets", map_of(_TIME_OFFSET, one_of("monotonic", "boottime"))),
        "memoryPolicy": (
            "memory_policy",
            record(model.MemoryPolicy, same(mode=optional, nodes=optional, flags=texts)),
        ),
    },
)

# ---- the whole ---------------------------------------------------------------------------------


def _version(value: Any) -> str:
    made = filled(value)
    if made.split(".")[0] != "1":
        raise Wrong(f"{shown(made)} is not a version 1 of the runtime specification")
    return made


_MOUNT = record(
    model.Mount,
    same(destination=filled, type=optional, source=optional, options=texts)
    | {"uidMappings": ("uid_mappings", _ID_MAPPINGS), "gidMappings": ("gid_mappings", _ID_MAPPINGS)},
    "destination",
)
_SPEC = record(
    model.Spec,
    {
        "ociVersion": ("oci_version", _version),
        "process": ("process", _PROCESS),
        "root": ("root", record(model.Root, same(path=filled, readonly=flag), "path")),
        "hostname": ("hostname", optional),
        "domainname": ("domainname", optional),
        "mounts": ("mounts", list_of(_MOUNT)),
        "hooks": (
            "hooks",
            record(
                model.Hooks,
                {
                    "prestart": ("prestart", _HOOKS),
                    "createRuntime": ("create_runtime", _HOOKS),
                    "createContainer": ("create_container", _HOOKS),
                    "startContainer": ("start_container", _HOOKS),
                    "poststart": ("poststart", _HOOKS),
                    "poststop": ("poststop", _HOOKS),
                },
            ),
        ),
        "annotations": ("annotations", map_of(text)),
        "linux": ("linux", _LINUX),
    },
    "ociVersion",
    "process",
    "root",
)
