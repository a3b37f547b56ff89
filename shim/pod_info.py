"""What is told of a pod that has no pause container, where containerd's own controller tells of that container.

`spec_of` is an OCI config with what the pod itself has and nothing of a process: containerd keeps it and shows it to
NRI plugins, who find the pod's network namespace in it. `info_of` is what `crictl inspectp` shows. What only containerd
knows is not in there: the pod's addresses, the name of its handler, the result of CNI. Nor is what only a pause
container has: an image and a snapshot.
"""

from __future__ import annotations

import os

from runtime.spec.json import dump
from shim.api.message import MESSAGE, MESSAGES, STRING_MAP, Message
from shim.sandbox import READY
from shim.version import RUNTIME_NAME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.api.options import Options
    from shim.pod_plan import PodPlan
    from shim.sandbox import Sandbox

_OCI_VERSION = "1.2.0"
_A_NAMESPACE = "/proc/self/ns/net"
_PREFIX = "io.kubernetes.cri."


def spec_of(plan: PodPlan) -> dict[str, Any]:
    """The pod as an OCI config. Namespaces without a path are the pod's own, which no file names."""
    paths = {"network": plan.netns_path}
    linux: dict[str, Any] = {
        "namespaces": [
            {"type": name, "path": paths[name]} if paths.get(name) else {"type": name} for name in plan.own
        ]
    }
    if plan.sysctls:
        linux["sysctl"] = {write.name: write.value for write in plan.sysctls}
    if plan.shares_pids and plan.cgroups_path():
        linux["cgroupsPath"] = plan.cgroups_path()
    for key, mappings in (("uidMappings", plan.uid_mappings), ("gidMappings", plan.gid_mappings)):
        if mappings:
            linux[key] = [
                {"containerID": each.container_id, "hostID": each.host_id, "size": each.size}
                for each in mappings
            ]
    spec = {"ociVersion": _OCI_VERSION, "annotations": _annotations(plan), "linux": linux}
    return {**spec, "hostname": plan.hostname} if plan.hostname else spec


def _annotations(plan: PodPlan) -> dict[str, str]:
    """Those that containerd gives to every pause container."""
    config = plan.config
    found = {
        "container-type": "sandbox",
        "sandbox-id": plan.id,
        "sandbox-log-directory": config.log_directory,
    }
    if (metadata := config.metadata) is not None:
        found["sandbox-namespace"] = metadata.namespace
        found["sandbox-uid"] = metadata.uid
        found["sandbox-name"] = metadata.name
    if config.linux is not None and (limits := config.linux.resources) is not None:
        found["sandbox-cpu-period"] = str(limits.cpu_period)
        found["sandbox-cpu-quota"] = str(limits.cpu_quota)
        found["sandbox-cpu-shares"] = str(limits.cpu_shares)
        found["sandbox-memory"] = str(limits.memory_limit_in_bytes)
    return {f"{_PREFIX}{name}": value for name, value in found.items()}


def info_of(sandbox: Sandbox, options: Options) -> dict[str, str]:
    """The key info in the words of containerd's own SandboxInfo, which reads it, and what we have to say besides.

    `options` are those of the pod's handler.
    """
    plan = sandbox.plan
    theirs = {
        "pid": sandbox.pid,
        "processStatus": "running" if sandbox.status == READY else sandbox.status,
        "netNamespaceClosed": bool(plan.netns_path) and not _is_namespace(plan.netns_path),
        "runtimeType": RUNTIME_NAME,
        "runtimeOptions": plain(options),
        "config": plain(plan.config),
        "runtimeSpec": spec_of(plan),
    }
    ours = {
        "status": sandbox.status,
        "shim": os.getpid(),
        "landlord": 0 if sandbox.landlord is None else sandbox.landlord.pid,
        "namespaces": sandbox.namespaces(),
        "files": sandbox.files.directory,
    }
    return {"info": dump(theirs).decode(), "manor": dump(ours).decode()}


def _is_namespace(path: str) -> bool:
    """Whether a namespace is mounted there: all of them lie on a file system of their own."""
    try:
        return os.stat(path).st_dev == os.stat(_A_NAMESPACE).st_dev
    except OSError:
        return False


def plain(message: Message) -> dict[str, Any]:
    """A message as the JSON that Go's encoding/json has for it: proto's names, numbers for enums, no defaults."""
    found: dict[str, Any] = {}
    for field in message.FIELDS:
        value = getattr(message, field.name)
        if field.kind == MESSAGE:
            if value is not None:
                found[field.name] = plain(value)
        elif not value:
            continue
        elif field.kind == MESSAGES:
            found[field.name] = [plain(each) for each in value]
        elif field.kind == STRING_MAP:
            found[field.name] = dict(value)
        else:
            found[field.name] = list(value) if isinstance(value, tuple) else value
    return found
