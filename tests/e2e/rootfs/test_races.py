"""Another container swaps parts of a shared volume while ours is made: no iteration may leave the root.

The swapper exchanges a directory with a symlink to the host as fast as it can (renameat2, RENAME_EXCHANGE);
meanwhile containers are made that mount below that directory (CVE-2021-30465, CVE-2023-27561, CVE-2024-45310).
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.linux.beneath import Root
from runtime.linux.fds import OwnedFd
from tests.e2e.rootfs.conftest import bind, mount_lines, tmpfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.rootfs.conftest import Canary, Inside
    from tests.harness.bundles import Bundle

SECONDS = 1.5
RENAME_EXCHANGE = 2
AT_FDCWD = -100


@contextmanager
def swapping(first: Path, second: Path) -> Iterator[None]:
    """A child that exchanges two names until the block is left."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    pid = os.fork()
    if pid == 0:
        parent = os.getppid()
        while os.getppid() == parent:
            libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def volume(tmp_path: Path, bundle: Bundle, canary: Canary) -> Path:
    """A volume that two containers share, with a directory and a symlink to the host in it."""
    made = tmp_path / "volume"
    (made / "a/b").mkdir(parents=True)
    (made / "link").symlink_to(f"../../../../../../../../../..{canary.path}")
    bundle.config["mounts"].append(bind(made, "/volume"))
    return made


def places_of_mounts() -> list[str]:
    return [line.split()[4] for line in mount_lines()]


@pytest.mark.parametrize(
    "mounts",
    [
        [tmpfs("/volume/a/b/etc")],
        [tmpfs("/volume/a/new"), tmpfs("/volume/a/new/x/../y")],
        [bind("/etc", "/volume/a/deep/er")],
        [bind("/etc/hostname", "/volume/a/file")],
    ],
    ids=["directory there", "directories missing", "bind missing", "file missing"],
)
def test_a_swapped_volume_never_leads_a_mount_out(
    inside: Inside, bundle: Bundle, canary: Canary, volume: Path, mounts: list[dict[str, Any]]
) -> None:
    bundle.config["mounts"] += mounts
    made = refused = 0
    with swapping(volume / "a", volume / "link"):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                places = inside(places_of_mounts)
            except AssertionError as failure:
                text = str(failure)
                if "runtime.errors.MountError: " not in text:
                    raise
                refused += 1
                continue
            made += 1
            # Wherever the link led, it led there inside: below the volume or the canary's path within the root.
            ours = [place for place in places if place.endswith(("etc", "new", "y", "er", "file"))]
            assert all(place.startswith(("/volume/", f"{canary.path}/")) for place in ours), ours
    canary.assert_untouched()
    assert made, f"nothing was ever made, {refused} were refused"


def test_directories_made_in_a_swapped_tree_stay_in_it(tmp_path: Path, canary: Canary) -> None:
    """The same without mounts, and therefore many more times."""
    inside_root = tmp_path / "root"
    (inside_root / "a").mkdir(parents=True)
    (inside_root / "link").symlink_to(f"../../../../../../../../../..{canary.path}")
    root = Root(OwnedFd(os.open(inside_root, os.O_PATH)))
    tries = 0
    with swapping(inside_root / "a", inside_root / "link"):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            tries += 1
            try:
                root.make_directories(f"/a/d{tries}/e").close()
                root.make_file(f"/a/f{tries}").close()
            except OSError:
                continue
    root.close()
    canary.assert_untouched()
    # Both the directory and the link were met; the link led to the canary's path inside the root.
    directory = next(path for path in (inside_root / "a", inside_root / "link") if not path.is_symlink())
    assert len(list(directory.iterdir())) > 20
    assert len(list(Path(f"{inside_root}{canary.path}").iterdir())) > 20
