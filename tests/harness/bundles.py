"""OCI bundles for tests that use the runtime without containerd: a busybox root file system and a config.json.

The config is a plain dict, so that a test says in one line what it changes; the same bundle can be given
to runc to see whether the test itself is right.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

APPLETS = (
    "cat chmod cut echo env false grep head hostname id ifconfig kill ls mkdir mount nproc ps pwd readlink rm sh "
    "sleep sort stat stty tail taskset test touch tr true tty umount uname wc"
).split()
DEFAULT_CAPABILITIES = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID CAP_SETUID CAP_SETFCAP "
    "CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE"
).split()


def make_rootfs(path: Path) -> None:
    """A small root file system at `path`: busybox-static, its applets, /etc/passwd and /etc/group."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "root", "home/user"):
        (path / name).mkdir(parents=True, exist_ok=True)
    busybox = shutil.which("busybox")
    assert busybox is not None, "busybox-static is not installed"
    shutil.copy2(busybox, path / "bin/busybox")
    for applet in APPLETS:
        link = path / "bin" / applet
        if not link.is_symlink():
            link.symlink_to("busybox")
    (path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
    (path / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    (path / "tmp").chmod(0o1777)


def default_config(args: list[str], cgroups_path: str) -> dict[str, Any]:
    """What `runc spec` gives for a container without a terminal, with a writable root."""
    capabilities = {kind: list(DEFAULT_CAPABILITIES) for kind in ("bounding", "effective", "permitted")}
    return {
        "ociVersion": "1.2.0",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": capabilities,
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "manor",
        "mounts": [
            {
                "destination": "/proc",
                "type": "proc",
                "source": "proc",
                "options": ["nosuid", "noexec", "nodev"],
            },
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {
                "destination": "/dev/shm",
                "type": "tmpfs",
                "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
            },
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"],
            },
        ],
        "linux": {
            "cgroupsPath": cgroups_path,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


class Bundle:
    """A bundle directory: change `config`, then `write`."""

    def __init__(self, path: Path, args: list[str], cgroups_path: str) -> None:
        self.path = path
        self.rootfs = path / "rootfs"
        self.config = default_config(args, cgroups_path)
        make_rootfs(self.rootfs)

    @staticmethod
    def process(args: list[str]) -> dict[str, Any]:
        """A process.json for an exec of `args`, with the container's default credentials."""
        process: dict[str, Any] = default_config(args, "")["process"]
        return process

    def write(self) -> bytes:
        """Write config.json and return its content."""
        data = json.dumps(self.config).encode()
        (self.path / "config.json").write_bytes(data)
        os.chmod(self.path, 0o711)
        return data
