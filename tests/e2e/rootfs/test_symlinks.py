"""Hostile root file systems: whatever an image puts where the runtime works, nothing on the host is touched.

For each place that the runtime, or a pod's usual mounts, come near, the image holds a symlink out, a dangling
one, a loop, a fifo, a socket, a device, a file, a closed directory or nothing. A container may start or be
refused; it may not change the host.
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.errors import ManorError
from runtime.linux.constants import WALL
from runtime.operations.start import start
from runtime.waiting import run as drive
from tests.e2e.rootfs.conftest import bind, mount_lines, replace_place, tmpfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.rootfs.conftest import Canary, Inside
    from tests.e2e.runtime.conftest import Runner
    from tests.harness.bundles import Bundle

PLACES = (
    *("/dev", "/dev/null", "/dev/console", "/dev/ptmx", "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd"),
    *("/proc", "/proc/self", "/sys", "/sys/fs/cgroup", "/etc", "/etc/hosts", "/etc/hostname", "/etc/mtab"),
    *("/etc/resolv.conf", "/run", "/run/secrets", "/tmp", "/srv/app", "/data", "/volume/file", "/masked"),
)


def relative(path: Path) -> str:
    return "../" * 40 + str(path).lstrip("/")


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's address has 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


KINDS: dict[str, Callable[[Path, Path], object]] = {
    "symlink out": lambda place, host: place.symlink_to(host / "dir"),
    "symlink to a file": lambda place, host: place.symlink_to(host / "file"),
    "relative symlink out": lambda place, host: place.symlink_to(relative(host / "dir")),
    "dangling symlink": lambda place, host: place.symlink_to(host / "new"),
    "symlink to a magic link": lambda place, _host: place.symlink_to("/proc/1/root"),
    "loop": lambda place, _host: place.symlink_to(place.name),
    "fifo": lambda place, _host: os.mkfifo(place),
    "socket": lambda place, _host: make_socket(place),
    "device": lambda place, _host: os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 7)),
    "file": lambda place, _host: place.write_text("x"),
    "closed directory": lambda place, _host: place.mkdir(mode=0),
    "nothing": lambda _place, _host: None,
}


def harden(bundle: Bundle, canary: Canary, mounted_dev: bool) -> None:
    """Everything that a pod's container asks for, so that every place is used."""
    source = canary.path.parent / "sources"
    source.mkdir(exist_ok=True)
    (source / "file").write_text("content")
    (source / "dir").mkdir(exist_ok=True)
    config = bundle.config
    if not mounted_dev:
        config["mounts"] = [each for each in config["mounts"] if not each["destination"].startswith("/dev")]
    else:
        config["mounts"].append({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"})
    config["mounts"] += [
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
        *(bind(source / "file", f"/etc/{name}") for name in ("hosts", "hostname", "resolv.conf")),
        tmpfs("/run", "mode=755"),
        bind(source / "dir", "/run/secrets/pod", "ro"),
        tmpfs("/tmp", "tmpcopyup"),
        bind(source / "dir", "/data"),
        bind(source / "file", "/volume/file"),
    ]
    config["process"]["cwd"] = "/srv/app"
    config["linux"]["maskedPaths"] += ["/masked", "/etc/mtab"]
    config["linux"]["readonlyPaths"] += ["/run", "/dev/shm"]
    config["linux"]["devices"] = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "uid": 1}]


@pytest.mark.parametrize(
    ("place", "mounted_dev"),
    [*((place, True) for place in PLACES), *((place, False) for place in PLACES if place.startswith("/dev"))],
)
def test_no_image_gets_at_the_host_by_what_it_has_at(
    inside: Inside, bundle: Bundle, canary: Canary, place: str, mounted_dev: bool
) -> None:
    harden(bundle, canary, mounted_dev)
    bundle.config["process"]["terminal"] = True
    finished = 0
    for kind, make in KINDS.items():
        path = Path(f"{bundle.rootfs}{place}")
        replace_place(path)
        make(path, canary.path)
        ordinary = kind in ("closed directory", "nothing")
        names, refusal = names_or_refusal(inside)
        if names:
            finished += 1
            assert "bin" in names
            assert place not in ("/proc", "/sys") or ordinary, kind
        else:
            assert "runtime.errors.MountError: " in refusal, kind
        canary.assert_untouched()
    assert finished, "no image could be used at all: the test does not test what it seems to"


def names_or_refusal(inside: Inside) -> tuple[list[str], str]:
    """What is in the root of a container that could be made; the error, with traceback, of one that could not."""
    try:
        return inside(lambda: sorted(os.listdir("/"))), ""
    except AssertionError as failure:
        return [], str(failure)


@pytest.mark.parametrize("place", ["/dev", "/dev/null", "/dev/console", "/proc", "/etc/hosts", "/srv/app"])
def test_no_container_of_such_an_image_gets_at_the_host(runner: Runner, canary: Canary, place: str) -> None:
    bundle = runner.bundle("sh", "-c", "echo x > /data/written; echo x > /dev/null; : > /etc/hosts")
    harden(bundle, canary, mounted_dev=True)
    for terminal in (True, False):
        bundle.config["process"]["terminal"] = terminal
        for kind in ("symlink out", "dangling symlink", "fifo"):
            path = Path(f"{bundle.rootfs}{place}")
            replace_place(path)
            KINDS[kind](path, canary.path)
            try:
                container = runner.create(bundle)
            except ManorError:
                continue
            drive(start(container))
            os.waitpid(container.pid, WALL)
            container.ended()
            runner.delete(container)
            canary.assert_untouched()


@pytest.mark.parametrize("place", ["/proc", "/sys"])
@pytest.mark.parametrize("target", ["/elsewhere", "elsewhere", "/dev"])
def test_proc_and_sys_must_be_ordinary_directories(
    inside: Inside, bundle: Bundle, place: str, target: str
) -> None:
    (bundle.rootfs / "elsewhere").mkdir()
    (bundle.rootfs / place[1:]).rmdir()
    (bundle.rootfs / place[1:]).symlink_to(target)
    with pytest.raises(AssertionError, match=f"{place} must be mounted on ordinary directory"):
        inside(lambda: None)


def test_a_symlink_in_the_last_place_of_a_destination_is_followed_inside(
    inside: Inside, bundle: Bundle, canary: Canary
) -> None:
    """CVE-2019-18837: the place is made where the link leads to, seen from inside."""
    (bundle.rootfs / "etc/resolv.conf").symlink_to(canary.path / "new")
    bundle.config["mounts"].append(bind(canary.path / "file", "/etc/resolv.conf"))
    assert inside(lambda: Path("/etc/resolv.conf").read_text()) == "canary\n"
    assert (Path(f"{bundle.rootfs}{canary.path}") / "new").is_file()


@pytest.mark.parametrize("name", ["a]:b", "a[b", "a,b", "a\tb", "a\\b", "a\nb", "é", "a b", "..x", "a" * 255])
def test_odd_names_of_destinations_are_taken_as_they_are(
    inside: Inside, bundle: Bundle, canary: Canary, name: str
) -> None:
    bundle.config["mounts"].append(bind(canary.path / "dir", f"/{name}", "ro"))
    places = [line.split()[4] for line in inside(mount_lines)]
    for plain, octal in (("\\", "\\134"), (" ", "\\040"), ("\t", "\\011"), ("\n", "\\012")):
        name = name.replace(plain, octal)
    assert f"/{name}" in places
