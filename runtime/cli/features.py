"""features: what this runtime can do, as the OCI features document (runtime-spec, features.md).

It says what the code does, whatever this machine has: so the lists are the very tables that the code goes by,
the private ones included.
"""

from __future__ import annotations

from runtime.affinity import ANNOTATION
from runtime.cli.arguments import Verb
from runtime.cli.help import VERSION
from runtime.cli.output import SPEC_VERSION, indented, say
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

    from runtime.cli.arguments import Call

_OLDEST_SPEC = "1.0.0"
_VERSION_ANNOTATION = "io.manor.version"


def document() -> dict[str, Any]:
    """The features document."""
    yes = {"enabled": True}
    return {
        "ociVersionMin": _OLDEST_SPEC,
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
        "annotations": {_VERSION_ANNOTATION: VERSION},
        # What a config's annotations can make the runtime do differently; "." at the end is for a prefix.
        "potentiallyUnsafeConfigAnnotations": ["org.systemd.property.", ANNOTATION],
    }


def show_features(_call: Call) -> int:
    """Print the document."""
    say(indented(document(), "    ") + "\n")
    return 0


VERBS = {
    "features": Verb(
        "features",
        "",
        "show the enabled features",
        (),
        show_features,
        about="The result is JSON, as features.md of the OCI runtime specification defines it.",
    )
}
