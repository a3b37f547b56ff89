"""What a shim holds while its pod does nothing, and what it opens while the pod does something."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.conftest import Node
from tests.e2e.shim.idle import assert_small
from tests.harness import leaks, opens
from tests.harness.crictl import Crictl
from tests.harness.processes import memory_kb
from tests.harness.waiting import eventually

# Epoll, socket, containerd's connections, the log, the events sink, pidfds: not one for each exec there ever was.
IDLE_DESCRIPTORS = 40
PYTHON_FILES = (".py", ".pyc")

pytestmark = pytest.mark.manor_only("these are promises about Manor's own processes")


def shim_of(node: Node, pod: str) -> int:
    (shim,) = node.containerd.shim_pids(pod)
    return shim


def test_an_idle_shim_has_little_memory_of_its_own(
    node: Node, crictl: Crictl, pod: str, container: str
) -> None:
    for _ in range(3):
        crictl.execute(container, "true", sync=True)
    assert_small(shim_of(node, pod))


def test_execs_add_nothing_to_an_idle_shim(node: Node, crictl: Crictl, pod: str, container: str) -> None:
    shim = shim_of(node, pod)

    def held() -> tuple[int, set[str]]:
        return len(os.listdir(f"/proc/{shim}/fd")), set(
            Path(f"/proc/{shim}/maps").read_text(encoding="ascii")
        )

    crictl.execute(container, "true", sync=True)
    descriptors, _ = held()
    memory = memory_kb(shim)["Anonymous"]
    for number in range(20):
        crictl.execute(container, "sh", "-c", f"echo {number}; exit {number}", sync=True, check=False)
    assert descriptors <= IDLE_DESCRIPTORS
    # One more where the scribe has come up meanwhile.
    eventually(lambda: held()[0] <= descriptors + 1)
    assert memory_kb(shim)["Anonymous"] <= memory + 300


def test_a_shim_has_one_thread(node: Node, pod: str, container: str) -> None:
    assert len(os.listdir(f"/proc/{shim_of(node, pod)}/task")) == 1


def test_nothing_is_imported_after_the_fork(node: Node, crictl: Crictl, pod: str, container: str) -> None:
    """The shim and its children open no Python file while a pod gets containers and execs, good and bad ones."""
    shim = shim_of(node, pod)
    with opens.watch() as watched:
        crictl.execute(container, "sh", "-c", "echo hello", sync=True)
        crictl.execute(container, "no-such-program", sync=True, check=False)
        second = crictl.run_container(pod, ["sleep", "1000"], "second")
        # Started by an exec and still alive when we ask whose child it is.
        crictl.execute(second, "sh", "-c", "sleep 999 >/dev/null 2>&1 &", sync=True)
        ours = {shim} | {found.pid for found in node.containerd.instance.processes()}
        seen = [(pid, path) for pid, path in watched.read() if pid in ours - {node.containerd.process.pid}]
    assert [path for pid, path in seen if path.endswith(PYTHON_FILES)] == []


def test_a_shim_runs_from_a_sealed_copy_of_the_interpreter(node: Node, pod: str) -> None:
    """What /proc/PID/exe leads to is not the host's file, so a container that gets hold of it can change nothing."""
    for pid in (shim_of(node, pod), *leaks.wardens(node.containerd)):
        assert os.readlink(f"/proc/{pid}/exe").startswith("/memfd:")
        assert Path(f"/proc/{pid}/cmdline").read_bytes()


def test_what_the_warden_loaded_is_a_sealed_file_that_the_shim_maps(node: Node, pod: str) -> None:
    maps = Path(f"/proc/{shim_of(node, pod)}/maps").read_text(encoding="ascii")
    (place,) = {line.split()[0] for line in maps.splitlines() if "/memfd:manor-image" in line}
    fd = os.open(f"/proc/{shim_of(node, pod)}/map_files/{place}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.write(fd, b"overwritten")
    finally:
        os.close(fd)


def test_shims_are_children_of_the_warden(node: Node, pod: str) -> None:
    (warden,) = leaks.wardens(node.containerd)
    stat = Path(f"/proc/{shim_of(node, pod)}/stat").read_text(encoding="utf-8")
    assert int(stat[stat.rindex(")") + 2 :].split()[1]) == warden
