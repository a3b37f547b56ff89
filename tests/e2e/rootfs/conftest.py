"""What the root file system's tests share: a Runner, and a canary tree on the host that nothing may touch."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups.layout import detect_layout
from runtime.linux import constants as c
from runtime.linux import mount as m
from runtime.linux.fds import OwnedFd
from runtime.linux.process import unshare
from runtime.rootfs.apply import MountedRoot, apply_mounts
from runtime.rootfs.pivot import make_cwd, pivot_into
from runtime.rootfs.plan import plan_rootfs
from runtime.rootfs.protect import protect
from runtime.spec.load import load_spec
from runtime.stages.plan import DIRECT
from tests.e2e.runtime.conftest import Runner, runner
from tests.harness.bundles import Bundle
from tests.harness.mountinfo import mounts_of
from tests.harness.tools import RUNC_1, ToolError, program
from tests.unit.runtime.forked import in_child

__all__ = ["Runner", "runner"]


@pytest.fixture
def way() -> tuple[str, bool]:
    """One shape of the stages is enough here: the file system is made in the same way in all."""
    return DIRECT, False


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory that the root of a user namespace can reach too: those above pytest's own are 0700."""
    with tempfile.TemporaryDirectory(prefix="manor-tests-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        yield path


class Canary:
    """A directory of the host's that hostile images point to, and what it was like."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        (path / "file").write_text("canary\n")
        (path / "dir").mkdir(mode=0o700)
        (path / "dir/below").write_text("canary\n")
        (path / "link").symlink_to("file")
        self._before = self._look()

    def _look(self) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for place in [self.path, *sorted(self.path.rglob("*"))]:
            status = place.lstat()
            content = place.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found[str(place)] = (status.st_mode, status.st_uid, status.st_mtime_ns, content)
        return found

    def assert_untouched(self) -> None:
        """AssertionError if anything in it is new, gone or other than before, or if a mount was left there."""
        assert self._look() == self._before
        assert mounts_of(self.path.parent) == []


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    """A canary that is found untouched when the test is over."""
    made = Canary(tmp_path / "canary")
    yield made
    made.assert_untouched()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle for tests that need no process in the container."""
    (tmp_path / "bundle").mkdir()
    return Bundle(tmp_path / "bundle", ["true"], "/manor-tests/none")


NAMESPACES = c.CLONE_NEWNS | c.CLONE_NEWPID | c.CLONE_NEWNET | c.CLONE_NEWIPC | c.CLONE_NEWCGROUP

Inside = Callable[..., Any]


@pytest.fixture
def inside(bundle: Bundle) -> Inside:
    """Runs a function in the finished root of `bundle`, in namespaces of its own, and gives what it returns.

    `before` is run when the mounts are made and the pivot is still to come.
    """

    def run(work: Callable[[], Any], before: Callable[[MountedRoot], None] | None = None, **plan: Any) -> Any:
        planned = plan_rootfs(load_spec(bundle.write()), str(bundle.path), detect_layout().view(), **plan)

        def init() -> Any:
            mounted = apply_mounts(planned)
            if before is not None:
                before(mounted)
            pivot_into(mounted)
            make_cwd(mounted)
            protect(mounted)
            return work()

        def parent() -> Any:
            unshare(NAMESPACES)
            return in_child(init)

        return in_child(parent)

    return run


def mount_lines() -> list[str]:
    """/proc/self/mountinfo of the container."""
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return file.read().splitlines()


def options_of(lines: list[str], place: str) -> set[str]:
    """The per-mount options of the last mount on `place`."""
    found = [line.split()[5].split(",") for line in lines if line.split()[4] == place]
    assert found, f"nothing is mounted on {place}"
    return set(found[-1])


def bind(source: Path | str, destination: str, *options: str) -> dict[str, Any]:
    """A bind mount for a config."""
    words = list(options) if set(options) & {"bind", "rbind"} else ["bind", *options]
    return {"destination": destination, "type": "bind", "source": str(source), "options": words}


def tmpfs(destination: str, *options: str) -> dict[str, Any]:
    """A tmpfs for a config."""
    return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": list(options)}


MAPPING = [{"containerID": 0, "hostID": 100000, "size": 65536}]


def with_user_namespace(bundle: Bundle) -> None:
    """Give the container of `bundle` a user namespace, and the image to its root."""
    for place in (bundle.rootfs, *bundle.rootfs.rglob("*")):
        os.chown(place, 100000, 100000, follow_symlinks=False)
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    bundle.config["linux"].update(uidMappings=MAPPING, gidMappings=MAPPING)


@pytest.fixture
def id_maps(tmp_path: Path) -> None:
    """Skips a test where the file system of temporary files cannot be id-mapped: tmpfs can from Linux 6.3 on."""

    def attempt() -> bool:
        started, done = os.pipe(), os.pipe()
        if not (pid := os.fork()):
            unshare(c.CLONE_NEWUSER)
            os.write(started[1], b"x")
            os.read(done[0], 1)
            os._exit(0)
        os.read(started[0], 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text("0 0 1")
        with OwnedFd(os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)) as namespace:
            os.write(done[1], b"x")
            os.waitpid(pid, 0)
            with m.clone_tree(-100, str(tmp_path)) as tree:
                try:
                    m.map_ids(tree.fileno(), namespace.fileno())
                except OSError:
                    return False
        return True

    if not in_child(attempt):
        pytest.skip(f"the file system of {tmp_path} cannot be id-mapped on this kernel")


def without(bundle: Bundle, kind: str) -> None:
    """Let the container of `bundle` share that namespace with the host."""
    namespaces = bundle.config["linux"]["namespaces"]
    namespaces[:] = [each for each in namespaces if each["type"] != kind]


def by_runc(bundle: Bundle) -> subprocess.CompletedProcess[str]:
    """What runc makes of the same bundle."""
    try:
        runc = program(RUNC_1, "runc")
    except ToolError as error:
        pytest.skip(str(error))
    bundle.write()
    state = bundle.path.parent / "runc"
    command = [str(runc), "--root", str(state), "run", "-b", str(bundle.path), bundle.path.name]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def replace_place(path: Path) -> None:
    """Remove whatever is at `path`, and make sure its parent is there."""
    if path.is_symlink() or path.is_file() or (path.exists() and not path.is_dir()):
        path.unlink()
    elif path.is_dir():
        for entry in path.iterdir():
            replace_place(entry)
        path.rmdir()
    path.parent.mkdir(parents=True, exist_ok=True)


def open_descriptors() -> list[str]:
    """What the descriptors of this process are, without the one that lists them."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue
    return found
