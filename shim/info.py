"""What `-v` and `-info` print: which Manor this is, how it is protected, and what its runtime can do.

containerd asks `-info` once for each handler. The features are the OCI document of that name
(runtime-spec features.md); it lists what this version does, nothing it will do.
"""

from __future__ import annotations

import sys

from runtime.features import document as runtime_features
from runtime.spec.json import dump
from shim import systemd
from shim.api.codec import encode
from shim.api.runtime_info import RuntimeInfo, RuntimeVersion
from shim.api.types import Any
from shim.version import RUNTIME_NAME, VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.start_request import Origin

FEATURES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def version_text() -> bytes:
    """For people."""
    python = ".".join(str(number) for number in sys.version_info[:3])
    return f"containerd-shim-manor-v2:\n  Version:  {VERSION}\n  Python:   {python}\n".encode()


def runtime_info(origin: Origin) -> bytes:
    """For containerd: containerd.types.RuntimeInfo; the annotations are for people."""
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
    """The OCI features document; the systemd cgroup driver is in it where it was loaded."""
    document = runtime_features()
    document["linux"]["cgroup"]["systemd"] = systemd.available()
    return document
