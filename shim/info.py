"""What `-v` and `-info` print: which Manor this is, how it is protected, and what its runtime can do.

containerd asks `-info` once for each handler. The features are the OCI document of that name
(runtime-spec features.md); it lists what this version does, nothing it will do.
"""

from __future__ import annotations

import sys

from runtime.linux.capability import NUMBERS
from runtime.spec.json import dump
from shim.api.codec import encode
from shim.api.runtime_info import RuntimeInfo, RuntimeVersion
from shim.api.types import Any
from shim.version import RUNTIME_NAME, VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.start_request import Origin

FEATURES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
# What runtime/rootfs/options.py understands; a test asks it about each.
MOUNT_OPTIONS = """
    async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev nodiratime
    noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev
    rdiratime relatime remount rexec rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid
    rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw
    shared silent slave strictatime suid symfollow sync tmpcopyup unbindable
"""
# Not "user": containerd would give us pods whose mount sources a mapped root cannot reach.
_NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "time", "uts")


def version_text() -> bytes:
    """For people."""
    python = ".".join(str(number) for number in sys.version_info[:3])
    return f"containerd-shim-manor-v2:\n  Version:  {VERSION}\n  Python:   {python}\n".encode()


def runtime_info(origin: Origin) -> bytes:
    """For containerd: containerd.types.RuntimeInfo; the annotations are for people and `manor doctor`."""
    annotations = {"manor.seal": str(origin.seal)}
    if origin.alone_because:
        annotations["manor.without-warden"] = origin.alone_because
    return encode(
        RuntimeInfo(
            name=RUNTIME_NAME,
            version=RuntimeVersion(version=VERSION),
            features=Any(FEATURES_TYPE, dump(features())),
            annotations=annotations,
        )
    )


def features() -> dict[str, object]:
    """The OCI features document."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "mountOptions": MOUNT_OPTIONS.split(),
        "linux": {
            "namespaces": list(_NAMESPACES),
            "capabilities": sorted(NUMBERS),
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": True},
            "seccomp": {"enabled": True},
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
    }
