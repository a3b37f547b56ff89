"""The systemd cgroup driver at the shim's door: SystemdCgroup in a handler's options makes containers units.

Needs a machine booted with systemd: tests/vm/systemd.sh. That machine is slow: all tests share one warden.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manor import leaks
from runtime.cgroups.driver import booted_with_systemd
from shim.api import task
from shim.api.codec import decode, encode
from shim.api.options import Options, RuntimeOptions
from shim.api.runtime_info import RuntimeInfo
from shim.api.types import Any as Packed
from shim.api.types import pack
from shim.ttrpc.status import RpcError
from tests.e2e.shim.door import Door
from tests.harness.waiting import eventually

if not booted_with_systemd():
    pytest.skip("this machine was not booted with systemd", allow_module_level=True)

MIB = 1 << 20
LIMIT_S = 60
SLICE = "manor-door.slice"
CUT = "manor-cut.slice"
SYSTEMD = encode(pack(RuntimeOptions(config_body=b"SystemdCgroup = true\n")))


@pytest.fixture(scope="module")
def world() -> Iterator[Door]:
    with tempfile.TemporaryDirectory(prefix="manor-door-", dir="/var/tmp") as directory:
        made = Door(Path(directory))
        try:
            info(made)  # the first one waits for a warden
            yield made
        finally:
            made.close()


@pytest.fixture
def door(world: Door) -> Iterator[Door]:
    yield world
    world.client.close()


def info(door: Door) -> RuntimeInfo:
    """What a shim says of itself to who asks for no pod."""
    command = [str(door.program), "-info"]
    done = subprocess.run(
        command, env=door.environ, stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    return decode(RuntimeInfo, done.stdout)


def shown(container_id: str, *names: str) -> dict[str, str]:
    """Properties of a container's unit as systemctl tells them."""
    options = [f"--property={name}" for name in names]
    command = ["systemctl", "show", f"manor-{container_id}.scope", *options]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(line.split("=", 1) for line in told.stdout.splitlines())


def is_gone(container_id: str) -> bool:
    return shown(container_id, "LoadState")["LoadState"] == "not-found"


def prepare(door: Door, container_id: str, options: bytes = b"", **changes: Any) -> None:
    """A bundle whose cgroup is to be a unit, and its shim."""
    bundle = door.bundle(container_id, ["sleep", "1000"])
    bundle.config["linux"]["cgroupsPath"] = f"{SLICE}:manor:{container_id}"
    bundle.config["linux"]["resources"]["memory"] = {"limit": 64 * MIB}
    bundle.config.update(changes)
    bundle.write()
    door.start(container_id, options)


def test_a_container_is_a_scope_for_all_its_life(door: Door) -> None:
    prepare(door, "life", SYSTEMD)
    pid = door.create("life")
    door.ask("Start", task.StartRequest("life"))
    told = shown("life", "ActiveState", "Slice", "MemoryMax", "MemoryLimit", "Delegate")
    assert (told["ActiveState"], told["Slice"], told["Delegate"]) == ("active", SLICE, "yes")
    assert str(64 * MIB) in (told.get("MemoryMax"), told.get("MemoryLimit"))
    tenant = door.exec("life", "e1", ["sleep", "1000"])
    for process in (pid, tenant):
        assert "/manor-life.scope" in Path(f"/proc/{process}/cgroup").read_text()
    resources = Packed("resources", json.dumps({"memory": {"limit": 80 * MIB}}).encode())
    door.ask("Update", task.UpdateTaskRequest("life", resources))
    told = shown("life", "MemoryMax", "MemoryLimit")
    assert str(80 * MIB) in (told.get("MemoryMax"), told.get("MemoryLimit"))
    door.end("life")
    assert is_gone("life")
    assert door.zombies() == []
    shim = door.shim_pid()
    door.ask("Shutdown", task.ShutdownRequest("life"))
    eventually(lambda: not Path(f"/proc/{shim}").exists())


def test_delete_after_a_killed_shim_takes_the_unit_away(door: Door) -> None:
    prepare(door, "killed")
    door.create("killed", options=pack(Options(systemd_cgroup=True)))
    os.kill(door.shim_pid(), signal.SIGKILL)
    done = door.launch("delete", "killed")
    assert (done.returncode, done.stderr) == (0, b"")
    assert is_gone("killed")


def test_the_form_of_the_path_alone_will_do_and_a_failed_create_leaves_no_unit(door: Door) -> None:
    prepare(door, "failed", mounts=[{"destination": "/x", "source": "/nowhere", "options": ["bind"]}])
    before = door.cgroups()
    with pytest.raises(RpcError, match="/nowhere"):
        door.create("failed")
    assert is_gone("failed")
    assert door.cgroups() == before


def test_info_says_that_it_is_there(world: Door) -> None:
    told = info(world).features
    assert told is not None
    assert json.loads(told.value)["linux"]["cgroup"]["systemd"] is True


@pytest.fixture
def containerd(door: Door) -> Iterator[None]:
    """Somebody listens where the shim was told that its containerd does: it lives, and has not come for it."""
    path = door.directory / "grpc"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield
    path.unlink()


def leaked(door: Door) -> list[tuple[str, str]]:
    """What `manor leaks` finds."""
    return [(each.kind, each.what) for each in leaks.look(str(door.run_dir), 0).leaks]


def collect(door: Door) -> None:
    left = leaks.collect(str(door.run_dir), leaks.look(str(door.run_dir), 0))
    assert (left.leaks, left.failures) == ([], [])


@pytest.mark.usefixtures("containerd")
def test_the_unit_of_a_dead_shims_container_is_a_leak_and_goes(door: Door) -> None:
    prepare(door, "lost")
    door.create("lost", options=pack(Options(systemd_cgroup=True)))
    door.ask("Start", task.StartRequest("lost"))
    os.kill(door.shim_pid(), signal.SIGKILL)
    eventually(lambda: ("unit", "manor-lost.scope") in leaked(door))
    collect(door)
    assert is_gone("lost")


@pytest.mark.usefixtures("containerd")
def test_so_is_that_of_a_create_that_was_cut_short(door: Door) -> None:
    """A scope goes with its processes; a slice stays, until somebody stops it."""
    there = door.directory / "there"
    script = f"touch {there}; exec sleep 60"
    hooks = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    prepare(door, "cut", SYSTEMD, hooks=hooks)
    bundle = door.directory / "bundles" / "cut"
    config = json.loads((bundle / "config.json").read_text())
    config["linux"]["cgroupsPath"] = f":manor:{CUT}"
    (bundle / "config.json").write_text(json.dumps(config))
    door.client.begin(task.SERVICE_V2, "Create", encode(task.CreateTaskRequest(id="cut", bundle=str(bundle))))
    eventually(there.exists)
    os.kill(door.shim_pid(), signal.SIGKILL)
    eventually(lambda: ("unit", CUT) in leaked(door))
    collect(door)
    told = subprocess.run(["systemctl", "is-active", CUT], capture_output=True, text=True, check=False)
    assert told.stdout.strip() == "inactive"
