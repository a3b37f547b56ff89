"""The files that a pod has for its containers; mounts are tried in the end-to-end tests."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from runtime.errors import MountError
from runtime.linux import mount
from shim.pod_files import PodFiles, share_label
from shim.pod_plan import PodPlan

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="umount(2) is root's, even of what is not mounted")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PodFiles:
    monkeypatch.setattr(mount, "mount", lambda *_arguments: None)
    return PodFiles(str(tmp_path))


def read(files: PodFiles) -> dict[str, str]:
    return {name: Path(source).read_text() for name, source in files.sources().items()}


def test_a_pod_has_a_host_name_hosts_and_a_resolver(files: PodFiles) -> None:
    before = os.umask(0o077)
    try:
        files.make(PodPlan("p1", (), hostname="my-pod", dns="nameserver 1.1.1.1\n"))
    finally:
        os.umask(before)
    assert read(files) == {
        "/etc/hostname": "my-pod\n",
        "/etc/hosts": Path("/etc/hosts").read_text(),
        "/etc/resolv.conf": "nameserver 1.1.1.1\n",
    }
    assert {Path(source).stat().st_mode & 0o777 for source in files.sources().values()} == {0o644}


def test_what_the_pod_does_not_say_is_the_nodes(files: PodFiles) -> None:
    files.make(PodPlan("p1", ()))
    found = read(files)
    assert found["/etc/hostname"] == f"{os.uname().nodename}\n"
    assert found.get("/etc/resolv.conf", "") == (
        Path("/etc/resolv.conf").read_text() if Path("/etc/resolv.conf").exists() else ""
    )


def test_a_file_that_the_node_does_not_have_is_left_out(
    files: PodFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def without_hosts(path: str, *arguments: int) -> int:
        if path == "/etc/hosts":
            raise FileNotFoundError(path)
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", without_hosts)
    files.make(PodPlan("p1", ()))
    assert "/etc/hosts" not in files.sources()


@ROOT_ONLY
def test_all_of_it_goes_and_nothing_else(files: PodFiles, tmp_path: Path) -> None:
    files.make(PodPlan("p1", ()))
    bundle = Path(files.bundle_of("p1"))
    bundle.mkdir()
    (bundle / "config.json").touch()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (bundle / "link").symlink_to(outside)
    files.remove()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["outside"]
    assert (outside / "kept").exists()
    files.remove()


@pytest.mark.parametrize("is_link", [True, False])
def test_what_is_in_its_place_goes_and_what_that_leads_to_stays(
    files: PodFiles, tmp_path: Path, is_link: bool
) -> None:
    outside = tmp_path / "outside"
    (outside / "etc").mkdir(parents=True)
    place = Path(files.directory)
    place.symlink_to(outside) if is_link else place.touch()
    files.remove()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["outside"]
    assert (outside / "etc").exists()


def test_the_label_of_its_files_has_no_categories_and_follows_no_symlink(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_to: list[tuple[object, ...]] = []

    def setxattr(path: str, name: str, value: bytes, follow_symlinks: bool = True) -> None:
        set_to.append((path, name, value, follow_symlinks))

    monkeypatch.setattr(os, "setxattr", setxattr)
    share_label(["/a", "/b"], "system_u:object_r:container_file_t:s0:c1,c2")
    share_label(["/c"], "system_u:object_r:container_file_t")
    label = b"system_u:object_r:container_file_t:s0\0"
    assert set_to == [(path, "security.selinux", label, False) for path in ("/a", "/b", "/c")]


@pytest.mark.parametrize(("code", "fails"), [(errno.ENOTSUP, False), (errno.EINVAL, True)])
def test_a_label_that_the_policy_does_not_know_is_an_error_and_a_file_system_without_is_none(
    monkeypatch: pytest.MonkeyPatch, code: int, fails: bool
) -> None:
    def setxattr(*_arguments: object, **_named: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "setxattr", setxattr)
    with pytest.raises(MountError, match="label /a 'u:r:t:s0'") if fails else nullcontext():
        share_label(["/a"], "u:r:t:s0:c5")
