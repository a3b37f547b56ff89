"""delete: what may be removed, and that nothing of it stays."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.e2e.oci.conftest import Oci, cgroup_directories
from tests.harness.waiting import remove_cgroup


def test_a_stopped_container_goes_with_its_cgroups_and_its_state(oci: Oci) -> None:
    name = oci.stopped()
    assert cgroup_directories(name)
    oci.ok("delete", name)
    assert not cgroup_directories(name)
    assert not (oci.root / name).exists()
    done = oci("delete", name)
    assert done.code == 1
    assert "does not exist" in done.error


def test_a_container_that_was_never_started_goes_too(oci: Oci) -> None:
    name = oci.created()
    pid = oci.state(name)["pid"]
    oci.ok("delete", name)
    assert not Path(f"/proc/{pid}/root/proc").exists()
    assert not (oci.root / name).exists()


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
def test_a_running_container_is_refused_and_runs_on(oci: Oci, paused: bool) -> None:
    name = oci.started()
    if paused:
        oci.ok("pause", name)
    status = "paused" if paused else "running"
    done = oci("delete", name)
    assert done.code == 1
    assert done.error == f"cannot delete container {name} that is not stopped: {status}"
    assert oci.state(name)["status"] == status


@pytest.mark.parametrize("how", ["created", "created, paused", "running", "paused", "stopped"])
def test_force_removes_whatever_it_is(oci: Oci, how: str) -> None:
    name = oci.created() if how.startswith("created") else oci.started()
    if how.endswith("paused"):
        oci.ok("pause", name)
    if how == "stopped":
        oci.ok("kill", name, "KILL")
    oci.ok("delete", "--force", name)
    assert not (oci.root / name).exists()
    assert not cgroup_directories(name)


def test_force_is_content_with_what_is_not_there(oci: Oci) -> None:
    oci.root.mkdir()
    assert oci.ok("delete", "--force", "nobody") == ""
    assert oci("delete", "nobody").code == 1


def test_force_removes_a_directory_without_a_state(oci: Oci) -> None:
    (oci.root / "half").mkdir(parents=True)
    (oci.root / "half" / "something").write_text("")
    (oci.root / "half" / "more").mkdir()
    oci.ok("delete", "--force", "half")
    assert not (oci.root / "half").exists()


@pytest.mark.manor_only("runc refuses: it cannot read the state")
def test_force_removes_a_damaged_state_with_a_warning(oci: Oci) -> None:
    name = oci.stopped()
    places = cgroup_directories(name)
    (oci.root / name / "state.json").write_text("{")
    done = oci("delete", "--force", name)
    assert done.code == 0
    assert "level=warning" in done.stderr
    assert not (oci.root / name).exists()
    for place in places:  # what cgroup it had was in the state
        for below in sorted(place.glob("**/"), reverse=True):
            remove_cgroup(below)


def test_two_deletes_at_once_remove_it_once(oci: Oci) -> None:
    name = oci.stopped()
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(oci("delete", "-f", name).code)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(codes) == 0
    assert not (oci.root / name).exists()
    assert not cgroup_directories(name)


def test_processes_that_outlived_init_are_ended(oci: Oci) -> None:
    def shared(config: dict[str, object]) -> None:
        linux = config["linux"]
        assert isinstance(linux, dict)
        linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "pid"]

    name = oci.started("sh", "-c", "sleep 1000 & sleep 1001 & wait", change=shared)
    os.kill(oci.state(name)["pid"], 9)
    oci.await_status(name, "stopped")
    oci.ok("delete", name)
    assert not cgroup_directories(name)


def test_poststop_hooks_run_with_the_state_of_a_stopped_container(oci: Oci) -> None:
    told = oci.directory / "told"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"cat > {told}"]}
    name = oci.started(change=lambda config: config.update(hooks={"poststop": [hook]}))
    oci.ok("delete", "--force", name)
    assert f'"id":"{name}"' in told.read_text()
    assert '"status":"stopped"' in told.read_text()
