"""What this runtime can do, as the OCI features document (runtime-spec, features.md).

It says what the code does, whatever this machine has: so the lists are the very tables that the code goes by,
the private ones included.
"""

from __future__ import annotations

from runtime.affinity import ANNOTATION
from runtime.hooks import MOMENTS
from runtime.limits import _MEMORY_FLAGS, _MEMORY_MODES
from runtime.linux.capability import NAMES as CAPABILITIES
from runtime.namespaces import KINDS
from runtime.rootfs.options import _FLAGS, _RECURSIVE, COPY_UP, ID_MAPPED, PROPAGATION
from runtime.seccomp import _ACTIONS, _ARCHITECTURES, _OPERATORS
from runtime.seccomp import _FLAGS as _FILTER_FLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OLDEST_SPEC = "1.0.0"
SPEC_VERSION = "1.3.0"


def document() -> dict[str, Any]:
    """The features document, without annotations of whoever asks."""
    yes = {"enabled": True}
    return {
        "ociVersionMin": OLDEST_SPEC,
        "ociVersionMax": SPEC_VERSION,
        "hooks": list(MOMENTS),
        "mountOptions": sorted({*_FLAGS, *_RECURSIVE, *PROPAGATION, *ID_MAPPED, COPY_UP}),
        "linux": {
            "namespaces": sorted(KINDS),
            "capabilities": list(CAPABILITIES),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": True},
            "seccomp": {
                **yes,
                "actions": sorted(_ACTIONS),
                "operators": sorted(_OPERATORS),
                "archs": sorted(_ARCHITECTURES),
                "knownFlags": list(_FILTER_FLAGS),
                "supportedFlags": list(_FILTER_FLAGS),
            },
            "apparmor": dict(yes),
            "selinux": dict(yes),
            "intelRdt": {**yes, "schemata": True, "monitoring": True},
            "memoryPolicy": {"modes": sorted(_MEMORY_MODES), "flags": sorted(_MEMORY_FLAGS)},
            "mountExtensions": {"idmap": dict(yes)},
            "netDevices": dict(yes),
        },
        # What a config's annotations can make the runtime do differently; "." at the end is for a prefix.
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property.", ANNOTATION],
    }
