"""The runtimes a pod can ask for, and which of them the tests are run on: the one place that says so.

A handler is a table in containerd's configuration. `runc` is the reference on which the harness and the tests
prove themselves; `crun` is there where it runs; `manor` is what all this is for.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.harness import tools
from tests.harness.instances import hierarchies
from tests.harness.paths import SHIM

# The annotation a pod uses to say how its execs leave isolated CPUs; containerd passes it on only where listed.
AFFINITY_ANNOTATION = "org.opencontainers.runc.exec.isolated-cpu-affinity-transition"

MANOR = "manor"
MANOR_PODS = "manor-pods"
MANOR_STREAMS = "manor-streams"


@dataclass(frozen=True)
class Handler:
    """One runtime handler: its name, its shim, and the options of that shim; `sandboxer` only for containerd 2."""

    name: str
    runtime_type: str
    runtime_path: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    sandboxer: str = ""
    io_type: str = ""


def runc() -> Handler:
    """containerd's own shim with the runc that was built for this purpose."""
    return Handler(
        "runc", "io.containerd.runc.v2", options={"BinaryName": str(tools.program(tools.RUNC_1, "runc"))}
    )


def crun() -> Handler:
    """containerd's own shim with Debian's crun."""
    return Handler("crun", "io.containerd.runc.v2", options={"BinaryName": "/usr/bin/crun"})


def manor() -> Handler:
    """Manor, from this checkout."""
    return Handler(MANOR, "io.containerd.manor.v2", runtime_path=str(SHIM))


def manor_pods() -> Handler:
    """Manor holding the pod itself: containerd 2 can leave that to a shim."""
    return Handler(MANOR_PODS, "io.containerd.manor.v2", runtime_path=str(SHIM), sandboxer="shim")


def manor_streams() -> Handler:
    """Manor holding the pod, and standard streams over the shim's own socket instead of fifos."""
    return Handler(MANOR_STREAMS, "io.containerd.manor.v2", str(SHIM), {}, "shim", "streaming")


def running(handler: Handler, shim: Path) -> Handler:
    """That handler with `shim` in the place of the checkout's, where it has that."""
    return replace(handler, runtime_path=str(shim)) if handler.runtime_path == str(SHIM) else handler


def is_manor(name: str) -> bool:
    """Whether a handler of that name is Manor, however it is asked."""
    return name in (MANOR, MANOR_PODS, MANOR_STREAMS)


def manor_with_options() -> list[Handler]:
    """Manor with options, both ways that containerd has to give them: as text, and as runc's own message.

    Every node has them besides, for the tests of options.
    """
    options = {"NoNewKeyring": True, "IoGid": 4321, "BinaryName": "it's another"}
    return [
        Handler("manor-options", "io.containerd.manor.v2", str(SHIM), options),
        Handler("manor-as-runc", "io.containerd.runc.v2", str(SHIM), options),
    ]


def crun_runs() -> bool:
    """Whether crun works on this machine: Debian's 1.8 refuses a hybrid cgroup layout."""
    if not Path("/usr/bin/crun").exists():
        return False
    unified = Path("/sys/fs/cgroup/unified")
    if unified in hierarchies():
        return False
    with tempfile.TemporaryDirectory() as root:
        done = subprocess.run(["/usr/bin/crun", "--root", root, "list"], capture_output=True, check=False)
    return done.returncode == 0


def available() -> list[Handler]:
    """Every handler that can run here; all of them are in every node's configuration."""
    found = [runc()]
    if crun_runs():
        found.append(crun())
    if SHIM.exists():
        found += [manor(), manor_pods(), manor_streams()]
    return found


def under_test() -> list[str]:
    """The handlers that end-to-end tests run on: Manor, and runc, on which the tests are tested.

    `$MANOR_TEST_HANDLERS` chooses others, separated by commas.
    """
    chosen = os.environ.get("MANOR_TEST_HANDLERS", "manor,runc")
    return [name.strip() for name in chosen.split(",")]
