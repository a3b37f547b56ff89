"""Pods with a user namespace of their own, as containerd 2.x runs them: id-mapped layers and volumes.

runc beside Manor shows that the tests ask for no more than there is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.crictl import Crictl
from tests.harness.mountinfo import mount_points
from tests.harness.paths import scratch_dir

pytestmark = pytest.mark.versions("2.3")

BASE = 200_000
SIZE = 65_536
IDS = [{"host_id": BASE, "container_id": 0, "length": SIZE}]


def in_user_namespace(**security: Any) -> dict[str, Any]:
    """The linux part of a pod's and its containers' configuration; `security` is merged into it."""
    namespaces = {"network": 0, "pid": 1, "ipc": 0, "userns_options": {"mode": 0, "uids": IDS, "gids": IDS}}
    namespaces.update(security.pop("namespace_options", {}))
    return {"security_context": {"namespace_options": namespaces, **security}}


@pytest.fixture
def pod(crictl: Crictl, handler: str) -> str:
    return crictl.run_pod(handler, **in_user_namespace())


@pytest.fixture
def container(crictl: Crictl, pod: str) -> str:
    return crictl.run_container(pod, ["sleep", "1000"], linux=in_user_namespace())


@pytest.fixture
def volume(crictl: Crictl) -> Iterator[Path]:
    """A directory of the host's root."""
    path = scratch_dir() / f"{crictl.node.instance.id}-volume"
    path.mkdir()
    (path / "given").write_text("given\n")
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def owner(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_uid, status.st_gid


def test_roots_files_are_roots_inside_and_nobodys_outside(crictl: Crictl, container: str) -> None:
    inside = crictl.execute(container, "stat", "-c", "%u:%g", "/", "/bin/busybox", "/etc/hosts", "/tmp")
    assert inside.stdout.split() == ["0:0"] * 4
    assert crictl.execute(container, "cat", "/proc/self/uid_map").stdout.split() == [
        "0",
        str(BASE),
        str(SIZE),
    ]
    crictl.execute(container, "sh", "-c", "echo mine > /mine")
    root = f"/proc/{crictl.pid(container)}/root"
    assert owner(f"{root}/bin/busybox") == owner(f"{root}/mine") == (BASE, BASE)
    assert owner(f"/proc/{crictl.pid(container)}") == (BASE, BASE)


def test_containers_of_a_pod_share_its_user_namespace(crictl: Crictl, pod: str, container: str) -> None:
    second = crictl.run_container(pod, ["sleep", "1000"], "second", linux=in_user_namespace())
    names = {os.readlink(f"/proc/{crictl.pid(each)}/ns/user") for each in (container, second)}
    assert len(names) == 1
    assert names != {os.readlink("/proc/self/ns/user")}


def test_streams_can_be_opened_again_by_who_runs(crictl: Crictl, pod: str, container: str) -> None:
    """They are pipes of the host, which belong to the container's user: containerd says to whom."""
    script = "echo out > /dev/stdout; echo err > /dev/stderr"
    for sync in (True, False):
        done = crictl.execute(container, "sh", "-c", script, sync=sync)
        assert (done.stdout + done.stderr).split() == ["out", "err"]
    user = in_user_namespace(run_as_user={"value": 1000}, run_as_group={"value": 1000})
    other = crictl.run_container(pod, ["sh", "-c", f"{script}; exec sleep 1000"], "other", linux=user)
    assert owner(f"/proc/{crictl.pid(other)}") == (BASE + 1000, BASE + 1000)
    crictl.execute(other, "sh", "-c", script)
    assert crictl.status(other)["state"] == "CONTAINER_RUNNING"


def test_a_volume_is_mapped_so_that_root_writes_to_it_as_root(crictl: Crictl, pod: str, volume: Path) -> None:
    maps = [{"host_id": BASE, "container_id": 0, "length": SIZE}]
    mount = {"container_path": "/data", "host_path": str(volume), "uidMappings": maps, "gidMappings": maps}
    container = crictl.run_container(pod, ["sleep", "1000"], linux=in_user_namespace(), mounts=[mount])
    assert crictl.execute(container, "stat", "-c", "%u:%g", "/data/given").stdout == "0:0\n"
    crictl.execute(container, "sh", "-c", "echo written > /data/written")
    assert (volume / "written").read_text() == "written\n"
    assert owner(volume / "written") == owner(volume / "given") == (0, 0)


def test_a_user_namespace_goes_with_a_shared_pid_namespace(crictl: Crictl, handler: str) -> None:
    shared = in_user_namespace(namespace_options={"pid": 0})
    pod = crictl.run_pod(handler, **shared)
    container = crictl.run_container(pod, ["sleep", "1234"], linux=shared)
    listed = crictl.execute(container, "ps").stdout
    assert "sleep 1234" in listed
    assert "/pause" in listed or "/manor-landlord" in listed


def test_nothing_of_a_layer_is_mounted_on_the_host(crictl: Crictl, container: str) -> None:
    """What is mounted of a pod lies below containerd's directories, and is what would be without a user namespace."""
    inspected = crictl.json("inspect", container)
    assert inspected["status"]["state"] == "CONTAINER_RUNNING"
    mine = str(crictl.node.instance.directory)
    places = [place for place in mount_points() if place.startswith(mine)]
    assert [place for place in places if "idmapped" in place] == []
    assert len([place for place in places if container in place]) == 1
