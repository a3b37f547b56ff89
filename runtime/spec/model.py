"""The OCI runtime-spec 1.3 config.json as frozen records, its camelCase keys in snake_case.

Lists are tuples, JSON maps are dicts. What the file leaves out is None, an empty tuple, False or the
specification's default; an empty string where a string is optional counts as left out. `Spec.linux` and
`Linux.resources` are always there, so that a reader need not ask. Only `load` builds these from a file,
and has checked by then that types, ranges and needed fields are right.

Source: https://github.com/opencontainers/runtime-spec/tree/v1.3.0, config.md and config-linux.md.
"""

from __future__ import annotations

from runtime.record import Record

# ---- config.md ---------------------------------------------------------------------------------


class Root(Record):
    """The root file system: `path` absolute or relative to the bundle."""

    path: str
    readonly: bool = False


class IdMapping(Record):
    """One line of a uid_map or gid_map."""

    container_id: int
    host_id: int
    size: int


class Mount(Record):
    """One entry of `mounts`, in the order in which they are made."""

    destination: str
    type: str | None = None
    source: str | None = None
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


class ConsoleSize(Record):
    """A terminal's size in characters."""

    height: int
    width: int


class User(Record):
    """Numeric ids as the container's user namespace sees them; `umask` None means 0022."""

    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()


class Capabilities(Record):
    """Capability names ("CAP_CHOWN") by set; whether the kernel knows them is not judged here."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


class Rlimit(Record):
    """`type` is a name such as "RLIMIT_NOFILE"; 2**64-1 is no limit."""

    type: str
    soft: int
    hard: int


class Scheduler(Record):
    """sched_setattr(2); times in nanoseconds."""

    policy: str
    nice: int = 0
    priority: int = 0
    flags: tuple[str, ...] = ()
    runtime: int = 0
    deadline: int = 0
    period: int = 0


class IoPriority(Record):
    """ioprio_set(2): `io_class` is the key "class", such as "IOPRIO_CLASS_BE"."""

    io_class: str
    priority: int = 0


class ExecCpuAffinity(Record):
    """CPU lists ("0-3,7") for a tenant before and after it joins the cgroup."""

    initial: str | None = None
    final: str | None = None


class Process(Record):
    """What to run: `process` of a config.json, or the whole file of an exec."""

    terminal: bool = False
    console_size: ConsoleSize | None = None
    user: User = User()
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    cwd: str = "/"
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    oom_score_adj: int | None = None
    apparmor_profile: str | None = None
    selinux_label: str | None = None
    scheduler: Scheduler | None = None
    io_priority: IoPriority | None = None
    exec_cpu_affinity: ExecCpuAffinity | None = None


class Hook(Record):
    """A program of the host's; `timeout` in seconds."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Hooks(Record):
    """Hooks by the moment they run at, each in order."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


# ---- config-linux.md: resources ----------------------------------------------------------------


class DeviceRule(Record):
    """One rule of the device cgroup: `type` of "a", "b", "c"; None as a number is any; `access` of "rwm"."""

    allow: bool = False
    type: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


class Memory(Record):
    """Limits in bytes, -1 for none."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = None
    swappiness: int | None = None
    disable_oom_killer: bool | None = None
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


class Cpu(Record):
    """Times in microseconds; `cpus` and `mems` are lists ("0-3,7")."""

    shares: int | None = None
    quota: int | None = None
    burst: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str | None = None
    mems: str | None = None
    idle: int | None = None


class Pids(Record):
    """`limit` of tasks; -1 is none."""

    limit: int | None = None


class WeightDevice(Record):
    """A block device's share."""

    major: int
    minor: int
    weight: int | None = None
    leaf_weight: int | None = None


class ThrottleDevice(Record):
    """A block device's rate, in bytes or operations per second."""

    major: int
    minor: int
    rate: int


class BlockIo(Record):
    """The key `blockIO`."""

    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: tuple[WeightDevice, ...] = ()
    throttle_read_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_write_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_read_iops_device: tuple[ThrottleDevice, ...] = ()
    throttle_write_iops_device: tuple[ThrottleDevice, ...] = ()


class HugepageLimit(Record):
    """`page_size` as the kernel writes it ("2MB"), `limit` in bytes."""

    page_size: str
    limit: int


class InterfacePriority(Record):
    """A network interface's priority (net_prio)."""

    name: str
    priority: int


class Network(Record):
    """Traffic class and priorities (net_cls, net_prio)."""

    class_id: int | None = None
    priorities: tuple[InterfacePriority, ...] = ()


class Rdma(Record):
    """Limits of one RDMA device."""

    hca_handles: int | None = None
    hca_objects: int | None = None


class Resources(Record):
    """What the cgroups are asked for. An absent part leaves that controller alone."""

    devices: tuple[DeviceRule, ...] = ()
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    block_io: BlockIo | None = None
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    network: Network | None = None
    rdma: dict[str, Rdma] | None = None
    unified: dict[str, str] | None = None


# ---- config-linux.md: the rest -----------------------------------------------------------------


class Namespace(Record):
    """`type` is pid, network, mount, ipc, uts, user, cgroup or time; without a `path` it is a new one."""

    type: str
    path: str | None = None


class Device(Record):
    """A device node to make; `type` of "b", "c", "u", "p"; `file_mode` are the permission bits."""

    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class NetDevice(Record):
    """A network device to move into the container; `name` None keeps its name."""

    name: str | None = None


class TimeOffset(Record):
    """Of a clock in a new time namespace."""

    secs: int = 0
    nanosecs: int = 0


class SeccompArgument(Record):
    """One comparison of a rule."""

    index: int
    value: int
    op: str
    value_two: int = 0


class SeccompRule(Record):
    """One entry of `seccomp.syscalls`."""

    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    args: tuple[SeccompArgument, ...] = ()


class Seccomp(Record):
    """The key `linux.seccomp`; names are libseccomp's. Absent `flags` (None) differ from an empty list."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] | None = None
    listener_path: str | None = None
    listener_metadata: str | None = None
    syscalls: tuple[SeccompRule, ...] = ()


class Personality(Record):
    """personality(2): "LINUX" or "LINUX32"; no flag is defined."""

    domain: str
    flags: tuple[str, ...] = ()


class IntelRdt(Record):
    """Resource Director Technology."""

    clos_id: str | None = None
    schemata: tuple[str, ...] = ()
    l3_cache_schema: str | None = None
    mem_bw_schema: str | None = None
    enable_monitoring: bool = False


class MemoryPolicy(Record):
    """set_mempolicy(2): `mode` "MPOL_BIND" …, `nodes` a list ("0-1,3")."""

    mode: str | None = None
    nodes: str | None = None
    flags: tuple[str, ...] = ()


class Linux(Record):
    """The key `linux`."""

    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    devices: tuple[Device, ...] = ()
    cgroups_path: str | None = None
    resources: Resources = Resources()
    seccomp: Seccomp | None = None
    sysctl: dict[str, str] | None = None
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    rootfs_propagation: str | None = None
    mount_label: str | None = None
    personality: Personality | None = None
    intel_rdt: IntelRdt | None = None
    net_devices: dict[str, NetDevice] | None = None
    time_offsets: dict[str, TimeOffset] | None = None
    memory_policy: MemoryPolicy | None = None


class Spec(Record):
    """A whole config.json."""

    oci_version: str
    process: Process
    root: Root
    hostname: str | None = None
    domainname: str | None = None
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks | None = None
    annotations: dict[str, str] | None = None
    linux: Linux = Linux()
