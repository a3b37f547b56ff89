"""What the host's side opens for init: what the plan names, and nothing else."""

from __future__ import annotations

import os

import pytest

from runtime.errors import MountError
from runtime.linux.fds import OwnedFd
from runtime.rootfs.id_map import IdMap, Sources
from runtime.rootfs.plan import BindStep, FilesystemStep, SymlinkStep
from tests.harness.processes import descriptors

STEPS = (
    FilesystemStep("mounts[0]", "/proc", "proc", "proc"),
    SymlinkStep("mounts[1]", "/cpu", "cpu,cpuacct"),
    BindStep("mounts[2]", "/cgroup", "/sys/fs/cgroup", below_own_cgroup="unified"),
    BindStep("mounts[3]", "/data", "/no/such/source"),
)


def no_namespace(_uid_map: str, _gid_map: str) -> OwnedFd:
    raise AssertionError("nothing is id-mapped")


@pytest.mark.parametrize("number", [-1, 0, 1, 2, 4, 2**40])
def test_a_step_that_is_no_bind_mount_of_a_plain_source_is_refused(number: int) -> None:
    with pytest.raises(MountError, match=f"step {number} is not a bind mount to be opened by the host"):
        Sources("/r", STEPS, no_namespace).open(number)


def test_a_source_that_cannot_be_opened_is_named_with_its_mount() -> None:
    with pytest.raises(MountError, match=r"mounts\[3\]: source /no/such/source: "):
        Sources("/r", STEPS, no_namespace).open(3)


def test_a_user_namespace_is_made_once_for_all_mounts_with_the_same_maps() -> None:
    made: list[tuple[str, str]] = []

    def make(uid_map: str, gid_map: str) -> OwnedFd:
        made.append((uid_map, gid_map))
        return OwnedFd(os.open("/proc/self/ns/user", os.O_RDONLY))

    before = descriptors()
    maps = (
        IdMap("0 1 1\n", "0 1 1\n"),
        IdMap("0 1 1\n", "0 1 1\n", recursive=True),
        IdMap("0 2 1\n", "0 1 1\n"),
    )
    here = IdMap(namespace="/proc/self/ns/user")
    steps = tuple(
        BindStep(f"mounts[{n}]", "/d", "/s", id_map=each) for n, each in enumerate((*maps, here, here))
    )
    sources = Sources("/r", steps, make)
    assert made == [("0 1 1\n", "0 1 1\n"), ("0 2 1\n", "0 1 1\n")]
    sources.close()
    assert not descriptors() - before


def test_a_user_namespace_that_is_not_there_is_named_with_the_mount_it_was_for() -> None:
    step = BindStep("mounts[7]", "/d", "/s", id_map=IdMap(namespace="/no/such/namespace"))
    with pytest.raises(MountError, match=r"mounts\[7\]: id map: /no/such/namespace: No such file"):
        Sources("/r", (step,), no_namespace)
