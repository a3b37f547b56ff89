"""A container's terminal, as the program in it sees it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import ManorError
from runtime.operations.start import start
from runtime.stages.plan import DIRECT, STAGED
from runtime.waiting import run

if TYPE_CHECKING:
    from runtime.linux.fds import OwnedFd
    from tests.e2e.credentials.conftest import Runner
    from tests.harness.bundles import Bundle

# Created apart, a container's terminal is the caller's to ask for beforehand; that has its own tests.
pytestmark = pytest.mark.parametrize(
    "way", [(DIRECT, False), (STAGED, False)], indirect=True, ids=["direct", "staged"]
)


def with_terminal(bundle: Bundle) -> dict[str, Any]:
    process: dict[str, Any] = bundle.config["process"]
    process |= {
        "terminal": True,
        "consoleSize": {"height": 40, "width": 90},
        "user": {"uid": 1000, "gid": 1000},
    }
    return process


def read_all(console: OwnedFd) -> str:
    text = b""
    with console:
        while True:
            try:
                data = os.read(console.fileno(), 4096)
            except OSError:  # EIO: no slave is open any more
                return text.decode()
            text += data


def test_an_init_has_the_terminal_of_its_own_devpts_and_its_user_owns_it(runner: Runner) -> None:
    bundle = runner.bundle(
        "sh", "-c", "tty; stat -c '%u %g %a' /dev/pts/0; stty size; echo said > /dev/console"
    )
    with_terminal(bundle)
    container = runner.create(bundle)
    assert container.console is not None
    run(start(container))
    lines = read_all(container.console).split("\r\n")
    os.waitpid(container.pid, 0x40000000)
    container.ended()
    runner.delete(container)
    assert lines == ["/dev/pts/0", "1000 5 620", "40 90", "said", ""]


@pytest.mark.parametrize("target", ["/host/canary", "/host/new", "/proc/sys/kernel/core_pattern"])
def test_a_console_that_the_image_has_as_a_symlink_is_refused(runner: Runner, target: str) -> None:
    bundle = runner.bundle("true")
    with_terminal(bundle)
    bundle.config["mounts"] = [mount for mount in bundle.config["mounts"] if mount["destination"] != "/dev"]
    (bundle.rootfs / "dev/pts").mkdir()
    (bundle.rootfs / "host").mkdir()
    (bundle.rootfs / "host/canary").write_text("alive")
    (bundle.rootfs / "dev/console").symlink_to(target)
    with pytest.raises(ManorError, match="/dev/console is"):
        runner.create(bundle)
    assert (bundle.rootfs / "host/canary").read_text() == "alive"
    assert not (bundle.rootfs / "host/new").exists()


def test_a_dev_pts_that_the_image_has_as_a_directory_gives_no_terminal(runner: Runner) -> None:
    bundle = runner.bundle("true")
    with_terminal(bundle)
    bundle.config["mounts"] = [m for m in bundle.config["mounts"] if not m["destination"].startswith("/dev")]
    (bundle.rootfs / "dev/pts").mkdir()
    os.mkfifo(bundle.rootfs / "dev/pts/ptmx")
    with pytest.raises(ManorError, match="/dev/pts is not a devpts"):
        runner.create(bundle)
