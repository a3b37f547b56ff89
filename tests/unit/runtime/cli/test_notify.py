"""The proxy of sd_notify(3): which messages are passed on, and what becomes of a config."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.cli.notify import Proxy
from runtime.errors import InvalidState
from runtime.spec.load import load_spec
from tests.harness.bundles import Bundle, default_config


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "manager"))
        made.settimeout(60)
        yield made


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    (tmp_path / "notify").mkdir()
    made = Proxy(str(tmp_path / "manager"), str(tmp_path))
    made.listen()
    yield made
    made.close()


def _say(tmp_path: Path, message: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as container:
        container.sendto(message, str(tmp_path / "notify/notify.sock"))


@pytest.mark.parametrize("message", [b"READY=1", b"READY=1\n", b"STATUS=x\nREADY=1\nMAINPID=7"])
def test_ready_is_passed_on_with_the_pid_outside(
    tmp_path: Path, manager: socket.socket, proxy: Proxy, message: bytes
) -> None:
    _say(tmp_path, message)
    assert proxy.pass_on(42)
    assert [manager.recv(100) for _each in range(3)] == [b"READY=1\n", b"MAINPID=42\n", b"BARRIER=1"]


@pytest.mark.parametrize("message", [b"STATUS=READY=1", b"MAINPID=1", b"", b"X" * 5000])
def test_all_else_is_not(tmp_path: Path, manager: socket.socket, proxy: Proxy, message: bytes) -> None:
    _say(tmp_path, message)
    assert not proxy.pass_on(42)
    manager.settimeout(0)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_a_manager_that_is_not_there_is_only_a_warning(
    tmp_path: Path, proxy: Proxy, capfd: pytest.CaptureFixture[str]
) -> None:
    _say(tmp_path, b"READY=1")
    assert proxy.pass_on(42)
    assert "level=warning" in capfd.readouterr().err


def test_without_the_directory_the_container_was_not_made_for_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidState, match="created without NOTIFY_SOCKET"):
        Proxy("/x", str(tmp_path)).listen()


def test_nobody_to_tell_is_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert Proxy.for_container("/x") is None
    monkeypatch.setenv("NOTIFY_SOCKET", "/y")
    assert Proxy.for_container("/x") is not None


def test_the_config_gets_a_mount_and_a_variable(tmp_path: Path) -> None:
    bundle = Bundle.__new__(Bundle)
    bundle.path = tmp_path
    bundle.config = default_config(["x"], "")
    spec = Proxy("/y", "/run/c").prepare(load_spec(bundle.write()))
    assert spec.process.env[-1] == "NOTIFY_SOCKET=/run/notify/notify.sock"
    mount = spec.mounts[-1]
    assert (mount.destination, mount.source) == ("/run/notify", "/run/c/notify")
    assert "ro" in (mount.options or ())
