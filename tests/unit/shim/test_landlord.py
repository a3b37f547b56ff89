"""The landlord's config, and its program: a file that the kernel executes, and what it does then."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from runtime.errors import Unsupported
from runtime.spec.json import dump
from runtime.spec.load import load_spec
from runtime.spec.model import IdMapping
from shim.landlord import config
from shim.landlord_program import program
from shim.pod_plan import PodPlan

PLAN = PodPlan("p1", ("network", "uts", "ipc", "pid"), cgroup_parent="/pods")


def test_its_config_is_one_that_the_runtime_takes() -> None:
    paths = {"network": "/proc/self/fd/3", "ipc": "/proc/self/fd/4"}
    spec = load_spec(dump(config(PLAN, paths, -500)))
    assert {each.type: each.path for each in spec.linux.namespaces} == {"pid": None, "mount": None, **paths}
    assert (spec.linux.cgroups_path, spec.process.oom_score_adj) == ("/pods/p1", -500)
    assert spec.root.readonly
    assert spec.process.no_new_privileges
    capabilities = spec.process.capabilities
    assert capabilities is not None
    assert not any(getattr(capabilities, name) for name in capabilities.FIELD_NAMES)
    assert (spec.process.user.uid, spec.process.user.gid) == (65535, 65535)


def test_its_ids_are_mapped() -> None:
    ids = (IdMapping(0, 200_000, 1000),)
    plan = PodPlan("p1", ("pid", "user"), uid_mappings=ids, gid_mappings=(IdMapping(0, 200_000, 1 << 20),))
    user = load_spec(dump(config(plan, {}, 0))).process.user
    assert (user.uid, user.gid) == (999, 65535)


def test_a_pod_without_a_cgroup_says_nothing_of_the_landlords() -> None:
    spec = load_spec(dump(config(PodPlan("p1", ("pid",)), {}, 0)))
    assert spec.linux.cgroups_path is None


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="nobody has written it")
def test_the_program_ignores_the_end_of_its_children_and_sleeps(tmp_path: Path) -> None:
    path = tmp_path / "landlord"
    path.write_bytes(program())
    path.chmod(0o755)
    running = subprocess.Popen([path])
    try:
        fields: dict[str, str] = {}
        deadline = time.monotonic() + 30
        while not int(fields.get("SigIgn", "0"), 16) & 1 << (signal.SIGCHLD - 1) or fields["State"][0] != "S":
            assert time.monotonic() < deadline, fields
            lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
            fields = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        running.terminate()
        assert running.wait(30) == -signal.SIGTERM
    finally:
        running.kill()
        running.wait()


def test_there_is_a_program_for_each_machine_that_we_know() -> None:
    for machine in ("x86_64", "aarch64"):
        assert len(program(machine)) < 256
    with pytest.raises(Unsupported, match="no landlord for pdp11"):
        program("pdp11")
