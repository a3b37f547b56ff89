"""The file system of a container with a user namespace, with somebody else's mount namespace, and with none."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime.cgroups.layout import detect_layout
from runtime.errors import ManorError, StageError
from runtime.linux import constants as c
from runtime.linux import mount as m
from runtime.linux.process import unshare
from runtime.operations.start import start
from runtime.rootfs.apply import apply_mounts
from runtime.rootfs.on_host import detach
from runtime.rootfs.plan import plan_rootfs
from runtime.spec.load import load_spec
from runtime.waiting import run
from tests.e2e.rootfs.conftest import (
    NAMESPACES,
    bind,
    by_runc,
    mount_lines,
    tmpfs,
    with_user_namespace,
    without,
)
from tests.e2e.rootfs.test_mounts import comparable, shown_propagation
from tests.e2e.runtime.conftest import Pipes
from tests.unit.runtime.forked import in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.rootfs.conftest import Inside
    from tests.e2e.runtime.conftest import Runner
    from tests.harness.bundles import Bundle

AT_FDCWD = -100
CGROUPS = {
    "destination": "/sys/fs/cgroup",
    "type": "cgroup",
    "source": "cgroup",
    "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
}
MESSAGE_QUEUES = {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid"]}


def mounts_of_both(runner: Runner, *changes: Callable[[Bundle], None]) -> tuple[list[str], list[str]]:
    found = []
    for engine in ("manor", "runc"):
        bundle = runner.bundle("cat", "/proc/self/mountinfo")
        for change in changes:
            change(bundle)
        output = runner.run(bundle).stdout if engine == "manor" else by_runc(bundle).stdout
        found.append(
            [
                line.replace(bundle.config["linux"]["cgroupsPath"], "/own")
                for line in comparable(output, bundle.path)
            ]
        )
    return found[0], found[1]


def with_kernel_file_systems(bundle: Bundle) -> None:
    bundle.config["mounts"] += [CGROUPS, MESSAGE_QUEUES]


def without_cgroup_namespace(bundle: Bundle) -> None:
    without(bundle, "cgroup")


def read_only(bundle: Bundle) -> None:
    bundle.config["root"]["readonly"] = True


def with_the_hosts(*places: str) -> Callable[[Bundle], None]:
    def change(bundle: Bundle) -> None:
        mounts = bundle.config["mounts"]
        mounts[:] = [each for each in mounts if not each["destination"].startswith(places)]
        mounts += [bind(place, place, "rbind") for place in places]

    return change


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (read_only,),
        (with_kernel_file_systems,),
        (with_kernel_file_systems, without_cgroup_namespace),
        (with_the_hosts("/dev"),),
        (with_the_hosts("/sys"),),
    ],
)
def test_all_mounts_in_a_user_namespace_are_what_runc_makes_of_the_same_config(
    runner: Runner, changes: tuple[Callable[[Bundle], None], ...]
) -> None:
    ours, runcs = mounts_of_both(runner, with_user_namespace, *changes)
    assert len(ours) > 8
    assert ours == runcs


@pytest.mark.parametrize(
    "kind", ["private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable"]
)
@pytest.mark.parametrize("changes", [(), (with_user_namespace,)])
def test_the_propagation_of_the_root_is_what_runc_makes_of_it(
    runner: Runner, kind: str, changes: tuple[Callable[[Bundle], None], ...]
) -> None:
    def propagation(bundle: Bundle) -> None:
        bundle.config["linux"]["rootfsPropagation"] = kind

    ours, runcs = mounts_of_both(runner, propagation, *changes)
    assert ours
    assert ours == runcs


@pytest.mark.parametrize(
    ("kind", "peers"), [("slave", "master"), ("rslave", "master"), (None, ""), ("private", "")]
)
def test_only_a_root_that_is_to_be_a_slave_gets_what_the_host_mounts_below_it(
    inside: Inside, bundle: Bundle, kind: str | None, peers: str
) -> None:
    bundle.config["linux"]["rootfsPropagation"] = kind

    def look() -> str:
        unshare(c.CLONE_NEWNS)
        m.mount_setattr(AT_FDCWD, path="/", propagation=m.MS_PRIVATE, recursive=True)
        m.mount(str(bundle.path), str(bundle.path), None, m.MS_BIND)
        m.mount_setattr(AT_FDCWD, path=str(bundle.path), propagation=m.MS_SHARED)
        (line,) = (each for each in inside(mount_lines) if each.split()[4] == "/")
        fields = line.split()
        return ",".join(field.split(":")[0] for field in fields[6 : fields.index("-")])

    assert in_child(look) == peers


# ---- a mount namespace that is not new ----------------------------------------------------------


@pytest.fixture
def namespace() -> Iterator[str]:
    """The mount namespace of somebody else."""
    process = subprocess.Popen(["unshare", "--mount", "sleep", "100"])
    try:
        wait_for_namespace(process.pid, "mnt")
        yield f"/proc/{process.pid}/ns/mnt"
    finally:
        process.kill()
        process.wait()


def test_a_mount_namespace_may_be_joined(runner: Runner, namespace: str) -> None:
    before = mount_lines()
    bundle = runner.bundle("sh", "-c", "readlink /proc/self/ns/mnt; ls /")
    for each in bundle.config["linux"]["namespaces"]:
        if each["type"] == "mount":
            each["path"] = namespace
    joined, *names = runner.run(bundle).stdout.split()
    assert joined == os.readlink(namespace)
    assert sorted(names) == sorted(os.listdir(bundle.rootfs))
    assert mount_lines() == before


def test_namespaces_of_different_owners_may_be_joined_together(runner: Runner) -> None:
    """A network namespace of the host's, and a user namespace from which it could not be entered any more."""
    runner.shape = ""
    other = runner.bundle("sleep", "1000")
    with_user_namespace(other)
    owner = runner.create(other).pid
    network = subprocess.Popen(["unshare", "--net", "sleep", "100"])
    try:
        wait_for_namespace(network.pid, "net")
        paths = {"user": f"/proc/{owner}/ns/user", "network": f"/proc/{network.pid}/ns/net"}
        expected = [os.readlink(path) for path in paths.values()]
        bundle = runner.bundle("sh", "-c", "readlink /proc/self/ns/user; readlink /proc/self/ns/net")
        with_user_namespace(bundle)
        del bundle.config["linux"]["uidMappings"], bundle.config["linux"]["gidMappings"]
        for each in bundle.config["linux"]["namespaces"]:
            if each["type"] in paths:
                each["path"] = paths[each["type"]]
        with_the_hosts("/sys")(bundle)  # a new sysfs takes rights over the network namespace
        assert runner.run(bundle).stdout.split() == expected
    finally:
        network.kill()
        network.wait()


def wait_for_namespace(pid: int, kind: str) -> None:
    deadline = time.monotonic() + 60
    while os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def on_host(bundle: Bundle) -> None:
    without(bundle, "mount")
    bundle.config["linux"].update(maskedPaths=[], readonlyPaths=[])


def test_without_a_mount_namespace_there_is_a_change_of_root_and_mounts_below_it(runner: Runner) -> None:
    before = shown_propagation()
    bundle = runner.bundle(
        "sh", "-c", "readlink /proc/self/ns/mnt; ls / /dev; grep -c manor /proc/self/mountinfo"
    )
    on_host(bundle)
    with Pipes() as pipes:
        container = runner.create(bundle, pipes.stdio)
        pipes.close_far_ends()
        assert {line.split()[4] for line in mount_lines()} >= {str(bundle.rootfs), f"{bundle.rootfs}/proc"}
        run(start(container))
        output = pipes.collect(container.pid)
    container.ended()
    runner.delete(container)
    assert output.stdout.split()[0] == os.readlink("/proc/self/ns/mnt")
    assert "null" in output.stdout.split()
    assert shown_propagation() == before
    assert [line for line in mount_lines() if str(bundle.rootfs) in line] == []


def test_without_a_mount_namespace_the_hosts_mounts_stay_what_they_are_to_each_other(bundle: Bundle) -> None:
    on_host(bundle)
    bundle.config["linux"]["rootfsPropagation"] = "rprivate"
    plan = plan_rootfs(load_spec(bundle.write()), str(bundle.path), detect_layout().view())

    def mount() -> None:
        unshare(NAMESPACES & ~c.CLONE_NEWNS)
        in_child(lambda: apply_mounts(plan).close())

    def look() -> list[list[str]]:
        unshare(c.CLONE_NEWNS)
        m.mount_setattr(AT_FDCWD, path="/", propagation=m.MS_PRIVATE, recursive=True)
        m.mount_setattr(AT_FDCWD, path="/", propagation=m.MS_SHARED, recursive=True)
        before = shown_propagation()
        in_child(mount)
        lines = [line for line in mount_lines() if line.split()[4] == str(bundle.rootfs)]
        return [before, shown_propagation(), [str("shared:" in line) for line in lines]]

    before, after, shared = in_child(look)
    assert any("shared:" in line for line in before)
    assert after == before
    assert shared == ["False"]


@pytest.mark.parametrize("shared", [("mount",), ("mount", "pid", "network", "ipc", "uts", "cgroup")])
def test_an_exec_without_a_mount_namespace_is_in_the_containers_root(
    runner: Runner, shared: tuple[str, ...]
) -> None:
    def change(config: dict[str, Any]) -> None:
        namespaces = config["linux"]["namespaces"]
        namespaces[:] = [each for each in namespaces if each["type"] not in shared]
        config["linux"].update(maskedPaths=[], readonlyPaths=[])
        if "uts" in shared:
            del config["hostname"]

    container = runner.started(change=change)
    root = f"{container.bundle}/rootfs"
    try:
        assert sorted(runner.exec(container, "ls", "/").stdout.split()) == sorted(os.listdir(root))
    finally:
        runner.stop(container)
        detach(root)


def test_a_failure_without_a_mount_namespace_leaves_no_mount(runner: Runner) -> None:
    bundle = runner.bundle("true")
    on_host(bundle)
    bundle.config["mounts"] += [tmpfs("/tmp"), {"destination": "/x", "type": "nofs"}]
    with pytest.raises(StageError, match="mount nofs on /x"):
        runner.create(bundle)
    assert [line for line in mount_lines() if str(bundle.rootfs) in line] == []


def test_nothing_is_masked_where_that_would_mask_the_hosts(runner: Runner) -> None:
    bundle = runner.bundle("true")
    without(bundle, "mount")
    with pytest.raises(ManorError, match=r"linux.maskedPaths: cannot be set without a mount namespace"):
        runner.create(bundle)


def test_a_root_that_the_caller_has_mounted_stays_mounted(inside: Inside, bundle: Bundle) -> None:
    def look() -> list[int]:
        unshare(c.CLONE_NEWNS)
        root = str(bundle.rootfs)
        m.mount_setattr(AT_FDCWD, path="/", propagation=m.MS_PRIVATE, recursive=True)
        m.mount("tmpfs", root, "tmpfs", 0)
        counts = []
        for ours in (False, True, False):
            if ours:
                m.mount(root, root, None, m.MS_BIND)
            detach(root)
            counts.append(len([line for line in mount_lines() if line.split()[4] == root]))
        return counts

    assert in_child(look) == [1, 1, 1]
