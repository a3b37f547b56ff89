"""Where containers are kept, what goes in and how much of it: modes, names, sockets, and configs that are too long."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.security.conftest import COMMAND, QUIET

if TYPE_CHECKING:
    from tests.e2e.security.conftest import Canary, Oci


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_gets_at_a_containers_state(oci: Oci, umask: int) -> None:
    """D14: directories are 0700 on each level and files 0600, whatever the caller's umask."""
    oci.root = oci.path / "made/on/demand"
    before = os.umask(umask)
    try:
        name = oci.started(oci.bundle())
    finally:
        os.umask(before)
    for level in ("made/on", "made/on/demand", f"made/on/demand/{name}"):
        assert stat.S_IMODE((oci.path / level).stat().st_mode) == 0o700, level
    for path in (oci.root / name).rglob("*"):
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path
        assert path.lstat().st_uid == 0
    oci.clean()


def test_no_socket_of_ours_is_abstract(oci: Oci) -> None:
    """An abstract one is there for everybody in the network namespace (CVE-2020-15257)."""
    bundle = oci.bundle()
    bundle.write()
    name = bundle.path.name
    before = _abstract()
    command = [str(COMMAND), "--root", str(oci.root), "create", "--bundle", str(bundle.path), name]
    subprocess.run(command, check=True, timeout=60, **QUIET)
    assert stat.S_ISSOCK((oci.root / name / "start.sock").lstat().st_mode)
    assert not {each for each in _abstract() - before if "manor" in each or name in each}


def _abstract() -> set[str]:
    lines = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    return {fields[7] for line in lines if len(fields := line.split()) == 8 and fields[7].startswith("@")}


@pytest.mark.parametrize(
    "name", ["..", ".", "a/b", "../x", "", "a\n", "é", "x" * 256, "a b", "-x" * 200, "@x"]
)
def test_a_name_of_a_container_never_leads_out_of_the_root(oci: Oci, canary: Canary, name: str) -> None:
    bundle = oci.bundle()
    bundle.write()
    for verb in (("create", "--bundle", bundle.path, "--"), ("delete", "--force", "--"), ("state", "--")):
        answer = oci(*verb, name)
        assert answer.returncode == 1, (verb, answer)
        assert "Traceback" not in answer.stderr
        assert "internal error" not in answer.stderr
    assert not list(oci.root.glob("*/state.json"))
    canary.assert_untouched()


def test_a_state_directory_that_is_a_symlink_is_not_followed(oci: Oci, canary: Canary) -> None:
    oci.root.mkdir(mode=0o700)
    bundle = oci.bundle()
    (oci.root / bundle.path.name).symlink_to(canary.path)
    answer = oci.run(bundle)
    assert answer.returncode == 1
    assert "already" in answer.stderr or "in use" in answer.stderr, answer
    canary.assert_untouched()
    (oci.root / bundle.path.name).unlink()


def _mappings(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"].append({"type": "user"})
    rows = [{"containerID": index, "hostID": 100000 + index, "size": 1} for index in range(6000)]
    config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = rows


def _mount(config: dict[str, Any]) -> None:
    config["mounts"].append({"destination": "/" + "m" * 70000, "type": "tmpfs", "source": "tmpfs"})


def _options(config: dict[str, Any]) -> None:
    config["mounts"].append(
        {"destination": "/mnt", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "x" * 70000]}
    )


def _argument(config: dict[str, Any]) -> None:
    config["process"]["args"] = ["sh", "-c", "ls -l /proc/self/ns", "x" * 65537]


def _environment(config: dict[str, Any]) -> None:
    config["process"]["env"] += [f"V{index}=" + "x" * 60000 for index in range(20)]


def _hostname(config: dict[str, Any]) -> None:
    config["hostname"] = "h" * 70000


# What it is, and why it is refused; "" for what runs.
LONG = {
    "6000 rows of mappings": (_mappings, "6000 ranges, the kernel takes 340"),
    "a destination of 70000 bytes": (_mount, "mount tmpfs on '/mmm"),
    "an option of 70000 bytes": (_options, "fsconfig: Invalid argument"),
    "an argument of 64 KiB": (_argument, ""),
    "1.2 MB of environment": (_environment, ""),
    "a host name of 70000 bytes": (_hostname, "set hostname"),
}


@pytest.mark.parametrize("what", LONG)
def test_what_is_too_long_never_costs_a_namespace(oci: Oci, what: str) -> None:
    """CVE-2021-43784: a config that overflowed a length took its namespaces away. It runs in all, or not at all."""
    bundle = oci.bundle("sh", "-c", "ls -l /proc/self/ns")
    change, refusal = LONG[what]
    change(bundle.config)
    answer = oci.run(bundle)
    if not refusal:
        assert answer.returncode == 0, answer.stderr[:300]
        inside = set(re.findall(r"\w+:\[\d+\]", answer.stdout))
        ours = {
            os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "pid", "net", "ipc", "uts", "cgroup")
        }
        assert len(inside) >= 8, answer
        assert not inside & ours
    else:
        assert answer.returncode == 1
        assert refusal in answer.stderr, answer.stderr[:300]
        assert len(answer.stderr) < 10_000, what
        assert "Traceback" not in answer.stderr
        assert "internal error" not in answer.stderr, answer.stderr


def test_a_container_without_a_cgroup_namespace_cannot_write_to_the_hosts_cgroups(oci: Oci) -> None:
    """CVE-2023-25809: with a user namespace and no cgroup namespace, a read-only cgroup mount is just that."""
    command = (
        "for file in $(ls -d /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/*/*/cgroup.procs 2>/dev/null);"
        " do echo 1 > $file && echo wrote $file; done; echo done"
    )
    bundle = oci.bundle("sh", "-c", command)
    config = bundle.config
    namespaces = config["linux"]["namespaces"]
    config["linux"]["namespaces"] = [each for each in namespaces if each["type"] != "cgroup"] + [
        {"type": "user"}
    ]
    ids = [{"containerID": 0, "hostID": 0, "size": 65536}]  # root is the host's: only the mount protects
    config["linux"]["uidMappings"] = config["linux"]["gidMappings"] = ids
    config["mounts"].append(
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["ro", "nosuid", "noexec"],
        }
    )
    answer = oci.run(bundle)
    assert answer.stdout.split() == ["done"], answer
    assert "Read-only file system" in answer.stderr


HOST_VIEW = (
    *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *(
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ),
)


def test_the_config_that_we_write_hides_the_host(oci: Oci, tmp_path: Path) -> None:
    """D19: what `spec` masks, that its devices start from nothing, and that its sysfs and cgroups are read-only."""
    assert oci("spec", "--bundle", tmp_path).returncode == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(HOST_VIEW) <= set(config["linux"]["maskedPaths"])
    throttles = [str(path) for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle")]
    assert set(throttles) <= set(config["linux"]["maskedPaths"])
    assert config["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    by_place = {each["destination"]: each for each in config["mounts"]}
    assert "ro" in by_place["/sys"]["options"]
    assert "ro" in by_place["/sys/fs/cgroup"]["options"]
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    assert ({"type": "cgroup"} in config["linux"]["namespaces"]) == unified
    assert config["process"]["capabilities"].get("inheritable", []) == []
    assert config["process"]["capabilities"].get("ambient", []) == []
    assert config["process"]["noNewPrivileges"] is True
    bundle = oci.bundle(
        "sh", "-c", f"for path in {' '.join(HOST_VIEW)}; do cat $path; ls -A $path; done 2>/dev/null"
    )
    bundle.config["linux"]["maskedPaths"] = config["linux"]["maskedPaths"]
    bundle.config["mounts"] = config["mounts"]
    seen = oci.run(bundle).stdout
    assert not set(seen.split()) - set(HOST_VIEW), seen
