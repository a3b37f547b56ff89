"""state, list and ps: what is said of containers, whoever made them and whatever has become of them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.oci.conftest import Oci

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
ANNOTATIONS = {"b.c": "<&>", "a": "1", "ü": "\u2028"}


def annotated(config: dict[str, Any]) -> None:
    config["annotations"] = ANNOTATIONS


def test_state_has_runcs_fields_in_runcs_order(oci: Oci) -> None:
    name = oci.started(change=annotated)
    state = oci.state(name)
    assert list(state) == [
        *("ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner")
    ]
    assert (state["ociVersion"], state["id"], state["status"]) == ("1.3.0", name, "running")
    assert state["bundle"] == str(oci.directory / name)
    assert state["rootfs"] == str(oci.directory / name / "rootfs")
    assert state["annotations"] == ANNOTATIONS
    assert list(state["annotations"]) == sorted(ANNOTATIONS)
    assert state["owner"] == ""
    assert TIME.fullmatch(state["created"])
    assert Path(f"/proc/{state['pid']}/cmdline").read_bytes() == b"sleep\x001000\x00"


def test_state_is_indented_json(oci: Oci) -> None:
    name = oci.started()
    text = oci.ok("state", name)
    assert text.startswith('{\n  "ociVersion": "1.3.0",\n  "id": "')
    assert '"annotations"' not in text


def test_the_status_follows_the_container_through_its_life(oci: Oci) -> None:
    name = oci.created()
    assert oci.state(name)["status"] == "created"
    oci.ok("start", name)
    assert oci.state(name)["status"] == "running"
    oci.ok("pause", name)
    assert oci.state(name)["status"] == "paused"
    oci.ok("resume", name)
    assert oci.state(name)["status"] == "running"
    oci.ok("kill", name, "KILL")
    oci.await_status(name, "stopped")
    assert oci.state(name)["pid"] == 0
    oci.ok("delete", name)
    assert "does not exist" in oci("state", name).error


def test_a_created_container_that_died_is_stopped(oci: Oci) -> None:
    name = oci.created()
    os.kill(oci.state(name)["pid"], 9)
    oci.await_status(name, "stopped")


def test_paused_processes_stand_still(oci: Oci) -> None:
    name = oci.started("sh", "-c", "while :; do :; done")

    def cpu_ticks() -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().split()[13])

    pid = oci.state(name)["pid"]
    oci.ok("pause", name)
    before = cpu_ticks()
    os.sched_yield()
    for _ in range(20):
        oci.ok("state", name)
    assert cpu_ticks() == before
    assert oci("pause", name).error == "container not running"
    oci.ok("resume", name)
    assert oci("resume", name).error == "container not paused"


def test_pause_and_resume_refuse_what_does_not_run(oci: Oci) -> None:
    name = oci.stopped()
    assert oci("pause", name).error == "container not running"
    assert oci("resume", name).error == "container not paused"


# ---- list --------------------------------------------------------------------------------------


def test_list_is_a_table_that_grows_with_its_cells(oci: Oci) -> None:
    names = [oci.started(), oci.created(), oci.stopped()]
    header, *lines = oci.ok("list").splitlines()
    assert header.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert header.index("PID") == 12
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows] == sorted(names)
    assert [row[2] for row in rows] == ["running", "created", "stopped"]
    assert rows[2][1] == "0"
    assert {row[5] for row in rows} == {"root"}
    for line in lines:
        assert line.index("/") == header.index("BUNDLE")
        assert line.index("root", line.index("Z   ")) == header.index("OWNER")


def test_list_knows_json_and_ids_alone(oci: Oci) -> None:
    names = sorted((oci.started(change=annotated), oci.created()))
    found = json.loads(oci.ok("list", "--format", "json"))
    assert [each["id"] for each in found] == names
    assert found[0] == {**oci.state(names[0]), "owner": "root"}
    assert oci.ok("list", "-f=json", "-q").split() == names
    assert oci.ok("list", "--quiet") == "".join(f"{name}\n" for name in names)


def test_list_of_nothing_is_a_header(oci: Oci) -> None:
    oci.root.mkdir()
    assert oci.ok("list").split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert not json.loads(oci.ok("list", "-f", "json"))
    assert oci.ok("list", "-q") == ""


def test_list_of_a_root_that_is_not_there_fails_if_it_was_given(oci: Oci) -> None:
    assert "no such file or directory" in oci("list").error


@pytest.mark.manor_only("runc takes some of these for a container without a name, and panics")
@pytest.mark.parametrize(
    "content",
    ["", "{", "null", "[]", '{"id": 7}', '{"version": 1}', "\0" * 100, "[" * 10**5, '{"version": NaN}'],
    ids=["empty", "cut", "null", "list", "other", "bare", "zeros", "deep", "nan"],
)
def test_a_damaged_state_is_said_and_spoils_nothing(oci: Oci, content: str) -> None:
    good, bad = oci.started(), oci.started()
    file = oci.root / bad / "state.json"
    whole = file.read_text()
    file.write_text(content)
    done = oci("list", "-q")
    assert done.code == 0
    assert done.stdout.split() == [good]
    assert re.search(f"^load container {bad}: ", done.stderr, re.MULTILINE)
    assert oci.state(good)["status"] == "running"
    for verb in ("state", "kill", "pause", "delete"):
        assert "damaged" in oci(verb, bad).error
    file.write_text(whole)


def test_a_cut_state_is_said_and_spoils_nothing(oci: Oci) -> None:
    good, bad = oci.started(), oci.started()
    file = oci.root / bad / "state.json"
    whole = file.read_text()
    file.write_text(whole[:100])
    done = oci("list", "-q")
    assert (done.code, done.stdout.split()) == (0, [good])
    assert re.search(f"^load container {bad}: ", done.stderr, re.MULTILINE)
    file.write_text(whole)


def test_what_is_no_container_is_passed_over(oci: Oci) -> None:
    name = oci.started()
    (oci.root / "a-file").write_text("")
    (oci.root / "a-link").symlink_to(name)
    (oci.root / "empty").mkdir()
    done = oci("list", "-q")
    assert (done.code, done.stdout.split()) == (0, [name])
    assert re.search("^load container empty: .*does not exist", done.stderr, re.MULTILINE)
    (oci.root / "a-file").unlink()
    (oci.root / "a-link").unlink()


def test_the_owner_is_who_owns_the_state(oci: Oci) -> None:
    name = oci.started()
    for uid, shown in ((1, "daemon"), (54321, "#54321")):
        os.chown(oci.root / name, uid, 0)
        assert json.loads(oci.ok("list", "-f", "json"))[0]["owner"] == shown
    os.chown(oci.root / name, 0, 0)


@pytest.mark.manor_only("runc has no lock: it shows nothing of a container before it is created")
def test_a_container_in_the_making_is_creating(oci: Oci) -> None:
    name = oci.started()
    file = oci.root / name / "state.json"
    whole = file.read_text()
    file.write_text(json.dumps({**json.loads(whole), "pid": 0, "start_time": 0}))
    lock = os.open(oci.root / name, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert oci.state(name)["status"] == "creating"
    finally:
        os.close(lock)
    assert oci.state(name)["status"] == "stopped"
    file.write_text(whole)


@pytest.mark.manor_only("runc tells a used pid by the start time as well, and keeps it elsewhere")
def test_a_pid_that_is_somebody_elses_by_now_is_not_the_container(oci: Oci) -> None:
    name = oci.started()
    file = oci.root / name / "state.json"
    whole = file.read_text()
    known = json.loads(whole)
    file.write_text(json.dumps({**known, "start_time": known["start_time"] + 1}))
    assert oci.state(name)["status"] == "stopped"
    assert oci("kill", name, "KILL").error == "container not running"
    file.write_text(whole)
    assert oci.state(name)["status"] == "running"


@pytest.mark.manor_only("its light state and the operations' must be the same")
def test_state_says_what_the_operations_go_by(oci: Oci) -> None:
    from runtime.cgroups.layout import detect_layout
    from runtime.container import open_host
    from runtime.operations.load import load

    host = open_host(str(oci.root), str(oci.root / "@seccomp"), detect_layout())

    def seen_by_operations() -> str:
        container = load(host, name)
        container.leave()
        return container.status

    name = oci.created()
    for verb, status in (
        (None, "created"),
        (("start", name), "running"),
        (("pause", name), "paused"),
        (("resume", name), "running"),
        (("kill", name, "9"), "stopped"),
    ):
        if verb is not None:
            oci.ok(*verb)
        oci.await_status(name, status)
        assert seen_by_operations() == status
    host.procfs.close()


@pytest.mark.manor_only("a shim of Manor's owns the container")
def test_what_a_shim_holds_is_listed_too(oci: Oci) -> None:
    from runtime.cgroups.layout import detect_layout
    from runtime.container import open_host
    from runtime.operations.apart import ApartRequest, create_apart
    from runtime.operations.delete import delete
    from runtime.operations.kill import kill
    from runtime.operations.start import start
    from runtime.stages.plan import Stdio
    from runtime.waiting import run

    bundle = oci.bundle()
    host = open_host(str(oci.root), str(oci.directory / "filters"), detect_layout())
    container = run(create_apart(host, ApartRequest(bundle.path.name, str(bundle.path), Stdio())))
    try:
        for status in ("created", "running"):
            if status == "running":
                run(start(container))
            (shown,) = json.loads(oci.ok("list", "-f", "json"))
            assert (shown["id"], shown["status"], shown["pid"]) == (container.id, status, container.pid)
            assert oci.state(container.id) == {**shown, "owner": ""}
    finally:
        kill(container, 9)
        os.waitpid(container.pid, 0x40000000)
        container.ended()
        run(delete(container))
        host.procfs.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG | 0x40000000)


# ---- ps ----------------------------------------------------------------------------------------


def test_ps_lists_the_containers_processes_alone(oci: Oci) -> None:
    name, other = oci.started("sh", "-c", "sleep 1000 & sleep 1001 & wait"), oci.started()
    pid = oci.state(name)["pid"]
    children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert len(children) == 2
    assert sorted(json.loads(oci.ok("ps", "--format", "json", name))) == sorted([pid, *children])
    header, *lines = oci.ok("ps", name).splitlines()
    assert header.split()[:3] == ["UID", "PID", "PPID"]
    assert sorted(int(line.split()[1]) for line in lines) == sorted([pid, *children])
    assert str(oci.state(other)["pid"]) not in " ".join(lines).split()


def test_what_stands_behind_the_id_is_for_ps(oci: Oci) -> None:
    name = oci.started()
    pid = oci.state(name)["pid"]
    assert oci.ok("ps", name, "-o", "pid,comm").split() == ["PID", "COMMAND", str(pid), "sleep"]
    assert oci.ok("ps", name, "--format", "pid").split() == ["PID", str(pid)]  # the option is ps's own
    assert oci("ps", name, "-o", "comm").error == "couldn't find PID field in ps output"
    assert 'unknown user-defined format specifier "x"' in oci("ps", name, "-o", "x").error
    assert oci("ps", "-f", "xml", name).error == "invalid format option"


def test_ps_of_a_stopped_container_is_a_header(oci: Oci) -> None:
    name = oci.stopped()
    assert len(oci.ok("ps", name).splitlines()) == 1
    assert not json.loads(oci.ok("ps", "-f", "json", name))
