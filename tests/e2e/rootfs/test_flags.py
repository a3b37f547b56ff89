"""Flags of bind mounts whose source has flags of its own: free for root, locked in a user namespace; beside runc."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from runtime.errors import ManorError
from tests.e2e.rootfs.conftest import by_runc, with_user_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.runtime.conftest import Runner

REFUSED = None  # in a user namespace; root gets the same as from runc

# The source's flags, the mount's options, and what a user namespace makes of them.
CASES = [
    ("ro,noexec,nosymfollow,nodiratime", "bind", "ro,noexec,nodiratime,relatime,nosymfollow"),
    ("ro,noexec,nosymfollow,nodiratime", "bind,dev", "ro,noexec,nodiratime,relatime"),
    ("ro", "bind,nosuid,nodev,rprivate", "ro,nosuid,nodev"),
    ("ro", "bind,rw,nosuid,nodev,rprivate", REFUSED),
    ("nosuid,nodev,noexec,noatime", "bind,dev,suid,exec,atime", REFUSED),
    ("nodev,nosuid,noexec,noatime", "bind,ro", "ro,nosuid,nodev,noexec,noatime"),
    ("nodev,nosymfollow", "bind,ro,symfollow", "ro,nodev"),
    ("nodev,nosymfollow", "bind,rw", "rw,nodev"),
    ("nodev,nosuid,noatime", "bind,ro,exec", "ro,nosuid,nodev,noatime"),
    ("noatime", "bind", "rw,noatime"),
    ("noatime", "bind,norelatime", "rw,noatime"),
    ("noatime", "bind,atime", "rw,noatime"),
    ("ro,noatime", "bind,atime", REFUSED),
    ("ro,relatime", "bind,norelatime", REFUSED),
    ("ro,nodiratime", "bind,diratime", REFUSED),
    ("noatime", "bind,relatime", REFUSED),
    ("noatime", "bind,nodiratime", REFUSED),
    ("nodiratime", "bind,strictatime", REFUSED),
    ("noatime", "bind,nodiratime,strictatime", REFUSED),
    ("strictatime", "bind,relatime", REFUSED),
    ("strictatime", "bind,nostrictatime", "rw"),
    ("noatime,nodiratime", "bind,atime", "rw,noatime,nodiratime"),
    ("relatime", "bind,nodiratime", REFUSED),
    ("nosuid", "rbind,rrw", "rw,nosuid"),
    ("nosuid", "rbind,rsuid", REFUSED),
    ("noatime", "rbind,rnoatime,rro", "ro,noatime"),
]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    """A mount without flags; they are set on it, and not on its file system, by `set_flags`."""
    place = tmp_path / "source"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "strictatime", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def shown_flags(runner: Runner, source: Path, options: str, user_namespace: bool) -> list[str | None]:
    """The flags of the mount with us and with runc, None where it is refused."""
    found: list[str | None] = []
    for engine in ("manor", "runc"):
        bundle = runner.bundle("sh", "-c", "grep ' /data ' /proc/self/mountinfo | cut -d' ' -f6")
        bundle.config["mounts"].append(
            {"destination": "/data", "type": "none", "source": str(source), "options": options.split(",")}
        )
        if user_namespace:
            with_user_namespace(bundle)
        if engine == "runc":
            done = by_runc(bundle)
            found.append(None if done.returncode else done.stdout.strip())
            continue
        try:
            found.append(runner.run(bundle).stdout.strip())
        except ManorError as error:
            found.append(None if "Operation not permitted" in str(error) else str(error))
    return found


@pytest.mark.parametrize(("flags", "options", "expected"), CASES)
def test_flags_are_those_of_the_options_and_a_user_namespace_cannot_undo_the_hosts(
    runner: Runner, source: Path, flags: str, options: str, expected: str | None
) -> None:
    subprocess.run(["mount", "--bind", "-o", f"remount,{flags}", str(source)], check=True)
    ours, runcs = shown_flags(runner, source, options, user_namespace=False)
    assert ours is not None
    assert ours == runcs
    ours, runcs = shown_flags(runner, source, options, user_namespace=True)
    assert ours == expected
    assert ours == runcs
