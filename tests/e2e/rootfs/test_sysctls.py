"""Sysctls reach the kernel, and only by a procfs that the container has no hand in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import ConfigError, StageError
from runtime.spec.load import load_spec
from runtime.sysctls import apply_sysctls, plan_sysctls
from tests.e2e.rootfs.conftest import bind, replace_place, tmpfs

if TYPE_CHECKING:
    from tests.e2e.rootfs.conftest import Canary, Inside
    from tests.e2e.runtime.conftest import Runner
    from tests.harness.bundles import Bundle

WANTED = {"net.ipv4.ip_forward": "1", "kernel.shmmax": "1234567", "net/ipv4/conf/lo/rp_filter": "2"}
FILES = ("net/ipv4/ip_forward", "kernel/shmmax", "net/ipv4/conf/lo/rp_filter")


def test_a_containers_sysctls_are_set_in_its_namespaces_alone(runner: Runner) -> None:
    before = [Path(f"/proc/sys/{name}").read_text() for name in FILES]
    bundle = runner.bundle("cat", *(f"/proc/sys/{name}" for name in FILES))
    bundle.config["linux"]["sysctl"] = WANTED
    assert runner.run(bundle).stdout.split() == list(WANTED.values())
    assert [Path(f"/proc/sys/{name}").read_text() for name in FILES] == before


def test_a_refused_sysctl_is_named(runner: Runner) -> None:
    bundle = runner.bundle("true")
    bundle.config["linux"]["sysctl"] = {"kernel.core_pattern": "|/evil"}
    with pytest.raises(ConfigError, match=r"linux.sysctl\['kernel.core_pattern'\]: does not belong"):
        runner.create(bundle)
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "maybe"}
    with pytest.raises(StageError, match="sysctl net.ipv4.ip_forward = 'maybe': .*Invalid argument"):
        runner.create(bundle)
    bundle.config["linux"]["sysctl"] = {"net.ipv4.no_such": "1"}
    with pytest.raises(StageError, match="sysctl net.ipv4.no_such = '1': .*No such file"):
        runner.create(bundle)


@pytest.mark.parametrize("kind", ["no proc", "a tmpfs", "a fake file", "another procfs file"])
def test_a_faked_proc_neither_catches_nor_misleads_them(
    inside: Inside, bundle: Bundle, canary: Canary, kind: str
) -> None:
    """CVE-2025-52881: the write goes to the kernel's sysctl, not to what stands on its path."""
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1"}
    mounts = bundle.config["mounts"]
    if kind == "no proc":
        del mounts[0]
        fake = bundle.rootfs / "proc/sys/net/ipv4"
        fake.mkdir(parents=True)
        (fake / "ip_forward").write_text("fake")
    elif kind == "a tmpfs":
        mounts[1:] = [tmpfs("/cover")]
        replace_place(bundle.rootfs / "cover")
    elif kind == "a fake file":
        mounts[1:] = [bind(canary.path / "file", "/proc/sys/kernel/ns_last_pid")]
    else:
        mounts[1:] = [bind("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/ns_last_pid")]
    writes = plan_sysctls(load_spec(bundle.write()))

    def write_and_look() -> list[Any]:
        apply_sysctls(writes)
        os.makedirs("/trusted", exist_ok=True)
        from runtime.linux import mount as m

        m.mount("proc", "/trusted", "proc", 0)
        return [Path("/trusted/sys/net/ipv4/ip_forward").read_text().strip()]

    bundle.config["linux"]["readonlyPaths"] = bundle.config["linux"]["maskedPaths"] = []
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    assert inside(write_and_look) == ["1"]
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before
    if kind == "no proc":
        assert (bundle.rootfs / "proc/sys/net/ipv4/ip_forward").read_text() == "fake"
