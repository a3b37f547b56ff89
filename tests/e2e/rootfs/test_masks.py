"""Masked and read-only paths."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.rootfs.conftest import mount_lines, options_of, replace_place, tmpfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.rootfs.apply import MountedRoot
    from tests.e2e.rootfs.conftest import Canary, Inside
    from tests.harness.bundles import Bundle

NULL = os.makedev(1, 3)
FILES = ("/proc/keys", "/proc/timer_list", "/etc/passwd")
DIRECTORIES = ("/sys/firmware", "/home")


def look_at_masks() -> list[Any]:
    devices = [os.stat(path).st_rdev for path in FILES]
    if devices != [NULL] * len(FILES):
        return [devices]  # it may be a fifo by now
    contents = [Path(path).read_bytes() for path in FILES]
    listings = [os.listdir(path) for path in DIRECTORIES]
    refused = []
    for path in DIRECTORIES:
        try:
            Path(path, "new").write_text("x")
        except OSError as error:
            refused.append(error.strerror)
    return [devices, [len(content) for content in contents], listings, refused]


MASKED = [[NULL] * 3, [0] * 3, [[]] * 2, ["Read-only file system"] * 2]


def test_masked_files_are_empty_and_masked_directories_too(inside: Inside, bundle: Bundle) -> None:
    bundle.config["linux"]["maskedPaths"] = [*FILES, *DIRECTORIES, *FILES, "/no/such", "/etc/passwd/below"]
    assert inside(look_at_masks) == MASKED
    # One tmpfs for all directories, one mount for each path.
    lines = [line.split() for line in inside(mount_lines)]
    places = [fields[4] for fields in lines]
    assert all(places.count(path) == 1 for path in (*FILES, *DIRECTORIES))
    assert len({fields[2] for fields in lines if fields[4] in DIRECTORIES}) == 1


def write_file(path: Path) -> None:
    path.write_text("not null")


HOSTILE_NULLS: dict[str, Callable[[Path], None]] = {
    "a symlink to a dangerous file": lambda path: path.symlink_to("/proc/sysrq-trigger"),
    "a symlink to a file of the image": lambda path: path.symlink_to("/secret"),
    "a regular file": write_file,
    "missing": lambda _path: None,
    "a fifo": os.mkfifo,
    "a directory": lambda path: path.mkdir(),
    "another device": lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5)),
}


@pytest.mark.parametrize("kind", HOSTILE_NULLS)
def test_masks_are_made_of_the_hosts_null_device_whatever_the_image_brings(
    inside: Inside, bundle: Bundle, canary: Canary, kind: str
) -> None:
    """CVE-2025-31133: the image has a /dev of its own, with something else as /dev/null."""
    bundle.config["mounts"] = [
        each for each in bundle.config["mounts"] if not each["destination"].startswith("/dev")
    ]
    bundle.config["linux"]["maskedPaths"] = [*FILES, *DIRECTORIES]
    (bundle.rootfs / "secret").write_text("secret")
    replace_place(bundle.rootfs / "dev/null")
    HOSTILE_NULLS[kind](bundle.rootfs / "dev/null")
    assert inside(look_at_masks) == MASKED


def test_a_null_device_swapped_just_before_the_pivot_masks_nothing(inside: Inside, bundle: Bundle) -> None:
    bundle.config["linux"]["maskedPaths"] = [*FILES, *DIRECTORIES]

    def swap(mounted: MountedRoot) -> None:
        with mounted.root.open("/dev") as dev:
            os.unlink("null", dir_fd=dev.fileno())
            os.symlink("/proc/sysrq-trigger", "null", dir_fd=dev.fileno())

    assert inside(look_at_masks, before=swap) == MASKED


def test_a_masked_path_that_is_a_symlink_masks_what_it_leads_to_inside(
    inside: Inside, bundle: Bundle, canary: Canary
) -> None:
    (bundle.rootfs / "secret").write_text("secret")
    (bundle.rootfs / "alias").symlink_to("/secret")
    (bundle.rootfs / "out").symlink_to(canary.path / "file")
    bundle.config["linux"]["maskedPaths"] = ["/alias", "/out"]
    assert inside(lambda: Path("/secret").read_text()) == ""


def test_a_masked_path_that_cannot_be_looked_up_ends_the_create(inside: Inside, bundle: Bundle) -> None:
    """A container is not run half masked."""
    (bundle.rootfs / "loop").symlink_to("loop")
    bundle.config["linux"]["maskedPaths"] = ["/loop"]
    with pytest.raises(AssertionError, match="MountError: mask /loop: .*Too many levels"):
        inside(lambda: None)
    bundle.config["linux"]["maskedPaths"] = []
    bundle.config["linux"]["readonlyPaths"] = ["/loop"]
    with pytest.raises(AssertionError, match="MountError: make read-only /loop: .*Too many levels"):
        inside(lambda: None)


def test_read_only_paths_keep_their_other_options_and_what_is_mounted_below(
    inside: Inside, bundle: Bundle
) -> None:
    bundle.config["mounts"] += [tmpfs("/run", "nosuid", "noexec"), tmpfs("/run/rw")]
    bundle.config["linux"]["readonlyPaths"] = [
        "/run",
        "/etc/passwd",
        "/proc/sys",
        "/proc/sysrq-trigger",
        "/none",
    ]

    def look() -> list[Any]:
        lines = mount_lines()
        Path("/run/rw/new").write_text("x")
        return [sorted(options_of(lines, path)) for path in ("/run", "/etc/passwd", "/proc/sys")]

    assert inside(look) == [
        ["noexec", "nosuid", "relatime", "ro"],
        ["relatime", "ro"],
        ["nodev", "noexec", "nosuid", "relatime", "ro"],
    ]


def test_the_default_masks_of_containerd_hold(inside: Inside, bundle: Bundle) -> None:
    bundle.config["linux"]["maskedPaths"] = [
        *(
            "/proc/asound",
            "/proc/acpi",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
        ),
        *("/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/proc/interrupts", "/sys/firmware"),
        *("/sys/devices/virtual/powercap", "/sys/devices/system/cpu/cpu0/thermal_throttle"),
    ]

    def visible() -> list[str]:
        paths = [path for path in bundle.config["linux"]["maskedPaths"] if os.path.exists(path)]
        return [
            path for path in paths if (os.listdir(path) if os.path.isdir(path) else Path(path).read_bytes())
        ]

    assert inside(visible) == []
