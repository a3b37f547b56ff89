"""The pod's configuration, which containerd sends along with CreateSandbox: some of it is done, all of it is shown.

Of cri-api runtime/v1, without what is Windows'.
"""

# ruff: noqa: D101 - the protocol says what a message is for, and repeating it would not explain it
from __future__ import annotations

from shim.api.message import (
    Message,
    bool_,
    enum,
    int32,
    int64,
    int64s,
    message,
    messages,
    string,
    string_map,
    strings,
    uint32,
    uint64,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# runtime.v1.NamespaceMode
POD = 0
CONTAINER = 1
NODE = 2
TARGET = 3


class IdMapping(Message):
    NAME = "runtime.v1.IDMapping"
    host_id: int = uint32(1)
    container_id: int = uint32(2)
    length: int = uint32(3)


class UserNamespace(Message):
    NAME = "runtime.v1.UserNamespace"
    mode: int = enum(1)
    uids: Sequence[IdMapping] = messages(2, IdMapping)
    gids: Sequence[IdMapping] = messages(3, IdMapping)


class NamespaceOption(Message):
    NAME = "runtime.v1.NamespaceOption"
    network: int = enum(1)
    pid: int = enum(2)
    ipc: int = enum(3)
    target_id: str = string(4)
    userns_options: UserNamespace | None = message(5, UserNamespace)


class SELinuxOption(Message):
    NAME = "runtime.v1.SELinuxOption"
    user: str = string(1)
    role: str = string(2)
    type: str = string(3)
    level: str = string(4)


class Int64Value(Message):
    NAME = "runtime.v1.Int64Value"
    value: int = int64(1)


class SecurityProfile(Message):
    NAME = "runtime.v1.SecurityProfile"
    profile_type: int = enum(1)
    localhost_ref: str = string(2)


class LinuxSandboxSecurityContext(Message):
    NAME = "runtime.v1.LinuxSandboxSecurityContext"
    namespace_options: NamespaceOption | None = message(1, NamespaceOption)
    selinux_options: SELinuxOption | None = message(2, SELinuxOption)
    run_as_user: Int64Value | None = message(3, Int64Value)
    readonly_rootfs: bool = bool_(4)
    supplemental_groups: Sequence[int] = int64s(5)
    privileged: bool = bool_(6)
    seccomp_profile_path: str = string(7)
    run_as_group: Int64Value | None = message(8, Int64Value)
    seccomp: SecurityProfile | None = message(9, SecurityProfile)
    apparmor: SecurityProfile | None = message(10, SecurityProfile)
    supplemental_groups_policy: int = enum(11)


class HugepageLimit(Message):
    NAME = "runtime.v1.HugepageLimit"
    page_size: str = string(1)
    limit: int = uint64(2)


class LinuxContainerResources(Message):
    NAME = "runtime.v1.LinuxContainerResources"
    cpu_period: int = int64(1)
    cpu_quota: int = int64(2)
    cpu_shares: int = int64(3)
    memory_limit_in_bytes: int = int64(4)
    oom_score_adj: int = int64(5)
    cpuset_cpus: str = string(6)
    cpuset_mems: str = string(7)
    hugepage_limits: Sequence[HugepageLimit] = messages(8, HugepageLimit)
    unified: Mapping[str, str] = string_map(9)
    memory_swap_limit_in_bytes: int = int64(10)


class LinuxPodSandboxConfig(Message):
    NAME = "runtime.v1.LinuxPodSandboxConfig"
    cgroup_parent: str = string(1)
    security_context: LinuxSandboxSecurityContext | None = message(2, LinuxSandboxSecurityContext)
    sysctls: Mapping[str, str] = string_map(3)
    overhead: LinuxContainerResources | None = message(4, LinuxContainerResources)
    resources: LinuxContainerResources | None = message(5, LinuxContainerResources)


class DnsConfig(Message):
    NAME = "runtime.v1.DNSConfig"
    servers: Sequence[str] = strings(1)
    searches: Sequence[str] = strings(2)
    options: Sequence[str] = strings(3)


class PortMapping(Message):
    NAME = "runtime.v1.PortMapping"
    protocol: int = enum(1)
    container_port: int = int32(2)
    host_port: int = int32(3)
    host_ip: str = string(4)


class PodSandboxMetadata(Message):
    NAME = "runtime.v1.PodSandboxMetadata"
    name: str = string(1)
    uid: str = string(2)
    namespace: str = string(3)
    attempt: int = uint32(4)


class PodSandboxConfig(Message):
    NAME = "runtime.v1.PodSandboxConfig"
    metadata: PodSandboxMetadata | None = message(1, PodSandboxMetadata)
    hostname: str = string(2)
    log_directory: str = string(3)
    dns_config: DnsConfig | None = message(4, DnsConfig)
    port_mappings: Sequence[PortMapping] = messages(5, PortMapping)
    labels: Mapping[str, str] = string_map(6)
    annotations: Mapping[str, str] = string_map(7)
    linux: LinuxPodSandboxConfig | None = message(8, LinuxPodSandboxConfig)
