"""A runtime handler's options at the shim's door: what each of them does to a container, and what is refused."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.cgroups.driver import booted_with_systemd
from shim.api import task
from shim.api.codec import encode
from shim.api.message import Message
from shim.api.options import Options, RuntimeOptions
from shim.api.types import Empty, pack
from shim.ttrpc.status import RpcError
from tests.e2e.shim.door import Door, opened
from tests.harness.waiting import eventually

SLEEP = ["sleep", "1000"]


@pytest.fixture(scope="module")
def world() -> Iterator[Door]:
    """One for all tests, each of which has a shim of its own in it: a launcher takes seconds to write."""
    with opened() as made:
        yield made


@pytest.fixture
def door(world: Door) -> Iterator[Door]:
    yield world
    world.client.close()
    eventually(lambda: (world.cgroups(), world.mounts(), world.state_directories()) == ([], [], []))


@pytest.fixture
def name() -> str:
    """Of a container that nobody has had."""
    return f"c-{secrets.token_hex(4)}"


def generic(**options: str | int | bool) -> bytes:
    """A handler's options as containerd sends them to a runtime that is not runc."""
    lines = []
    for name, value in options.items():
        text = str(value).lower() if isinstance(value, bool) else repr(value)
        lines.append(f"{name} = {text}\n")
    return encode(pack(RuntimeOptions(config_body="".join(lines).encode())))


def files(door: Door, *names: str) -> dict[str, str]:
    """Files for streams, as a client may give them in the place of fifos."""
    paths = {name: door.directory / name for name in names}
    for path in paths.values():
        path.touch()
    return {name: str(path) for name, path in paths.items()}


def started(door: Door, name: str, config: bytes, **create: Any) -> int:
    """The pid of a container that sleeps, in a pod whose handler has the options `config`."""
    door.bundle(name, SLEEP)
    door.start(name, config)
    pid = door.create(name, **create)
    door.ask("Start", task.StartRequest(name))
    return pid


def end_shim(door: Door, *containers: str) -> None:
    """Delete what there is, and have the shim end."""
    for name in containers:
        door.end(name)
    door.ask("Shutdown", task.ShutdownRequest(""))


def test_streams_belong_to_whom_the_options_name_and_so_do_those_of_an_exec(door: Door, name: str) -> None:
    streams = files(door, "stdout", "stderr")
    own = pack(Options(io_uid=1234))
    pid = started(door, name, generic(IoUid=4321, IoGid=99), **streams, options=own)
    tenant = door.exec(name, "e1", SLEEP, **streams)
    for process in (pid, tenant):
        found = [os.stat(f"/proc/{process}/fd/{number}") for number in (1, 2)]
        assert [(each.st_uid, each.st_gid) for each in found] == [(1234, 99)] * 2
    end_shim(door, name)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_container_has_a_session_keyring_unless_the_options_say_no(
    door: Door, name: str, wanted: bool
) -> None:
    if not os.path.exists("/proc/keys"):
        pytest.skip("this kernel has no keyrings")
    bundle = door.bundle(name, SLEEP)
    bundle.config["linux"]["maskedPaths"] = []
    bundle.write()
    door.start(name, b"" if wanted else generic(NoNewKeyring=True))
    door.create(name)
    door.ask("Start", task.StartRequest(name))
    door.exec(name, "e1", ["grep", "-q", f"_ses.{name}", "/proc/keys"])
    assert door.wait(name, "e1") == (0 if wanted else 1)
    end_shim(door, name)


def test_without_pivot_root_goes_what_goes_without_it(door: Door, name: str) -> None:
    bundle = door.bundle(name, SLEEP)
    bundle.config["linux"]["rootfsPropagation"] = "private"
    bundle.write()
    door.start(name, generic(NoPivotRoot=True))
    with pytest.raises(RpcError, match="private is not safe without pivot_root"):
        door.create(name)
    bundle.config["linux"]["rootfsPropagation"] = ""
    bundle.write()
    door.create(name)
    door.ask("Start", task.StartRequest(name))
    door.exec(name, "e1", ["test", "!", "-e", str(door.directory)])
    assert door.wait(name, "e1") == 0
    end_shim(door, name)


def test_state_lies_below_the_root_that_is_asked_for_and_leaves_nothing_there(door: Door, name: str) -> None:
    root = door.directory / name
    started(door, name, generic(Root=str(root)))
    (pod,) = root.iterdir()
    assert (pod / name / "state.json").exists()
    end_shim(door, name)
    eventually(lambda: list(root.iterdir()) == [])


def test_delete_finds_a_killed_shims_state_below_another_root(door: Door, name: str) -> None:
    root = door.directory / name
    started(door, name, generic(Root=str(root)))
    os.kill(door.shim_pid(), signal.SIGKILL)
    done = door.launch("delete", name)
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(root.iterdir()) == []


@pytest.mark.skipif(booted_with_systemd(), reason="here it is")
def test_a_container_for_systemd_is_refused_where_that_is_not(door: Door, name: str) -> None:
    bundle = door.bundle(name, SLEEP)
    door.start(name)
    with pytest.raises(RpcError, match="this machine was not booted with systemd"):
        door.create(name, options=pack(Options(systemd_cgroup=True)))
    bundle.config["linux"]["cgroupsPath"] = "system.slice:manor:c1"
    bundle.write()
    with pytest.raises(RpcError, match="this machine was not booted with systemd"):
        door.create(name)
    end_shim(door)


def test_what_is_ignored_is_in_the_log(door: Door, name: str) -> None:
    bundle = door.bundle(name, SLEEP)
    os.mkfifo(bundle.path / "log")
    with open(os.open(bundle.path / "log", os.O_RDONLY | os.O_NONBLOCK)) as log:
        door.start(name, generic(BinaryName="/usr/bin/crun", SystemdCgroup=False, TaskApiVersion=3))
        door.create(name)
        assert "option BinaryName '/usr/bin/crun' is ignored" in log.readline()
        assert log.read() == ""
    end_shim(door, name)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (encode(pack(Empty())), b"type 'google.protobuf.Empty' are not known"),
        (generic(SystemdCgroups=True), b"there is no option SystemdCgroups"),
        (generic(CriuWorkPath="/x"), b"CriuWorkPath '/x'"),
        (generic(ShimCgroup="/no/such/cgroup"), b"ShimCgroup '/no/such/cgroup'"),
    ],
)
def test_a_start_with_options_that_cannot_be_is_refused_and_leaves_nothing(
    door: Door, name: str, options: bytes, complaint: bytes
) -> None:
    door.bundle(name, SLEEP)
    done = door.launch("start", name, options)
    assert done.returncode == 1
    assert complaint in done.stderr
    assert done.stdout == b""
    assert door.state_directories() == []
    door.start(name)  # the socket was given back
    end_shim(door)


@pytest.mark.parametrize(
    "options", [Empty(), Options(criu_image_path="/x"), RuntimeOptions(config_path="/x")]
)
def test_a_create_with_options_that_cannot_be_is_refused(door: Door, name: str, options: Message) -> None:
    door.bundle(name, SLEEP)
    door.start(name)
    with pytest.raises(RpcError, match="runtime options"):
        door.create(name, options=pack(options))
    door.create(name)
    end_shim(door, name)
