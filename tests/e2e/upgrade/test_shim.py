"""Shims of the earlier version after an upgrade: they need no file of theirs, and the later version knows them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from manor import trace
from shim.api import task
from shim.api.codec import decode
from shim.scribe import FILE
from tests.e2e.exits.conftest import LIMIT_S, is_alive, killed_between_record_and_event
from tests.e2e.shim.door import Door, overlay
from tests.e2e.shim.test_user_namespaces import BASE, MAP, mapped
from tests.e2e.upgrade.conftest import Site
from tests.harness.upgrades import EARLIER, IN_PLACE, LATER, NODE
from tests.harness.waiting import eventually

POD = {"io.kubernetes.cri.sandbox-id": "pod1"}
SLEEP = ["sleep", "1000"]
ENDS_WITH_3 = ["sh", "-c", "trap 'exit 3' TERM; echo ready >/ready; while :; do sleep 0.05; done"]
EATS = ["/bin/busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "count=1"]


def parent(pid: int) -> int:
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def shims(site: Door) -> set[int]:
    """The shims of a node; wardens are not among them, nor are launchers."""
    found = set()
    for pid in site._processes():
        try:
            if Path(f"/proc/{pid}/comm").read_text() == "manor-shim\n":
                found.add(pid)
        except OSError:
            continue  # it has ended
    return found


def add(site: Door, name: str, args: list[str], rootfs: Any = None, **streams: Any) -> int:
    """A running container of the pod, in the shim that is there; its config may have been changed before."""
    if not (site.directory / "bundles" / name).exists():
        site.bundle(name, args, POD)
    pid = site.create(name, rootfs, **streams)
    site.ask("Start", task.StartRequest(name))
    return pid


# --- a shim without a file of its own ---


@pytest.fixture
def bare(site: Site) -> Site:
    """A node whose Manor was replaced, and then removed altogether, while a shim with a container `c1` lives."""
    site.directory.chmod(0o711)
    (site.directory / "bundles").mkdir(mode=0o711)
    site.run("c1", SLEEP, POD)
    site.upgrade()
    site.installation.remove()
    return site


@pytest.mark.parametrize("way", [NODE, IN_PLACE])
def test_a_shim_whose_installation_is_gone_does_all_that_shims_do(bare: Site, tmp_path: Path) -> None:
    shim = bare.shim_pid()
    _executes(bare, tmp_path)
    _logs(bare, tmp_path)
    _tells_of_memory(bare)
    _maps_ids(bare)
    bare.ask("Stats", task.StatsRequest("c1"))
    for name in ("c1", "mapped"):
        bare.end(name)
    assert (bare.cgroups(), bare.mounts(), bare.zombies()) == ([], [], [])
    bare.ask("Shutdown", task.ShutdownRequest("c1"))
    eventually(lambda: not is_alive(shim))
    assert bare.state_directories() == []


def _executes(site: Door, tmp_path: Path) -> None:
    out = tmp_path / "out"
    site.exec("c1", "e1", ["sh", "-c", "echo here; exit 4"], stdout=f"file://{out}")
    assert site.wait("c1", "e1") == 4
    site.delete("c1", "e1")
    assert out.read_text() == "here\n"
    with pytest.raises(Exception, match="no-such-program"):
        site.exec("c1", "e2", ["no-such-program"])


def _logs(site: Door, tmp_path: Path) -> None:
    """With a writer of ours, which is a fork, and with a program."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nexec 5>&1\ncat <&3 > {tmp_path}/programs &\nexec 5>&-\nwait\n")
    program.chmod(0o755)
    for name, uri in (("lines", f"cri-log://{tmp_path}/0.log"), ("program", f"binary://{program}")):
        add(site, name, ["echo", name], stdout=uri, stderr=uri)
        assert site.wait(name) == 0
        site.delete(name)
    assert (tmp_path / "0.log").read_text().endswith(" stdout F lines\n")
    eventually(lambda: (tmp_path / "programs").read_text() == "program\n")


def _tells_of_memory(site: Door) -> None:
    bundle = site.bundle("eats", EATS, POD)
    bundle.config["linux"]["resources"] = {"memory": {"limit": 24 << 20}}
    bundle.write()
    add(site, "eats", EATS)
    assert site.wait("eats") == 137
    site.delete("eats")
    eventually(lambda: "oom" in site.events.topics())


def _maps_ids(site: Door) -> None:
    """A user namespace, and a root whose layers are mapped to it."""
    bundle = site.bundle("mapped", SLEEP, POD)
    bundle.config["linux"]["namespaces"].append({"type": "user"})
    bundle.config["linux"].update(uidMappings=[MAP], gidMappings=[MAP])
    bundle.write()
    shutil.rmtree(bundle.rootfs)
    bundle.rootfs.mkdir(mode=0o711)
    layers = mapped(overlay(site.directory / "image", 2))
    os.chown(site.directory / "image/upper", BASE, BASE)
    init = add(site, "mapped", SLEEP, layers)
    assert os.stat(f"/proc/{init}").st_uid == BASE
    site.exec("mapped", "e3", ["touch", "/made"])
    assert site.wait("mapped", "e3") == 0
    assert (site.directory / "image/upper/made").stat().st_uid == BASE


# --- the later version and the shims of the earlier one ---


def test_the_start_of_another_container_of_its_pod_is_answered_with_its_address(site: Site) -> None:
    """containerd 1.6 has `start` run for each container."""
    site.run("c1", SLEEP, POD)
    shim = site.shim_pid()
    site.upgrade()
    bundle = site.bundle("c2", SLEEP, POD)
    done = site.launch("start", "c2")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, site.address, b"")
    assert (bundle.path / "address").read_text() == site.address
    eventually(lambda: shims(site) == {shim})
    second = add(site, "c2", SLEEP)
    assert parent(second) == shim
    for name in ("c1", "c2"):
        assert site.launch("delete", name).returncode == 0  # of one that lives: nothing is done
        assert site.status(name) == 2
        site.end(name)
    site.ask("Shutdown", task.ShutdownRequest("c1"))
    eventually(lambda: not is_alive(shim))


@pytest.mark.parametrize("way", [NODE, IN_PLACE])
def test_a_new_pod_has_a_shim_of_the_later_version_and_the_earlier_warden_ends(site: Site) -> None:
    site.run("c1", SLEEP)
    first = site.client
    shim = site.shim_pid()
    earlier = parent(shim)
    site.upgrade()
    site.bundle("c2", SLEEP)
    site.start("c2")
    site.create("c2")
    later = parent(site.shim_pid())
    assert later != earlier
    assert Path(f"/proc/{later}/comm").read_text() == "manor-warden\n"
    eventually(lambda: not is_alive(earlier))
    assert is_alive(shim)
    assert is_alive(later)
    second, site.client = site.client, first
    site.exec("c1", "e1", ["true"])
    assert site.wait("c1", "e1") == 0
    second.close()


def test_a_shim_that_died_is_cleaned_up_after_by_the_later_version_from_its_record(site: Site) -> None:
    ended = site.run("c1", ENDS_WITH_3, POD)
    running = site.run("c2", SLEEP, POD)
    eventually((site.directory / "bundles/c1/rootfs/ready").exists, LIMIT_S)
    site.upgrade()
    with killed_between_record_and_event(site.shim_pid()):
        os.kill(ended, signal.SIGTERM)
    answers = []
    for name in ("c2", "c1"):
        done = site.launch("delete", name)
        assert (done.returncode, done.stderr) == (0, b"")
        answers.append(decode(task.DeleteResponse, done.stdout))
    assert [(answer.pid, answer.exit_status) for answer in answers] == [(running, 137), (ended, 3)]
    assert not is_alive(running)
    assert (site.cgroups(), site.mounts(), site.state_directories()) == ([], [], [])
    assert not Path(site.address.removeprefix("unix://")).exists()


def test_starts_of_one_pod_by_both_versions_at_once_make_one_shim(site: Site) -> None:
    """A launcher that was read before the upgrade, and one that was read after it."""
    before = site.directory / "before"
    shutil.copy(site.program, before)
    site.installation.install(LATER, keep=True)
    for round_ in range(4):
        pod = {"io.kubernetes.cri.sandbox-id": f"pod{round_}"}
        names = [f"a{round_}", f"b{round_}"]
        for name in names:
            site.bundle(name, SLEEP, pod)
        known = shims(site)
        with ThreadPoolExecutor(2) as pool:
            programs = [before, site.program] if round_ % 2 else [site.program, before]
            done = list(pool.map(launched, (site, site), programs, names))
        assert [each.returncode for each in done] == [0, 0], done
        assert done[0].stdout == done[1].stdout
        eventually(partial(_one_more, site, known))
        Path(done[0].stdout.decode().removeprefix("unix://")).unlink()


def _one_more(site: Site, known: set[int]) -> bool:
    return len(shims(site) - known) == 1


def launched(site: Site, program: Path, name: str) -> subprocess.CompletedProcess[bytes]:
    """`start` by the launcher in the file `program`."""
    return subprocess.run(
        [program, "-namespace", "test", "-address", str(site.directory / "grpc"), "-id", name, "start"],
        cwd=site.directory / "bundles" / name,
        env=site.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("way", [IN_PLACE])
def test_a_launcher_whose_code_was_replaced_makes_no_warden_of_that_name(site: Site) -> None:
    """An upgrade that is half done: no earlier warden is there, and the launcher is still the earlier one's."""
    before = site.directory / "before"
    shutil.copy(site.program, before)
    site.installation.install(LATER)
    shutil.copy(before, site.program)
    site.run("c1", SLEEP)
    assert list(site.run_dir.glob("warden-*.sock")) == []
    told = subprocess.run([site.program, "-info"], env=site.environ, capture_output=True, check=True)
    assert b"is not what this launcher was written for" in told.stdout
    site.end("c1")


# --- traces ---


def test_operations_of_both_versions_are_traced_and_the_last_scribe_ends(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    del site.environ["MANOR_TRACE"]
    site.run("c1", SLEEP)
    earlier = site.shim_pid()
    _executes_until_traced(site, "c1")
    assert f'"manor {EARLIER}"' in (site.run_dir / FILE).read_text()  # the service: a scribe of its version
    site.upgrade()
    first = site.client
    site.bundle("c2", SLEEP)
    site.start("c2")
    site.create("c2")
    site.ask("Start", task.StartRequest("c2"))
    _executes_until_traced(site, "c2")
    later, site.client = site.client, first
    eventually(lambda: not is_warden(parent(earlier)))
    before = (site.run_dir / FILE).read_text().count('"c1"')
    site.exec("c1", "more", ["true"])
    eventually(lambda: (site.run_dir / FILE).read_text().count('"c1"') > before)
    assert trace.main(["--file", str(site.run_dir / FILE), "c1"]) == 0
    assert "exec" in capsys.readouterr().out
    for pid in shims(site):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not site._processes())
    eventually(lambda: not (site.run_dir / "scribe.sock").exists())
    later.close()


def is_warden(pid: int) -> bool:
    """Whether a process is a warden: whoever a shim is left to is none."""
    return Path(f"/proc/{pid}/comm").read_text() == "manor-warden\n"


def _executes_until_traced(site: Site, container_id: str) -> None:
    """A shim looks for a scribe once a second, and there is none in the first of a node's."""
    file = site.run_dir / FILE

    def traced() -> bool:
        site.exec(container_id, "e1", ["true"])
        site.wait(container_id, "e1")
        site.delete(container_id, "e1")
        return file.exists() and f'"{container_id}"' in file.read_text()

    eventually(traced)


# --- the command ---

REFUSED = "state of container o3: version 2 is of a newer Manor, this one reads up to 1"


def _write_as_a_later_version(path: Path) -> None:
    """A downgrade leaves such states behind."""
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "version": 2, "rootfs": {"moved": True}}))


def test_the_command_knows_the_containers_of_the_earlier_one(site: Site) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        # A created container has the command's own streams.
        with open(site.directory / "output", "w+", encoding="utf-8") as output:
            done = subprocess.run(
                [site.installation.command, "--root", site.directory / "oci", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, output.read())

    for name in ("o1", "o2", "o3"):
        bundle = site.bundle(name, SLEEP)
        assert command("create", "--bundle", str(bundle.path), name).returncode == 0
    assert command("start", "o1").returncode == 0
    assert EARLIER in command("--version").stdout
    site.upgrade()
    assert LATER in command("--version").stdout
    assert command("start", "o2").returncode == 0  # at the gate of an init of the earlier version
    listed = [line.split()[:3:2] for line in command("list").stdout.splitlines()[1:]]
    assert listed == [["o1", "running"], ["o2", "running"], ["o3", "created"]]
    for name in ("o1", "o2"):
        assert '"status": "running"' in command("state", name).stdout
        assert command("exec", name, "true").returncode == 0
        assert command("kill", name, "KILL").returncode == 0
    eventually(lambda: '"status": "stopped"' in command("state", "o1").stdout)
    _write_as_a_later_version(site.directory / "oci/o3/state.json")
    assert command("list", "-q").stdout.splitlines() == ["load container o3: " + REFUSED, "o1", "o2"]
    for verb in ("state", "kill", "delete"):
        done = command(verb, "o3")
        assert done.returncode == 1
        assert REFUSED in done.stdout
    for words in (("o1",), ("--force", "o2"), ("--force", "o3")):
        assert command("delete", *words).returncode == 0
    assert command("list", "-q").stdout == ""
    assert site.cgroups() == []
