"""A container's /dev."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.cgroups.layout import detect_layout
from runtime.linux.constants import WALL
from runtime.linux.process import unshare
from runtime.operations.start import start
from runtime.rootfs.apply import apply_mounts
from runtime.rootfs.device_plan import DeviceNode
from runtime.rootfs.pivot import make_cwd, pivot_into
from runtime.rootfs.plan import RootfsPlan, plan_rootfs
from runtime.rootfs.protect import protect
from runtime.spec.load import load_spec
from runtime.waiting import run
from tests.e2e.rootfs.conftest import NAMESPACES, bind, mount_lines, tmpfs
from tests.unit.runtime.forked import enter_user_namespace, in_child

if TYPE_CHECKING:
    from tests.e2e.rootfs.conftest import Canary, Inside
    from tests.e2e.runtime.conftest import Runner
    from tests.harness.bundles import Bundle

NULL = os.makedev(1, 3)


def list_dev() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name in sorted(os.listdir("/dev")):
        status = os.lstat(f"/dev/{name}")
        if stat.S_ISLNK(status.st_mode):
            found[name] = [os.readlink(f"/dev/{name}")]
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            found[name] = [oct(status.st_mode), os.major(status.st_rdev), os.minor(status.st_rdev)]
        else:
            found[name] = [oct(status.st_mode)]
    return found


def test_the_default_devices_and_links_are_there(inside: Inside, bundle: Bundle) -> None:
    found = inside(list_dev)
    core = {"core": ["/proc/kcore"]} if os.path.exists("/proc/kcore") else {}
    assert found == core | {
        "fd": ["/proc/self/fd"],
        "full": ["0o20666", 1, 7],
        "null": ["0o20666", 1, 3],
        "ptmx": ["pts/ptmx"],
        "pts": ["0o40755"],
        "random": ["0o20666", 1, 8],
        "shm": ["0o41777"],
        "stderr": ["/proc/self/fd/2"],
        "stdin": ["/proc/self/fd/0"],
        "stdout": ["/proc/self/fd/1"],
        "tty": ["0o20666", 5, 0],
        "urandom": ["0o20666", 1, 9],
        "zero": ["0o20666", 1, 5],
    }


def test_devices_of_the_config_have_their_kind_mode_and_owner(inside: Inside, bundle: Bundle) -> None:
    bundle.config["linux"]["devices"] = [
        {
            "path": "/dev/net/tun",
            "type": "c",
            "major": 10,
            "minor": 200,
            "fileMode": 0o600,
            "uid": 7,
            "gid": 8,
        },
        {"path": "/dev/loop9", "type": "b", "major": 7, "minor": 9, "fileMode": 0o660},
        {"path": "/srv/pipe", "type": "p"},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o444},
    ]

    def look() -> list[Any]:
        found = []
        for path in ("/dev/net/tun", "/dev/loop9", "/srv/pipe", "/dev/null"):
            status = os.stat(path)
            found.append([oct(status.st_mode), status.st_rdev, status.st_uid, status.st_gid])
        return found

    assert inside(look) == [
        ["0o20600", os.makedev(10, 200), 7, 8],
        ["0o60660", os.makedev(7, 9), 0, 0],
        ["0o10666", 0, 0, 0],
        ["0o20444", os.makedev(1, 3), 0, 0],
    ]


def test_an_images_own_ptmx_is_replaced(inside: Inside, bundle: Bundle) -> None:
    bundle.config["mounts"] = [each for each in bundle.config["mounts"] if each["destination"] != "/dev"]
    os.mknod(bundle.rootfs / "dev/ptmx", stat.S_IFCHR | 0o666, os.makedev(5, 2))
    assert inside(lambda: os.readlink("/dev/ptmx")) == "pts/ptmx"


def test_a_bound_dev_gets_nothing_from_us(inside: Inside, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    bundle.config["mounts"] = [bundle.config["mounts"][0], bind(tmp_path / "dev", "/dev", "ro")]
    assert inside(list_dev) == {}
    assert list((tmp_path / "dev").iterdir()) == []


@pytest.mark.parametrize("variant", ["/dev/pts", "/dev/shm", "/dev/mqueue", "/etc", "/run"])
def test_a_dev_that_is_a_symlink_fills_nothing_outside(
    inside: Inside, bundle: Bundle, canary: Canary, variant: str
) -> None:
    """CVE-2026-41579, CVE-2026-47766: a directory of the image leads to one of the host's; places are made in it."""
    bundle.config["mounts"] = [
        bundle.config["mounts"][0],
        tmpfs(f"{variant}/new/place"),
        bind(canary.path / "file", f"{variant}/file"),
    ]
    path = bundle.rootfs / variant[1:]
    if path.is_dir():
        for entry in path.iterdir():
            entry.unlink()
        path.rmdir()
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(canary.path / "dir")
    assert inside(lambda: Path(f"{variant}/file").read_text()) == "canary\n"
    canary.assert_untouched()
    assert (bundle.rootfs / str(canary.path)[1:] / "dir/new/place").is_dir()


def test_a_dev_that_is_a_symlink_is_refused_and_a_volume_behind_it_untouched(
    inside: Inside, bundle: Bundle, tmp_path: Path
) -> None:
    """The same by a volume: nodes and links would be made in a directory of the host's, and its ptmx replaced."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "ptmx").write_text("precious")
    (bundle.rootfs / "dev").rmdir()
    (bundle.rootfs / "dev").symlink_to("/vol")
    bundle.config["mounts"] = [bundle.config["mounts"][0], bind(volume, "/vol", "rw")]
    with pytest.raises(AssertionError, match="populate /dev: .*symbolic links"):
        inside(lambda: None)
    assert [path.name for path in volume.iterdir()] == ["ptmx"]
    assert (volume / "ptmx").read_text() == "precious"


@pytest.mark.parametrize("target", ["{canary}/new", "{canary}/file", "/proc/sys/kernel/core_pattern"])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_that_is_a_symlink_is_not_followed(
    runner: Runner, canary: Canary, target: str, terminal: bool
) -> None:
    """CVE-2026-88264, CVE-2025-52565."""
    bundle = runner.bundle("true")
    bundle.config["mounts"] = [each for each in bundle.config["mounts"] if each["destination"] != "/dev"]
    bundle.config["process"]["terminal"] = terminal
    (bundle.rootfs / "dev/console").symlink_to(target.format(canary=canary.path))
    if terminal:
        with pytest.raises(Exception, match="/dev/console is a symlink in the root file system"):
            runner.create(bundle)
    else:
        assert runner.run(bundle).code == 0


def test_a_read_only_dev_still_gets_its_devices_and_console(runner: Runner) -> None:
    bundle = runner.bundle("sh", "-c", "echo x > /dev/null && ! touch /dev/new && test -c /dev/console")
    bundle.config["mounts"][1]["options"].append("ro")
    bundle.config["process"]["terminal"] = True
    container = runner.create(bundle)
    run(start(container))
    status = os.waitpid(container.pid, WALL)[1]
    container.ended()
    runner.delete(container)
    assert os.waitstatus_to_exitcode(status) == 0


def test_in_a_user_namespace_the_hosts_devices_are_bound(bundle: Bundle) -> None:
    """mknod(2) is not allowed there. One mapped id is enough: the default /dev/pts wants gid 5, which has none."""
    mapping = [{"containerID": 0, "hostID": 0, "size": 1}]
    bundle.config["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    bundle.config["mounts"][2]["options"].remove("gid=5")
    bundle.config["root"]["readonly"] = True
    plan = plan_rootfs(load_spec(bundle.write()), str(bundle.path), detect_layout().view())

    def init() -> list[Any]:
        mounted = apply_mounts(plan)
        pivot_into(mounted)
        make_cwd(mounted)
        protect(mounted)
        Path("/dev/null").write_text("x")
        devices = {name: os.stat(f"/dev/{name}").st_rdev for name in ("null", "tty", "zero")}
        masked = os.stat("/proc/keys").st_rdev
        return [
            devices,
            masked,
            [line.split()[3] for line in mount_lines() if line.split()[4] == "/dev/null"],
        ]

    def parent() -> Any:
        enter_user_namespace(NAMESPACES)
        return in_child(init)

    devices, masked, sources = in_child(parent)
    assert devices == {"null": NULL, "tty": os.makedev(5, 0), "zero": os.makedev(1, 5)}
    assert masked == NULL
    assert sources == ["/null"]


def test_a_device_of_the_host_that_is_another_one_is_not_bound(bundle: Bundle) -> None:
    plan = RootfsPlan(
        root=str(bundle.rootfs),
        bind_devices=True,
        devices=(DeviceNode("/dev/zero", stat.S_IFCHR | 0o666, 1, 3),),
    )

    def init() -> None:
        unshare(NAMESPACES)
        apply_mounts(plan)

    with pytest.raises(AssertionError, match="device /dev/zero: not the device 1:3 that was asked for"):
        in_child(init)
