"""What is wrong in a request is said, names the thing, and leaves nothing: the node's leak check sees to that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.ttrpc.status import RpcError
from tests.e2e.conftest import Node
from tests.harness.crictl import Crictl, CrictlError
from tests.harness.task import TaskClient


def test_a_command_that_is_not_in_the_image_fails_and_is_named(crictl: Crictl, pod: str) -> None:
    with pytest.raises(CrictlError, match="no-such-program"):
        crictl.run_container(pod, ["no-such-program"])


def test_a_command_that_may_not_be_run_is_named(crictl: Crictl, pod: str) -> None:
    with pytest.raises(CrictlError, match=r"(?i)/etc/passwd.*permission denied"):
        crictl.run_container(pod, ["/etc/passwd"])


def test_a_mount_source_that_is_not_there_is_named(crictl: Crictl, pod: str) -> None:
    # The daemon makes missing sources itself, but not below a file.
    with pytest.raises(CrictlError, match="/etc/passwd/below"):
        crictl.run_container(
            pod, ["true"], mounts=[{"container_path": "/x", "host_path": "/etc/passwd/below"}]
        )


@pytest.mark.parametrize("user", [{"run_as_username": "nobody-by-that-name"}, {"run_as_user": {"value": -1}}])
def test_a_bad_user_is_refused(crictl: Crictl, pod: str, user: dict[str, object]) -> None:
    with pytest.raises(CrictlError):
        crictl.run_container(pod, ["true"], linux={"security_context": user})


def test_a_working_directory_that_is_a_file_is_named(crictl: Crictl, pod: str) -> None:
    with pytest.raises(CrictlError, match=r"/etc/passwd"):
        crictl.run_container(pod, ["true"], working_dir="/etc/passwd")


def test_an_exec_of_a_command_that_is_not_in_the_image_is_named(crictl: Crictl, container: str) -> None:
    refused = crictl.execute(container, "no-such-program", check=False)
    assert refused.code != 0
    assert "no-such-program" in refused.stdout + refused.stderr


def test_an_exec_in_a_stopped_container_is_refused(crictl: Crictl, container: str) -> None:
    crictl.run("stop", "--timeout", "0", container)
    refused = crictl.execute(container, "true", check=False)
    assert refused.code != 0
    assert "CONTAINER_EXITED" in refused.stderr


def test_an_exec_in_a_container_that_was_only_created_is_refused(crictl: Crictl, pod: str) -> None:
    container = crictl.create(pod, ["sleep", "1000"])
    assert crictl.execute(container, "true", check=False).code != 0


# ---- at the shim's own door, where containerd cannot put things right beforehand ----


@pytest.fixture
def door(node: Node, pod: str) -> Iterator[TaskClient]:
    """The Task service of the shim of a running pod."""
    with TaskClient(*node.containerd.shim_address(pod)) as client:
        yield client


@pytest.fixture
def bundle(node: Node, container: str, tmp_path: Path) -> Path:
    """A bundle with the configuration of a real container and an empty root filesystem."""
    configuration = json.loads(
        (node.containerd.bundle(container) / "config.json").read_text(encoding="utf-8")
    )
    configuration["linux"]["cgroupsPath"] = f"{node.containerd.instance.cgroup_parent}/made-by-hand"
    configuration["root"] = {"path": "rootfs"}
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(configuration), encoding="utf-8")
    return tmp_path


def test_a_missing_configuration_is_an_error(door: TaskClient, bundle: Path) -> None:
    (bundle / "config.json").unlink()
    with pytest.raises(RpcError, match=r"config\.json"):
        door.create("made-by-hand", bundle, [])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"ociVersion": "1.0.2", "process": 5}',
        '{"ociVersion": "1.0.2", "linux": {"namespaces": [{"type": 3}]}}',
    ],
)
def test_a_malformed_configuration_is_an_error(door: TaskClient, bundle: Path, text: str) -> None:
    (bundle / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(RpcError):
        door.create("made-by-hand", bundle, [])


def test_a_command_that_is_not_in_the_root_filesystem_is_an_error_of_create(
    door: TaskClient, bundle: Path
) -> None:
    with pytest.raises(RpcError, match="sleep"):
        door.create("made-by-hand", bundle, [])


def change(bundle: Path, *path: str, value: object) -> None:
    """Put a value into the bundle's configuration."""
    configuration = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    *way, last = path
    inner = configuration
    for key in way:
        inner = inner[key]
    inner[last] = value
    (bundle / "config.json").write_text(json.dumps(configuration), encoding="utf-8")


def test_a_mount_source_that_is_not_there_is_named_by_the_runtime_too(door: TaskClient, bundle: Path) -> None:
    (bundle / "rootfs" / "bin").mkdir()
    mount = {"destination": "/data", "type": "bind", "source": "/no/such/source", "options": ["rbind"]}
    change(bundle, "mounts", value=[mount])
    with pytest.raises(RpcError, match="/no/such/source"):
        door.create("made-by-hand", bundle, [])


@pytest.mark.parametrize("uid", [-1, 1 << 32, "root"])
def test_a_user_that_is_no_number_is_refused(door: TaskClient, bundle: Path, uid: object) -> None:
    change(bundle, "process", "user", value={"uid": uid, "gid": 0})
    with pytest.raises(RpcError):
        door.create("made-by-hand", bundle, [])


@pytest.mark.parametrize("name", ["../escape", "a/b", "..", "", "a" * 300])
def test_an_id_that_is_not_a_name_is_refused(door: TaskClient, bundle: Path, name: str) -> None:
    with pytest.raises(RpcError):
        door.create(name, bundle, [])
    assert not (bundle.parent / "escape").exists()


def test_an_id_that_is_taken_is_refused(door: TaskClient, bundle: Path, container: str) -> None:
    with pytest.raises(RpcError):
        door.create(container, bundle, [])
    assert door.state(container).pid > 0


def test_an_unknown_container_and_an_unknown_exec_are_not_found(door: TaskClient, container: str) -> None:
    with pytest.raises(RpcError, match="NotFound"):
        door.state("nobody")
    with pytest.raises(RpcError, match="NotFound"):
        door.start(container, "nothing")
