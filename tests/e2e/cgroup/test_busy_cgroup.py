"""An exec into a container whose version 2 cgroup no longer takes processes: it joins where init is.

A real EBUSY: the container's cgroup has a controller enabled for its children, and its init was moved into one.
The reference falls back in unified mode only, so on a hybrid machine this is not run on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cgroups.hugetlb import shared_root
from tests.e2e.conftest import Node
from tests.harness.crictl import Crictl
from tests.harness.instances import unified_hierarchy


def enable(directory: Path, controller: str) -> None:
    """Enable a controller for the children of a cgroup."""
    (directory / "cgroup.subtree_control").write_text(f"+{controller}", encoding="ascii")


@pytest.fixture
def controller() -> Iterator[str]:
    """A controller of the version 2 hierarchy, enabled below its root for the time of the test."""
    root = unified_hierarchy()
    name = (root / "cgroup.controllers").read_text(encoding="ascii").split()[0]
    with shared_root(root):  # all users of the machine share it: under a lock, and undone
        enable(root, name)
        yield name


@pytest.fixture
def busy(node: Node, controller: str) -> Iterator[Path]:
    """The instance's cgroup, with that controller for its children, which the test's container will be one of."""
    parent = unified_hierarchy() / node.containerd.instance.cgroup_parent.lstrip("/")
    parent.mkdir(exist_ok=True)
    enable(parent, controller)
    yield parent
    node.crictl.clean()
    (parent / "cgroup.subtree_control").write_text(f"-{controller}", encoding="ascii")


@pytest.mark.manor_only("runc falls back in unified mode only")
def test_an_exec_lands_where_the_init_is_if_its_own_cgroup_is_busy(
    busy: Path, controller: str, crictl: Crictl, handler: str
) -> None:
    pod = crictl.run_pod(handler)
    container = crictl.run_container(pod, ["sleep", "1000"])
    own = busy / container
    below = own / "below"
    below.mkdir()
    (below / "cgroup.procs").write_text(str(crictl.pid(container)), encoding="ascii")
    enable(own, controller)
    with pytest.raises(OSError, match="busy"):  # nobody can join it now: this is the error that exec meets
        (own / "cgroup.procs").write_text(str(crictl.pid(container)), encoding="ascii")

    shown = crictl.execute(container, "cat", "/proc/self/cgroup", sync=True).stdout
    (unified,) = (line for line in shown.splitlines() if line.startswith("0::"))
    assert unified.endswith("/below")
    assert crictl.execute(container, "sh", "-c", "exit 6", check=False).exit_code == 6
