"""A user without privileges, who has ranges of ids in /etc/subuid and /etc/subgid: in a mount namespace of his own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.cgroups.layout import UNIFIED, detect_layout
from runtime.linux import constants as c
from runtime.linux.process import unshare
from tests.e2e.oci.conftest import Done, Oci, oci, programs, pytest_collection_modifyitems
from tests.harness.commands import in_files
from tests.harness.waiting import remove_cgroup
from tests.unit.runtime.forked import in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.cgroups.layout import Hierarchy
    from tests.harness.bundles import Bundle


__all__ = ["Oci", "oci", "programs", "pytest_collection_modifyitems"]

USER, UID, GID = "manortest", 4242, 4343
SUBUID, SUBGID, COUNT = 700000, 800000, 65536


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """One that the user may pass through, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="manor-test-") as name:
        os.chmod(name, 0o711)
        yield Path(name)


class Account:
    """The user's entries, laid over the host's files where the user's programs run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.cgroups: list[Path] = []
        directory.mkdir(mode=0o755)
        self.give(f"{USER}:{SUBUID}:{COUNT}\n", f"{USER}:{SUBGID}:{COUNT}\n")
        passwd, group = Path("/etc/passwd").read_text(), Path("/etc/group").read_text()
        (directory / "passwd").write_text(f"{passwd}{USER}:x:{UID}:{GID}::/:/bin/sh\n")
        (directory / "group").write_text(f"{group}{USER}:x:{GID}:\n")

    def give(self, subuid: str, subgid: str) -> None:
        """Other ranges."""
        (self.directory / "subuid").write_text(subuid)
        (self.directory / "subgid").write_text(subgid)

    def enter(self) -> None:
        """Become the user, in a mount namespace where there is one. For a child that ends soon."""
        for cgroup in self.cgroups:
            (cgroup / "cgroup.procs").write_text("0")
        unshare(c.CLONE_NEWNS)
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        for name in ("passwd", "group", "subuid", "subgid"):
            subprocess.run(["mount", "--bind", str(self.directory / name), f"/etc/{name}"], check=True)
        self._open_a_way_to_python()
        os.setgroups([])
        os.setresgid(GID, GID, GID)
        os.setresuid(UID, UID, UID)

    def _open_a_way_to_python(self) -> None:
        """Where the interpreter lies in a home that others may not look into, put that home's parts in reach."""
        for program in (sys.executable, os.path.realpath(sys.executable)):
            home = Path("/").joinpath(*Path(program).parts[1:2])
            if os.stat(home).st_mode & 0o001:
                continue
            stage = self.directory / "home"
            stage.mkdir(exist_ok=True)
            subprocess.run(["mount", "--rbind", str(home), str(stage)], check=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "home", str(home)], check=True)
            for entry in stage.iterdir():
                target = home / entry.name
                target.mkdir() if entry.is_dir() else target.touch()
                subprocess.run(["mount", "--rbind", str(entry), str(target)], check=True)

    def run(self, work: Callable[[], Any]) -> Any:
        """What `work` gives when the user does it, as JSON has it."""

        def child() -> Any:
            self.enter()
            return work()

        return in_child(child)


@pytest.fixture
def account(tmp_path: Path) -> Account:
    """The user."""
    for tool in ("newuidmap", "newgidmap"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on this machine")
    for name in ("/etc/subuid", "/etc/subgid"):
        if not os.path.exists(name):
            pytest.skip(f"no {name} to lay another over")
    return Account(tmp_path / "account")


class Delegated:
    """A cgroup of every hierarchy that is the user's, as an administrator delegates one: `path` below the roots.

    On a unified machine the user's processes have to be in it: nobody moves others but within what is theirs.
    """

    def __init__(self) -> None:
        self.path = f"/manor-tests-{os.getpid()}-rootless"
        layout = detect_layout()
        self.hierarchies = {each.name: each for each in layout.hierarchies}
        self.callers = [self._make(each, layout.mode == UNIFIED) for each in layout.hierarchies]

    def _make(self, hierarchy: Hierarchy, unified: bool) -> Path:
        parent = Path(f"{hierarchy.mountpoint}{self.path}")
        if unified:
            (parent.parent / "cgroup.subtree_control").write_text("+pids +memory +cpu")
        for directory in (parent, parent / "caller"):
            directory.mkdir()
            for name in ("cpuset.cpus", "cpuset.mems") if hierarchy.version == 1 else ():
                if (directory / name).exists():
                    (directory / name).write_text((directory.parent / name).read_text())
            files = ("tasks", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
            for file in (directory, *(directory / name for name in files)):
                if file.exists():
                    os.chown(file, UID, GID)
        return parent / "caller"

    def files(self, container: str, name: str) -> list[str]:
        """What the files `name` of a container's cgroups say."""
        places = [Path(f"{each.mountpoint}{self.path}/{container}") for each in self.hierarchies.values()]
        return [(place / name).read_text().strip() for place in places if (place / name).exists()]

    def remove(self) -> None:
        """Take it away; whatever is left in it is an error."""
        for caller in self.callers:
            remove_cgroup(caller)
            caller.parent.rmdir()


@pytest.fixture
def delegated(account: Account) -> Iterator[Delegated]:
    """Cgroups of the user's, which he runs in."""
    made = Delegated()
    account.cgroups = made.callers
    yield made
    made.remove()


class Scene:
    """Containers that the user runs."""

    def __init__(self, oci: Oci, account: Account) -> None:
        self.oci, self.account = oci, account
        oci.root.mkdir()
        os.chown(oci.root, UID, GID)

    def run(self, *arguments: str | Path, cwd: Path | None = None) -> Done:
        """The command of the runtime under test, by the user. Its output is in files: what it leaves may hold them."""
        words, environment = self.oci.words(*arguments), self.oci.environment()
        environment |= {"XDG_RUNTIME_DIR": str(self.oci.root), "HOME": "/"}

        def work() -> list[Any]:
            return list(in_files(words, cwd=cwd or "/", env=environment))

        return Done(*self.account.run(work))

    def ok(self, *arguments: str | Path) -> str:
        """What it printed, if it succeeded."""
        done = self.run(*arguments)
        assert done.code == 0, f"{self.oci.name} {arguments}: exit code {done.code}: {done.stderr}"
        return done.stdout

    def bundle(
        self, *program: str, whole: bool = False, change: Callable[[dict[str, Any]], None] | None = None
    ) -> Bundle:
        """What `spec --rootless` writes: one id, or with `whole` the ranges of the user as well; no cgroup."""

        def rootless(config: dict[str, Any]) -> None:
            linux = config["linux"]
            del linux["cgroupsPath"], linux["resources"]
            linux["namespaces"] = [
                {"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup", "user")
            ]
            for key, own, first in (("uidMappings", UID, SUBUID), ("gidMappings", GID, SUBGID)):
                linux[key] = [{"containerID": 0, "hostID": own, "size": 1}]
                if whole:
                    linux[key].append({"containerID": 1, "hostID": first, "size": COUNT})
            for mount in config["mounts"]:
                mount["options"] = [option for option in mount["options"] if not option.startswith("gid=")]
            config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] != "/sys"]
            rbind = ["rbind", "nosuid", "noexec", "nodev", "ro"]
            config["mounts"].append(
                {"destination": "/sys", "type": "none", "source": "/sys", "options": rbind}
            )
            if change is not None:
                change(config)

        made = self.oci.bundle(*program, change=rootless)
        for path in (made.path, *made.path.rglob("*")):
            os.chown(path, UID, GID, follow_symlinks=False)
        return made


@pytest.fixture
def scene(oci: Oci, account: Account) -> Scene:
    """What most tests need."""
    return Scene(oci, account)
