"""What is somebody else's stays so, and what a container says of itself is not believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups.layout import detect_layout
from tests.e2e.oci.conftest import Oci
from tests.harness.waiting import eventually

pytestmark = pytest.mark.manor_only(reason="runc has other files and no --delay-at")

# Takes the name that a stage has until its execve.
PRETEND = "import ctypes; ctypes.CDLL(None).prctl(15, b'manor:[2:INIT]'); import time; time.sleep(1000)"


@pytest.fixture
def anothers_cgroup() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A cgroup in every hierarchy with somebody in it: its path, and who."""
    path = f"/manor-oci-tests/{os.getpid()}-another"
    victim = subprocess.Popen(["sleep", "1000"])
    made = [Path(f"{each.mountpoint}{path}") for each in detect_layout().v1]
    for directory in made:
        directory.mkdir(parents=True, exist_ok=True)
        if directory.parts[-3] != "cpuset" and "cpuset" not in str(directory):
            (directory / "cgroup.procs").write_text(str(victim.pid))
    yield path, victim
    victim.kill()
    victim.wait()
    for directory in made:
        directory.rmdir()


def test_what_a_create_left_that_never_had_its_cgroup_kills_nobody_in_it(
    oci: Oci, anothers_cgroup: tuple[str, subprocess.Popen[bytes]]
) -> None:
    path, victim = anothers_cgroup

    def change(config: dict[str, Any]) -> None:
        config["linux"]["cgroupsPath"] = path

    bundle = oci.bundle("true", change=change)
    running = oci.begin("--delay-at", "main.announce:30", "create", "-b", bundle.path, "c")
    eventually((oci.root / "c" / "state.json").exists)
    running.kill()
    running.wait()
    oci.ok("delete", "--force", "c")
    assert victim.poll() is None


def test_a_state_too_long_for_the_first_limit_one_thinks_of_can_be_read(oci: Oci) -> None:
    def change(config: dict[str, Any]) -> None:
        config["annotations"] = {"long": "x" * (2 << 20)}

    bundle = oci.bundle("sleep", "1000", change=change)
    oci.ok("run", "-d", "-b", bundle.path, "c")
    assert json.loads(oci.ok("state", "c"))["status"] == "running"
    oci.ok("delete", "--force", "c")


@pytest.mark.parametrize("what", ["owner", "mode"])
def test_a_root_that_others_may_write_to_is_not_worked_in(oci: Oci, what: str) -> None:
    bundle = oci.bundle("true")
    oci.root.mkdir(mode=0o700)
    if what == "owner":
        os.chown(oci.root, 12345, 12345)
    else:
        oci.root.chmod(0o777)
    done = oci("run", "-b", bundle.path, "c")
    assert done.code == 1
    assert str(oci.root) in done.error
    os.chown(oci.root, 0, 0)
    oci.root.chmod(0o700)


def test_a_container_that_calls_itself_a_stage_is_running(oci: Oci) -> None:
    def change(config: dict[str, Any]) -> None:
        for directory in ("/usr", "/lib", "/lib64", "/root/.pyenv", sys.base_prefix):
            if os.path.isdir(directory):
                mount = {"destination": directory, "source": os.path.realpath(directory), "type": "bind"}
                config["mounts"].append({**mount, "options": ["rbind", "ro"]})

    bundle = oci.bundle(os.path.realpath(sys.executable), "-ISc", PRETEND, change=change)
    oci.ok("run", "-d", "-b", bundle.path, "c")
    pid = json.loads(oci.ok("state", "c"))["pid"]
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/comm").read_text() != "manor:[2:INIT]\n":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert json.loads(oci.ok("state", "c"))["status"] == "running"
    assert oci("delete", "c").code == 1
    oci.ok("delete", "--force", "c")
