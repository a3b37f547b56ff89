"""What a shim acts on of the pod's configuration, which containerd sends along with CreateSandbox.

Parts of cri-api runtime/v1: fields that nobody reads here are left out, and the codec skips them.
"""

# ruff: noqa: D101 - the protocol says what a message is for, and repeating it would not explain it
from __future__ import annotations

from shim.api.message import Message, enum, message, messages, string, string_map, strings, uint32

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
    userns_options: UserNamespace | None = message(5, UserNamespace)


class LinuxSandboxSecurityContext(Message):
    NAME = "runtime.v1.LinuxSandboxSecurityContext"
    namespace_options: NamespaceOption | None = message(1, NamespaceOption)


class LinuxPodSandboxConfig(Message):
    NAME = "runtime.v1.LinuxPodSandboxConfig"
    cgroup_parent: str = string(1)
    security_context: LinuxSandboxSecurityContext | None = message(2, LinuxSandboxSecurityContext)
    sysctls: Mapping[str, str] = string_map(3)


class DnsConfig(Message):
    NAME = "runtime.v1.DNSConfig"
    servers: Sequence[str] = strings(1)
    searches: Sequence[str] = strings(2)
    options: Sequence[str] = strings(3)


class PodSandboxConfig(Message):
    NAME = "runtime.v1.PodSandboxConfig"
    hostname: str = string(2)
    dns_config: DnsConfig | None = message(4, DnsConfig)
    linux: LinuxPodSandboxConfig | None = message(8, LinuxPodSandboxConfig)
