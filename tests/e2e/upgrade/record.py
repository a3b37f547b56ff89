"""Record what this version writes: `python -m tests.e2e.upgrade.record tests/recorded/VERSION`, as root.

To be run at a release, and the result to be committed: later versions are held to read it. Pids are made such as no
process can have, and directories are given names that nobody has, so that a test which removes what is recorded does
no harm.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from shim.api import task
from tests.e2e.shim.door import Door, opened
from tests.harness.bundles import Bundle
from tests.harness.paths import VENV
from tests.harness.waiting import eventually

POD = {"io.kubernetes.cri.sandbox-id": "pod1"}
NOBODY = 1 << 22  # no pid is as high
RULE = {"names": ["reboot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
PROFILE = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [RULE]}
SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")


def _with_all_terms(bundle: Bundle) -> None:
    """Let the container have what its execs, or its end, must know of."""
    config = bundle.config
    hook = {"path": "/bin/true", "args": ["true", "x"], "env": ["A=b"], "timeout": 5}
    config["hooks"] = {"poststop": [hook]}
    config["linux"] |= {"seccomp": PROFILE, "personality": {"domain": "LINUX"}}
    config["linux"]["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0", "flags": []}
    config["process"]["capabilities"] = {each: ["CAP_CHOWN", "CAP_KILL"] for each in SETS}
    config["process"]["execCPUAffinity"] = {"initial": "0", "final": "0-1"}
    config["process"]["user"] = {"uid": 0, "gid": 0, "umask": 0o22}
    bundle.write()


def _record_pod(door: Door, target: Path) -> None:
    """The directory of a pod with `c1`, which runs, and `c2`, which ended with 3; and the note of an exit."""
    _with_all_terms(door.bundle("c1", ["sleep", "1000"], POD))
    door.start("c1")
    door.create("c1")
    door.ask("Start", task.StartRequest("c1"))
    door.run("c2", ["sh", "-c", "exit 3"], POD)
    door.wait("c2")
    door.exec("c1", "e1", ["sh", "-c", "kill -9 $$"])
    door.wait("c1", "e1")
    (pod,) = (door.run_dir / "pods").iterdir()
    shutil.copytree(pod, target / "pod")
    shim = door.shim_pid()
    os.kill(shim, signal.SIGKILL)
    eventually(lambda: door.launch("delete", "c1").returncode == 0)
    shutil.copy(door.directory / "bundles/c2/manor-exit.json", target)


def _record_command(door: Door, target: Path) -> None:
    """The directory of a created container of the command's."""
    root = door.directory / "oci"
    command = [str(VENV / "bin/manor-oci"), "--root", str(root)]
    _with_all_terms(bundle := door.bundle("o1", ["sleep", "1000"]))
    create = [*command, "create", "--bundle", str(bundle.path), "o1"]
    null = subprocess.DEVNULL
    subprocess.run(create, check=True, stdin=null, stdout=null, stderr=null)
    (target / "oci").mkdir()
    shutil.copytree(root / "o1", target / "oci/o1", ignore=shutil.ignore_patterns("*.sock"))
    subprocess.run([*command, "delete", "--force", "o1"], check=True)


def _make_harmless(target: Path, door: Door) -> None:
    for path in target.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            text = text.replace(str(door.directory), "/tmp/door").replace(door.cgroup_parent, "mnr-1")
            path.write_text(re.sub(r'"pid":\d+', f'"pid":{NOBODY}', text), encoding="utf-8")


def main() -> int:
    """Record into the directory that is named."""
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    with opened() as door:
        _record_pod(door, target)
        _record_command(door, target)
        _make_harmless(target, door)
    return 0


if __name__ == "__main__":
    sys.exit(main())
