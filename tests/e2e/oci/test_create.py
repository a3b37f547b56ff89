"""create: what it leaves behind when it succeeds, and that it leaves nothing when it does not."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.oci.conftest import PARENT, Oci, cgroup_directories


def test_a_created_container_waits_and_says_so(oci: Oci) -> None:
    bundle = oci.bundle("touch", "/tmp/ran")
    oci.ok("create", "--bundle", bundle.path, "c")
    state = oci.state("c")
    assert state["status"] == "created"
    assert state["bundle"] == str(bundle.path)
    assert Path(f"/proc/{state['pid']}").exists()
    assert stat.S_IMODE((oci.root / "c").stat().st_mode) & 0o077 in (0, 0o001, 0o011)
    time.sleep(0.2)
    assert not (bundle.rootfs / "tmp/ran").exists()
    oci.ok("start", "c")
    oci.await_status("c", "stopped")
    assert (bundle.rootfs / "tmp/ran").exists()


def test_the_bundle_is_the_working_directory_unless_named(oci: Oci) -> None:
    bundle = oci.bundle()
    oci.ok("create", "here", cwd=bundle.path)
    assert oci.state("here")["bundle"] == str(bundle.path)


def test_a_bundle_may_be_relative_and_a_link(oci: Oci) -> None:
    bundle = oci.bundle()
    (oci.directory / "link").symlink_to(bundle.path.name)
    oci.ok("create", "-b", "link", "c")
    assert oci.state("c")["bundle"] == str(bundle.path)


def test_a_pid_file_has_the_pid_of_init(oci: Oci) -> None:
    bundle = oci.bundle()
    place = oci.directory / "place"
    place.mkdir()
    before = os.umask(0o022)
    try:
        oci.ok("create", "--pid-file", "pid.txt", "-b", bundle.path, "c", cwd=place)
    finally:
        os.umask(before)
    assert (place / "pid.txt").read_text() == str(oci.state("c")["pid"])
    assert stat.S_IMODE((place / "pid.txt").stat().st_mode) == 0o644
    assert os.listdir(place) == ["pid.txt"]


def test_a_pid_file_is_replaced(oci: Oci) -> None:
    bundle = oci.bundle()
    file = oci.directory / "pid"
    file.write_text("1 and more than that")
    oci.ok("create", "--pid-file", file, "-b", bundle.path, "c")
    assert file.read_text() == str(oci.state("c")["pid"])


def test_without_its_pid_file_there_is_no_container(oci: Oci) -> None:
    bundle = oci.bundle()
    done = oci("create", "--pid-file", "/nonexistent/pid", "-b", bundle.path, "c")
    assert done.code == 1
    assert "/nonexistent/" in done.error
    assert "no such file or directory" in done.error
    if oci.is_manor:  # runc forgets to delete it
        assert not (oci.root / "c").exists()
        assert not cgroup_directories(bundle.path.name)


def test_the_container_has_the_callers_descriptors(oci: Oci) -> None:
    bundle = oci.bundle("sh", "-c", "cat; echo out; echo err >&2")
    with (
        open(oci.directory / "in", "w+b") as given,
        open(oci.directory / "out", "w+b") as out,
        open(oci.directory / "err", "w+b") as err,
    ):
        given.write(b"in\n")
        given.seek(0)
        words = oci.words("create", "-b", bundle.path, "c")
        env = oci.environment()
        assert (
            subprocess.run(words, stdin=given, stdout=out, stderr=err, env=env, check=False).returncode == 0
        )
    oci.ok("start", "c")
    oci.await_status("c", "stopped")
    assert (oci.directory / "out").read_text() == "in\nout\n"
    assert (oci.directory / "err").read_text() == "err\n"


def test_an_id_is_used_once(oci: Oci) -> None:
    bundle = oci.bundle()
    oci.ok("create", "-b", bundle.path, "c")
    other = oci.bundle()
    done = oci("create", "-b", other.path, "c")
    assert done.code == 1
    assert "exist" in done.error
    assert oci.state("c")["status"] == "created"
    assert oci.state("c")["bundle"] == str(bundle.path)


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a b", "ä", "x" * 300])
def test_a_bad_id_is_refused(oci: Oci, name: str) -> None:
    if not oci.is_manor and len(name) == 300:
        pytest.skip("runc leaves this to the file system")
    bundle = oci.bundle()
    done = oci("create", "-b", bundle.path, name)
    assert done.code == 1
    assert "id" in done.error.lower()


def test_an_empty_id_is_refused(oci: Oci) -> None:
    bundle = oci.bundle()
    assert oci("create", "-b", bundle.path, "").code == 1


def test_a_bundle_without_a_config_is_no_bundle(oci: Oci) -> None:
    done = oci("create", "-b", oci.directory, "c")
    assert done.code == 1
    assert "config.json" in done.error
    done = oci("create", "-b", "nowhere", "c")
    assert done.code == 1
    assert "nowhere" in done.error
    assert "no such file or directory" in done.error


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda config: config.pop("process"), "process"),
        (lambda config: config["process"].update(args=[]), "args"),
        (lambda config: config["process"].update(cwd="tmp"), "wd"),
        (lambda config: config.update(ociVersion="x"), "ersion"),
        (lambda config: config["root"].update(path="nowhere"), "nowhere"),
        (lambda config: config["process"].update(user={"uid": -1}), "uid"),
        (lambda config: config["linux"]["namespaces"].append({"type": "odd"}), "odd"),
    ],
)
def test_a_bad_config_is_refused_and_leaves_nothing(oci: Oci, change: Any, told: str) -> None:
    bundle = oci.bundle(change=change)
    done = oci("create", "-b", bundle.path, "c")
    if not oci.is_manor and done.code == 0:
        pytest.skip("runc does not check this")
    assert done.code == 1
    assert told in done.error
    assert "\n" not in done.error
    assert oci("state", "c").code == 1
    assert not cgroup_directories(bundle.path.name)


def test_a_command_that_is_not_there_fails_before_the_gate(oci: Oci) -> None:
    bundle = oci.bundle("/nonsense")
    done = oci("create", "-b", bundle.path, "c")
    assert done.code == 1
    assert "/nonsense: no such file or directory" in done.error
    assert oci("state", "c").code == 1


@pytest.mark.manor_only(reason="runc forgets the cgroups of a create that was killed")
def test_a_create_that_is_killed_leaves_what_delete_can_remove(oci: Oci) -> None:
    bundle = oci.bundle()
    hook = oci.directory / "hook"
    hook.write_text("#!/bin/sh\nexec sleep 5\n")
    hook.chmod(0o755)
    bundle.config["hooks"] = {"createRuntime": [{"path": str(hook)}]}
    bundle.write()
    running = oci.begin("create", "-b", bundle.path, "c")
    deadline = time.monotonic() + 60
    while not cgroup_directories(bundle.path.name):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    running.kill()
    running.wait()
    oci.ok("delete", "--force", "c")
    assert not (oci.root / "c").exists()


def test_what_waits_at_the_gate_holds_nothing_of_the_host(oci: Oci) -> None:
    """CVE-2024-21626: what init has open when it is started is what the program can reach."""
    bundle = oci.bundle()
    oci.ok("create", "-b", bundle.path, "c")
    pid = oci.state("c")["pid"]
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if int(link.name) > 2:
            target = os.readlink(link)
            assert target.startswith(("socket:", "pipe:", "anon_inode:", "/exec.fifo", "/proc", "/")), target
            assert not target.startswith(("/sys/fs/cgroup", str(oci.root))) or "exec.fifo" in target
    program = os.readlink(f"/proc/{pid}/exe")
    assert program.startswith("/memfd:") or program == "/runc", "not a sealed copy (CVE-2019-5736)"


def test_init_is_in_its_cgroup_when_create_returns(oci: Oci) -> None:
    bundle = oci.bundle()
    oci.ok("create", "-b", bundle.path, "c")
    pid = oci.state("c")["pid"]
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    assert [line for line in lines if f"/{PARENT}/" in line]
    assert all(f"/{PARENT}/" in line for line in lines if line.split(":")[1] in ("pids", "memory", "devices"))


def test_the_state_file_is_json_that_names_init(oci: Oci) -> None:
    bundle = oci.bundle()
    oci.ok("create", "-b", bundle.path, "c")
    stored: dict[str, Any] = json.loads((oci.root / "c/state.json").read_text())
    assert oci.state("c")["pid"] in (stored.get("pid"), stored.get("init_process_pid"))


def test_a_relative_destination_is_taken_as_one_of_the_root_with_a_warning(oci: Oci) -> None:
    def change(config: dict[str, Any]) -> None:
        config["mounts"].append({"destination": "relative/place", "type": "tmpfs", "source": "tmpfs"})

    bundle = oci.bundle("ls", "-d", "/relative/place", change=change)
    done = oci("run", "--bundle", bundle.path, "relative")
    assert (done.code, done.stdout) == (0, "/relative/place\n")
    assert "level=warning" in done.stderr
    assert "deprecated" in done.stderr
