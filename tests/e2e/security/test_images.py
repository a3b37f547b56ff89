"""Images that are traps: what a root file system holds is never loaded, executed or written to for the host.

The symlink matrix is in tests/e2e/rootfs; here are the attacks on the way from one process to the next.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.security.conftest import COMMAND, QUIET

if TYPE_CHECKING:
    from tests.e2e.security.conftest import Canary, Oci
    from tests.harness.bundles import Bundle

TRAP = "import os\nfd = os.open('/sprung', os.O_CREAT | os.O_WRONLY)\nos.write(fd, __file__.encode())\n"
MODULES = (
    *(
        "traceback",
        "linecache",
        "encodings/idna",
        "encodings/utf_8",
        "os",
        "json",
        "re",
        "errno",
        "struct",
    ),
    *(
        "runtime/__init__",
        "runtime/errors",
        "runtime/payload",
        "sitecustomize",
        "usercustomize",
        "locale",
        "_signal",
    ),
)


def booby_trap(bundle: Bundle) -> None:
    """A Python at every place where ours is or could be looked for, and libraries that are none."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    real = Path(os.__file__).parent
    checkout = Path(__file__).parents[3]
    places = ["", "lib", f"usr/lib/{version}", f"usr/local/lib/{version}", str(real)[1:], str(checkout)[1:]]
    places += [f"{str(real)[1:]}/lib-dynload", f"{str(checkout)[1:]}/.venv/lib/{version}/site-packages"]
    for place in places:
        for module in MODULES:
            path = bundle.rootfs / place / f"{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(TRAP)
    library = Path("/lib/x86_64-linux-gnu")
    (bundle.rootfs / str(library)[1:]).mkdir(parents=True, exist_ok=True)
    for name in ("libc.so.6", "libgcc_s.so.1", "libnss_files.so.2", "libseccomp.so.2"):
        (bundle.rootfs / str(library)[1:] / name).write_text("no library")
    (bundle.rootfs / "etc/nsswitch.conf").write_text("passwd: files trap\n")
    (bundle.rootfs / "etc/ld.so.preload").write_text("/lib/trap.so\n")


ALLOWED = re.compile(r"^(/etc/passwd|/etc/group|/dev/(null|ptmx|pts(/.*)?)|/proc(/.*)?|/sys(/.*)?|/|\.)$")


def opened_inside(log: str) -> list[str]:
    """What processes opened by a path after they had entered the container, and before their execve.

    Inside is: after pivot_root(2), or after setns(2) into a container's mount namespace.
    """
    inside: set[str] = set()
    found = []
    for line in log.splitlines():
        match = re.match(r"^(\d+) +(\w+)\((.*)$", line)
        if not match:
            continue
        pid, call, rest = match.groups()
        if call == "pivot_root" or (call == "setns" and ("CLONE_NEWNS" in rest or "|" in rest)):
            inside.add(pid)
        elif call in ("clone", "clone3", "fork", "vfork") and pid in inside:
            child = rest.rsplit("= ", 1)[-1].split(" ")[0]
            inside.add(child)
        elif call == "execve" and " = 0" in rest:
            inside.discard(pid)
        elif call in ("open", "openat", "openat2") and pid in inside:
            path = re.search(r'"((?:[^"\\]|\\.)*)"', rest)
            at_root = "AT_FDCWD" in rest.split(",")[0] or (path and path[1].startswith("/"))
            if path and at_root and not ALLOWED.match(path[1]):
                found.append(f"{call} {path[1]}")
    return found


def test_nothing_of_a_booby_trapped_image_is_loaded(oci: Oci, tmp_path: Path) -> None:
    """Lazy imports, source lines for tracebacks, NSS, libraries: CVE-2019-14271 and its like."""
    assert shutil.which("strace") is not None
    bundle = oci.bundle("sleep", "1000")
    booby_trap(bundle)
    bundle.config["process"]["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [7]}
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "81"}
    bundle.write()
    name = bundle.path.name
    trace = [
        "strace",
        "-f",
        "-qq",
        "-s",
        "300",
        "-e",
        "trace=openat,openat2,open,execve,pivot_root,setns,clone,clone3",
    ]
    verbs = {
        "create": ["create", "--bundle", str(bundle.path), name],
        "exec": ["exec", name, "true"],
        "a failing exec": ["exec", name, "not-there"],
        "an exec with a terminal": ["exec", "--tty", name, "true"],
    }
    for verb, words in verbs.items():
        log = tmp_path / "log"
        command = [*trace, "-o", str(log), str(COMMAND), "--root", str(oci.root), *words]
        if verb == "create":  # its init waits, and strace with it
            with subprocess.Popen(command, **QUIET) as running:
                _await(lambda: oci("state", name).stdout, '"status": "created"')
                started = oci("start", name)
                oci("delete", "--force", name)
                running.wait(timeout=30)
            assert started.returncode == 0
            assert opened_inside(log.read_text()) == [], verb
            assert "pivot_root" in log.read_text()
            oci.started(bundle)
            continue
        master, slave = os.openpty()
        streams = dict.fromkeys(QUIET, slave) if "terminal" in verb else QUIET
        done = subprocess.run(command, timeout=60, check=False, **streams)
        os.close(master)
        os.close(slave)
        assert done.returncode == (255 if "failing" in verb else 0), verb
        assert "setns" in log.read_text()
        assert opened_inside(log.read_text()) == [], verb
    assert not (bundle.rootfs / "sprung").exists()


def _await(read: object, text: str) -> None:
    end = time.monotonic() + 30
    while text not in read():  # type: ignore[operator]
        assert time.monotonic() < end, text
        time.sleep(0.05)


def test_the_trap_would_spring(oci: Oci) -> None:
    """The trap is one: a Python that runs in this root, as a stage does, and imports late is caught in it."""
    bundle = oci.bundle()
    booby_trap(bundle)
    late = f"import os, sys; os.chroot({str(bundle.rootfs)!r}); os.chdir('/'); sys.path[:] = ['/']; import locale"
    subprocess.run([sys.executable, "-ISc", late], check=False, timeout=30, stderr=subprocess.DEVNULL)
    assert (bundle.rootfs / "sprung").read_text() == "/locale.py"


@pytest.mark.parametrize("kind", ["null", "pipe", "socket", "file"])
def test_standard_streams_are_never_those_of_the_image(oci: Oci, canary: Canary, kind: str) -> None:
    """CVE-2026-88265: an image's /dev/null leads to a volume; its file keeps its content and its owner."""
    bundle = oci.bundle("sh", "-c", "echo written; echo complained >&2; cat")
    bundle.config["mounts"] = [
        each for each in bundle.config["mounts"] if not each["destination"].startswith("/dev")
    ]
    bundle.config["mounts"].append(
        {"destination": "/vol", "type": "bind", "source": str(canary.path), "options": ["bind"]}
    )
    bundle.config["process"]["user"] = {"uid": 1000, "gid": 1000}
    (bundle.rootfs / "dev/null").symlink_to("/vol/file")
    bundle.write()
    hostfile = canary.path / "own"
    before, after = socket.socketpair()
    reading, writing = os.pipe()
    streams = {
        "null": os.open("/dev/null", os.O_RDWR),
        "pipe": writing,
        "socket": after.fileno(),
        "file": os.open(oci.path / "output", os.O_RDWR | os.O_CREAT, 0o600),
    }
    command = [
        str(COMMAND),
        "--root",
        str(oci.root),
        "run",
        "--detach",
        "--bundle",
        str(bundle.path),
        bundle.path.name,
    ]
    chosen = streams[kind]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=chosen, stderr=chosen, check=False, timeout=60)
    _await(lambda: oci("state", bundle.path.name).stdout + "stopped", "stopped")
    canary.assert_untouched()
    assert not hostfile.exists()
    null = os.stat("/dev/null")
    assert (stat.S_ISCHR(null.st_mode), null.st_uid, null.st_rdev) == (True, 0, os.makedev(1, 3))
    assert os.fstat(streams["file"]).st_uid == 0
    for number in (streams["null"], writing, reading, streams["file"]):
        os.close(number)
    before.close()
    after.close()


def test_read_only_means_so_whatever_the_image_has_for_proc(oci: Oci) -> None:
    """CVE-2026-115521: with no /proc mounted, an image's own /proc/self/fd must not catch the last remount."""
    bundle = oci.bundle("sh", "-c", "cat /info; echo x > /x; echo x > /ro/x; echo done")
    bundle.config["root"]["readonly"] = True
    source = oci.path / "source"
    source.mkdir()
    bundle.config["mounts"] = [
        {"destination": "/ro", "type": "bind", "source": str(source), "options": ["bind", "ro"]},
        {"destination": "/tmpfs", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]},
    ]
    bundle.config["linux"]["maskedPaths"] = ["/bin/masked"]
    bundle.config["linux"]["readonlyPaths"] = ["/etc"]
    (bundle.rootfs / "bin/masked").write_text("seen")
    fake = bundle.rootfs / "proc/self/fd"
    fake.mkdir(parents=True)
    (bundle.rootfs / "elsewhere").mkdir()
    for number in range(30):
        (fake / str(number)).symlink_to("/elsewhere")
    (bundle.rootfs / "proc/thread-self").symlink_to("self")
    answer = oci.run(bundle)
    assert "done" in answer.stdout, answer
    assert not (bundle.rootfs / "x").exists()
    assert not (source / "x").exists()
    assert answer.stderr.count("Read-only file system") >= 2, answer
    again = oci.bundle("cat", "/bin/masked")
    again.config["mounts"] = []
    again.config["linux"]["maskedPaths"] = ["/bin/masked"]
    again.config["linux"]["readonlyPaths"] = []
    (again.rootfs / "bin/masked").write_text("seen")
    assert oci.run(again).stdout == ""


def test_submounts_of_the_hosts_sys_are_read_only(oci: Oci) -> None:
    """A read-only /sys has nothing writable below it."""
    bundle = oci.bundle("cat", "/proc/self/mountinfo")
    answer = oci.run(bundle)
    below = [line.split() for line in answer.stdout.splitlines() if line.split()[4].startswith("/sys")]
    assert below, answer
    assert all("ro" in fields[5].split(",") for fields in below)


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", ".", "cgroup.procs/../../x", "memory.max\0"])
def test_a_cgroup_file_of_the_config_is_a_name(oci: Oci, name: str) -> None:
    """GHSA-5g49-rx9x-qfc6: keys of `unified` never lead out of the container's cgroup."""
    bundle = oci.bundle()
    bundle.config["linux"]["resources"]["unified"] = {name: "1"}
    answer = oci.run(bundle)
    assert answer.returncode == 1
    assert "config invalid" in answer.stderr, answer
