"""What a pod is to be, from what containerd asks for, and what that makes of its containers' configs.

Pure, but for `Tenancy.adapt` where there is SELinux.

containerd names a pod's namespaces by a process, `/proc/PID/ns/net`, and there need be none: the pid that it is
told is the shim's own then, and in the config of each container such a path stands for the pod's namespace that
the shim holds open. It also leaves to the shim what the podsandbox controller would have mounted: the host name,
/etc/hosts, /etc/resolv.conf and the /dev/shm that the pod's containers share.
"""

from __future__ import annotations

from runtime.errors import ConfigError, InvalidArgument
from runtime.namespaces import KINDS
from runtime.record import Record, replace
from runtime.spec.model import IdMapping, Linux, Mount, Namespace, Process, Root, Spec
from runtime.sysctls import plan_sysctls
from runtime.user_mapping import plan_mapping
from shim.api import pod_config
from shim.api.codec import CodecError
from shim.api.pod_config import CONTAINER, NODE, POD, NamespaceOption, PodSandboxConfig
from shim.api.types import unpack
from shim.pod_files import share_label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.sysctls import SysctlWrite
    from runtime.user_mapping import UserMapping
    from shim.api.sandbox import CreateSandboxRequest

# What containerd 2 gives every pod with a network of its own (enable_unprivileged_ports and _icmp, on by default):
# with a sandboxer of another kind it leaves the pod's sysctls to that one.
_PING = "net.ipv4.ping_group_range"
_UNPRIVILEGED = {"net.ipv4.ip_unprivileged_port_start": "0", _PING: "0 2147483647"}
_FILES = ("hostname", "hosts", "resolv.conf")
# Of these a pod can have one of its own or share the node's.
_CHOICES = ("network", "uts", "ipc", "pid")
_SHM = "/dev/shm"  # noqa: S108 -- the container's
_WHERE = "linux.namespaces"


class PodPlan(Record):
    """A pod. `own` are the OCI names of the namespaces that it does not share with the node.

    `netns_path` is the network namespace that the caller has made; "" with "network" in `own` is a new one.
    `dns` is the text of resolv.conf, None for the node's. The maps of ids are those of a user namespace of its own.
    `config` is what all this was read from.
    """

    id: str
    own: tuple[str, ...]
    netns_path: str = ""
    hostname: str = ""
    sysctls: tuple[SysctlWrite, ...] = ()
    dns: str | None = None
    cgroup_parent: str = ""
    private_pids: bool = True
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    config: PodSandboxConfig = PodSandboxConfig()

    def root_ids(self) -> tuple[int, int]:
        """Uid and gid of the pod's root as the node has them."""
        return _host_id_of_root(self.uid_mappings), _host_id_of_root(self.gid_mappings)

    def mapping(self) -> UserMapping:
        """The maps as the kernel takes them. ConfigError for what are none."""
        return plan_mapping(self.uid_mappings, self.gid_mappings)

    @property
    def new(self) -> int:
        """The namespaces to be made for the pod, as CLONE_NEW* flags; that of its processes comes with its landlord.

        The caller's network namespace comes with a user namespace: the one that it belongs to.
        """
        flags = 0
        for name in self.own:
            if name != "pid" and not (self.netns_path and name in ("network", "user")):
                flags |= KINDS[name][0]
        return flags

    @property
    def shares_pids(self) -> bool:
        """Whether its containers are to see each other's processes."""
        return "pid" in self.own

    def cgroups_path(self) -> str:
        """Where the landlord's cgroup is to be: beside those of the containers, and named as containerd names them."""
        parent = self.cgroup_parent.rstrip("/")
        base = parent.rpartition("/")[2]
        if base.endswith(".slice"):
            return f"{base}:cri-containerd:{self.id}"
        return f"{parent}/{self.id}" if parent else ""


def _host_id_of_root(mappings: tuple[IdMapping, ...]) -> int:
    return next((each.host_id for each in mappings if each.container_id == 0), 0)


class Tenancy(Record):
    """What a container of a pod is given: `paths` to the pod's namespaces by OCI name, `files` by destination.

    `pid` is the one that containerd takes for the pod's; `shm` is the directory that is to be /dev/shm, "" for none.
    `fds` are the descriptors that `paths` name, to be kept by who opens them.
    """

    pid: int
    paths: Mapping[str, str]
    files: Mapping[str, str]
    shm: str = ""
    private_pids: bool = True
    fds: tuple[int, ...] = ()

    def adapt(self, spec: Spec) -> Spec:
        """`adapt` for this pod, whose files are made usable for the container. In who creates it; MountError."""
        if spec.linux.mount_label:
            share_label([*self.files.values(), *filter(None, (self.shm,))], spec.linux.mount_label)
        return adapt(spec, self)


def plan_pod(request: CreateSandboxRequest) -> PodPlan:
    """The pod of `request`. InvalidArgument for options that are none, or a host name that would be the node's;
    ConfigError for sysctls that it may not set.
    """
    config = _config_of(request)
    linux = config.linux or pod_config.LinuxPodSandboxConfig()
    security = linux.security_context
    asked = (security.namespace_options if security is not None else None) or NamespaceOption()
    if request.options is None:  # whoever says nothing of containers that see each other does not mean it
        asked = NamespaceOption(pid=CONTAINER)
    for name, mode in (("network", asked.network), ("pid", asked.pid), ("ipc", asked.ipc)):
        if mode not in (POD, NODE) and not (name == "pid" and mode == CONTAINER):
            raise InvalidArgument(f"pod: mode {mode} of its {name} namespace is not one that a pod can have")
    if asked.network == NODE and config.hostname:
        raise InvalidArgument(
            f"pod: its host name is to be {config.hostname!r}, and in the node's network it has the node's"
        )
    own: tuple[str, ...] = () if asked.network == NODE else ("network", "uts")
    own += () if asked.ipc == NODE else ("ipc",)
    own += ("pid",) if asked.pid == POD else ()
    users = asked.userns_options
    if users is not None and users.mode == NODE:
        users = None
    own += ("user",) if users is not None else ()
    netns_path = request.netns_path if "network" in own else ""
    plan = PodPlan(
        id=request.sandbox_id,
        own=own,
        netns_path=netns_path,
        hostname=config.hostname,
        sysctls=_sysctls(own, netns_path, linux.sysctls),
        dns=None if config.dns_config is None else resolver_text(config.dns_config),
        cgroup_parent=linux.cgroup_parent,
        private_pids=asked.pid == CONTAINER,
        uid_mappings=_id_mappings(users.uids) if users is not None else (),
        gid_mappings=_id_mappings(users.gids) if users is not None else (),
        config=config,
    )
    if users is not None:
        plan.mapping()
    return plan


def _id_mappings(asked: Sequence[pod_config.IdMapping]) -> tuple[IdMapping, ...]:
    return tuple([IdMapping(each.container_id, each.host_id, each.length) for each in asked])


def _config_of(request: CreateSandboxRequest) -> PodSandboxConfig:
    if request.options is None or not request.options.type_url:
        return PodSandboxConfig()
    try:
        return unpack(request.options, PodSandboxConfig)
    except CodecError as error:
        raise InvalidArgument(f"options of pod {request.sandbox_id}: {error}") from error


def _sysctls(own: tuple[str, ...], netns_path: str, asked: Mapping[str, str]) -> tuple[SysctlWrite, ...]:
    namespaces = tuple(
        [Namespace(name, netns_path or None if name == "network" else None) for name in own if name != "pid"]
    )
    wanted = dict(asked)
    if "network" in own:
        wanted = {**_UNPRIVILEGED, **asked}
        if "user" in own and _PING not in asked:  # not every group of such a range is one there
            del wanted[_PING]
    return plan_sysctls(Spec("", Process(), Root(""), linux=Linux(namespaces=namespaces, sysctl=wanted)))


def resolver_text(config: pod_config.DnsConfig) -> str:
    """resolv.conf(5) with what the pod's DNS is to be; nothing at all makes an empty file."""
    lines = [f"search {' '.join(config.searches)}"] if config.searches else []
    lines += [f"nameserver {server}" for server in config.servers]
    lines += [f"options {' '.join(config.options)}"] if config.options else []
    return "".join(f"{line}\n" for line in lines)


def adapt(spec: Spec, tenancy: Tenancy) -> Spec:
    """The config of a container of the pod, with the pod's namespaces and files where containerd only alludes to them.

    ConfigError for one that asks for PIDs to be shared in a pod that shares none.
    """
    namespaces: list[Namespace] = []
    joined: list[str] = []
    for namespace in spec.linux.namespaces:
        if namespace.path != f"/proc/{tenancy.pid}/ns/{KINDS[namespace.type][1]}":
            namespaces.append(namespace)
            continue
        path = tenancy.paths.get(namespace.type)
        if path is not None:
            namespaces.append(replace(namespace, path=path))
            joined.append(namespace.type)
        elif namespace.type not in _CHOICES or (namespace.type == "pid" and tenancy.private_pids):
            # Not left out: it would be the node's.
            raise ConfigError(_WHERE, f"the containers of this pod do not share a {namespace.type} namespace")
        # Else it is meant to be the node's, which a container has that names none.
    return replace(
        spec,
        mounts=_mounts(spec, tenancy, shares_memory="ipc" in joined),
        linux=replace(spec.linux, namespaces=tuple(namespaces)),
    )


def _mounts(spec: Spec, tenancy: Tenancy, shares_memory: bool) -> tuple[Mount, ...]:
    mounts = [
        _bind(_SHM, tenancy.shm) if shares_memory and tenancy.shm and _is_default_shm(mount) else mount
        for mount in spec.mounts
    ]
    there = {mount.destination.rstrip("/") for mount in mounts}
    access = "ro" if spec.root.readonly else "rw"
    for name in _FILES:
        destination = f"/etc/{name}"
        if destination not in there and destination in tenancy.files:
            mounts.append(_bind(destination, tenancy.files[destination], access))
    return tuple(mounts)


def _is_default_shm(mount: Mount) -> bool:
    """The one that containerd puts into every config; a volume of the pod's own is a bind mount."""
    return mount.destination.rstrip("/") == _SHM and mount.type == "tmpfs" and mount.source == "shm"


def _bind(destination: str, source: str, access: str = "rw") -> Mount:
    return Mount(destination, "bind", source, ("rbind", "rprivate", access))
