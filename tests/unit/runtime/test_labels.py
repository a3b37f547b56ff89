"""Security labels and keyrings: what a process is given, through a procfs that nobody can have prepared."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from runtime import labels
from runtime.errors import Unsupported
from runtime.labels import LabelError
from runtime.linux import keyring
from runtime.linux.fds import OwnedFd
from tests.unit.runtime.forked import in_child

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("text", "enabled"), [("Y\n", True), ("N\n", False), ("", False), (None, False)])
def test_apparmor_is_there_when_its_module_says_so(tmp_path: Path, text: str | None, enabled: bool) -> None:
    if text is not None:
        (tmp_path / "enabled").write_text(text)
    assert labels.apparmor_enabled(str(tmp_path / "enabled")) is enabled


def test_a_directory_is_no_selinux(tmp_path: Path) -> None:
    assert labels.selinux_enabled(str(tmp_path)) is False
    assert labels.selinux_enabled(str(tmp_path / "missing")) is False


def test_a_label_without_its_module_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "apparmor_enabled", lambda: False)
    monkeypatch.setattr(labels, "selinux_enabled", lambda: False)
    with pytest.raises(Unsupported, match="AppArmor profile 'p' is asked for, but AppArmor is not enabled"):
        labels.require_available("p", None)
    with pytest.raises(Unsupported, match="SELinux label 'l' is asked for, but SELinux is not enabled"):
        labels.require_available("", "l")
    labels.require_available("", "")
    labels.require_available(None, None)


def test_without_labels_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_procfs", lambda: pytest.fail("opened a procfs"))
    labels.apply(None, None)
    labels.apply("", "")


def made_up_task(root: Path, *attributes: str) -> OwnedFd:
    for attribute in attributes:
        (root / "attr" / attribute).parent.mkdir(parents=True, exist_ok=True)
        (root / "attr" / attribute).touch()
    return OwnedFd(os.open(root, os.O_PATH))


def test_an_attribute_that_is_not_in_a_procfs_is_not_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(labels, "_own_task", lambda: made_up_task(tmp_path, "exec", "apparmor/exec"))
    for apparmor, selinux in (("p", None), (None, "l")):
        with pytest.raises(LabelError, match="is not procfs's"):
            labels.apply(apparmor, selinux)
    assert (
        (tmp_path / "attr" / "exec").read_text()
        == (tmp_path / "attr" / "apparmor" / "exec").read_text()
        == ""
    )


@pytest.mark.parametrize(
    ("attributes", "apparmor", "selinux", "written"),
    [
        (("exec",), None, "system_u:system_r:container_t:s0", {"exec": "system_u:system_r:container_t:s0"}),
        (("exec", "apparmor/exec"), "docker", None, {"exec": "", "apparmor/exec": "exec docker"}),
        (("exec",), "docker", None, {"exec": "exec docker"}),
    ],
)
def test_each_module_has_its_own_attribute(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    attributes: tuple[str, ...],
    apparmor: str | None,
    selinux: str | None,
    written: dict[str, str],
) -> None:
    monkeypatch.setattr(labels, "_own_task", lambda: made_up_task(tmp_path, *attributes))
    monkeypatch.setattr(labels, "filesystem_magic", lambda _fd: 0x9FA0)
    labels.apply(apparmor, selinux)
    assert {name: (tmp_path / "attr" / name).read_text() for name in attributes} == written


def test_a_symlink_in_the_place_of_an_attribute_is_not_followed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made_up_task(tmp_path, "other").close()
    (tmp_path / "attr" / "exec").symlink_to("other")
    monkeypatch.setattr(labels, "_own_task", lambda: OwnedFd(os.open(tmp_path, os.O_PATH)))
    monkeypatch.setattr(labels, "filesystem_magic", lambda _fd: 0x9FA0)
    with pytest.raises(LabelError, match="SELinux label l: Too many levels"):
        labels.apply(None, "l")


def test_a_label_the_kernel_does_not_take_is_named() -> None:
    if labels.apparmor_enabled() or labels.selinux_enabled():
        pytest.skip("a security module is at work here")
    with pytest.raises(LabelError, match="set SELinux label no_such_label: "):
        labels.apply(None, "no_such_label")
    with pytest.raises(LabelError, match="set AppArmor profile no-such-profile: "):
        labels.apply("no-such-profile", None)


def test_our_own_task_is_found_in_a_real_procfs() -> None:
    with labels._own_task() as task:
        fd = os.open("stat", os.O_RDONLY, dir_fd=task.fileno())
        try:
            assert os.read(fd, 100).split()[0] == b"%d" % os.getpid()
        finally:
            os.close(fd)


# ---- the session keyring -----------------------------------------------------------------------


def keys_are_there() -> bool:
    return os.path.exists("/proc/keys")


OUR_SESSION_KEYRING = -3  # KEY_SPEC_SESSION_KEYRING, as good as a serial number


@pytest.mark.skipif(not keys_are_there(), reason="a kernel without keys")
@pytest.mark.parametrize("in_user_namespace", [False, True])
def test_a_landlord_leaves_the_session_keyring_and_its_tenant_finds_it(in_user_namespace: bool) -> None:
    name = f"manor-test-{os.getpid()}-{in_user_namespace}"

    def tenant() -> int:
        keyring.join_session_keyring("another")  # a tenant does not come with its landlord's
        labels.join_session_keyring(name, None)
        return keyring.session_keyring()

    def work() -> list[bool]:
        before = keyring.session_keyring()
        labels.make_session_keyring(name, in_user_namespace, None)
        mine = keyring.session_keyring()
        others = bool(keyring.permissions(OUR_SESSION_KEYRING) & keyring.KEY_OTH_SEARCH)
        return [mine != before, in_child(tenant) == mine, others]

    assert in_child(work) == [True, True, in_user_namespace]


def test_a_kernel_without_keys_has_nothing_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_name: str) -> int:
        raise OSError(38, "keyctl: Function not implemented")

    monkeypatch.setattr(keyring, "join_session_keyring", absent)
    labels.make_session_keyring("c", False, None)
    labels.join_session_keyring("c", None)


def test_a_keyring_that_cannot_be_had_names_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_name: str) -> int:
        raise OSError(122, "keyctl: Disk quota exceeded")

    monkeypatch.setattr(keyring, "join_session_keyring", full)
    with pytest.raises(LabelError, match="join session keyring of c1: Disk quota exceeded"):
        labels.make_session_keyring("c1", False, None)
