"""Containers of a user without privileges: as much as runc gives them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.rootless.conftest import COUNT, GID, SUBGID, SUBUID, UID

if TYPE_CHECKING:
    from tests.e2e.rootless.conftest import Scene

both = pytest.mark.parametrize("whole", [False, True], ids=["own id", "ranges"])


@both
def test_a_user_runs_a_container_as_its_root(scene: Scene, whole: bool) -> None:
    script = "id -u; id -g; hostname; cat /proc/self/uid_map /proc/self/gid_map; echo $$"
    bundle = scene.bundle("sh", "-c", script, whole=whole)
    done = scene.run("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code == 0, done.stderr
    uids, gids = [["0", str(UID), "1"]], [["0", str(GID), "1"]]
    if whole:
        uids.append(["1", str(SUBUID), str(COUNT)])
        gids.append(["1", str(SUBGID), str(COUNT)])
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines == [["0"], ["0"], ["manor"], *uids, *gids, ["1"]]


@both
def test_its_life_goes_step_by_step_too(scene: Scene, whole: bool) -> None:
    bundle = scene.bundle("sleep", "1000", whole=whole)
    name = bundle.path.name
    scene.ok("create", "--bundle", bundle.path, name)
    assert json.loads(scene.ok("state", name))["status"] == "created"
    scene.ok("start", name)
    assert scene.ok("exec", name, "id", "-u") == "0\n"
    assert json.loads(scene.ok("list", "--format", "json"))[0]["status"] == "running"
    scene.ok("kill", name, "KILL")
    scene.oci.await_status(name, "stopped")
    scene.ok("delete", name)
    assert scene.run("state", name).code == 1


@both
def test_it_can_be_entered_before_it_is_started(scene: Scene, whole: bool) -> None:
    kinds = ("user", "mnt", "pid", "ipc", "uts", "cgroup")
    script = f"for each in {' '.join(kinds)}; do readlink /proc/self/ns/$each; done"
    bundle = scene.bundle("sleep", "1000", whole=whole)
    name = bundle.path.name
    scene.ok("create", "--bundle", bundle.path, name)
    for _ in range(2):
        assert scene.ok("exec", name, "id", "-u") == "0\n"
        assert json.loads(scene.ok("state", name))["status"] == "created"
    before = scene.ok("exec", name, "sh", "-c", script).split()
    assert len(before) == len(kinds)
    assert not set(before) & {os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    scene.ok("start", name)
    assert scene.ok("exec", name, "sh", "-c", script).split() == before
    scene.ok("delete", "--force", name)


@pytest.mark.manor_only("runc's init can be traced there, or not be entered")
def test_one_that_joins_namespaces_can_be_entered_before_it_is_started(scene: Scene) -> None:
    landlord = scene.bundle("sleep", "1000", whole=True)
    first = landlord.path.name
    scene.ok("create", "--bundle", landlord.path, first)
    scene.ok("start", first)
    pid = json.loads(scene.ok("state", first))["pid"]

    def beside(config: dict[str, Any]) -> None:
        linux = config["linux"]
        del linux["uidMappings"], linux["gidMappings"]
        names = {"user": "user", "pid": "pid", "ipc": "ipc"}
        for each in linux["namespaces"]:
            if each["type"] in names:
                each["path"] = f"/proc/{pid}/ns/{names[each['type']]}"

    bundle = scene.bundle("sleep", "2000", whole=True, change=beside)
    name = bundle.path.name
    scene.ok("create", "--bundle", bundle.path, name)
    script = "for each in user pid ipc mnt; do readlink /proc/self/ns/$each; done"
    theirs = scene.ok("exec", first, "sh", "-c", script).split()
    ours = scene.ok("exec", name, "sh", "-c", script).split()
    assert (ours[:3], ours[3] == theirs[3]) == (theirs[:3], False)
    scene.ok("start", name)
    assert "sleep 2000" in scene.ok("exec", first, "ps", "-o", "args")
    scene.ok("delete", "--force", name)
    scene.ok("delete", "--force", first)


@pytest.mark.manor_only("runc's init can be traced there, or not be entered")
@pytest.mark.parametrize("user", [None, 1000])
def test_a_tenant_of_one_that_is_not_started_sees_nothing_of_the_runtime(
    scene: Scene, user: int | None
) -> None:
    def as_somebody(config: dict[str, Any]) -> None:
        if user is not None:
            config["process"]["user"] = {"uid": user, "gid": user}

    bundle = scene.bundle("true", whole=True, change=as_somebody)
    name = bundle.path.name
    scene.ok("create", "--bundle", bundle.path, name)
    script = """
        for each in exe cwd root ns/mnt ns/user; do readlink /proc/1/$each && echo $each; done
        for each in fd map_files; do ls /proc/1/$each && echo listed; done
        head -c 1 /proc/1/mem && echo memory
        cat /proc/1/environ && echo environment
        echo done
    """
    assert scene.ok("exec", name, "sh", "-c", script) == "done\n"
    assert scene.ok("exec", "--user", "0", name, "sh", "-c", script) == "done\n"
    scene.ok("delete", "--force", name)


def test_it_can_be_another_user_of_its_ranges(scene: Scene) -> None:
    def as_somebody(config: dict[str, Any]) -> None:
        config["process"]["user"] = {"uid": 1000, "gid": 1000}

    bundle = scene.bundle("sh", "-c", "id -u; id -g", whole=True, change=as_somebody)
    done = scene.run("run", "--bundle", bundle.path, bundle.path.name)
    assert done.stdout == "1000\n1000\n", done.stderr


def test_without_a_user_namespace_it_is_refused(scene: Scene) -> None:
    def without(config: dict[str, Any]) -> None:
        linux = config["linux"]
        del linux["uidMappings"], linux["gidMappings"]
        linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "user"]

    bundle = scene.bundle("true", change=without)
    done = scene.run("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code == 1
    assert "user namespace" in done.error


def test_what_is_not_in_its_ranges_it_cannot_be(scene: Scene) -> None:
    def beyond(config: dict[str, Any]) -> None:
        config["linux"]["uidMappings"][1]["hostID"] = SUBUID - 1

    bundle = scene.bundle("true", whole=True, change=beyond)
    done = scene.run("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code == 1
    assert "newuidmap" in done.stderr
    assert scene.ok("list", "--quiet") == ""


def test_its_uts_namespace_has_the_names_that_are_asked_for(scene: Scene) -> None:
    def named(config: dict[str, Any]) -> None:
        config.update(hostname="host.test", domainname="domain.test")

    files = ["/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname"]
    bundle = scene.bundle("cat", *files, change=named)
    assert scene.ok("run", "--bundle", bundle.path, bundle.path.name).split() == ["host.test", "domain.test"]


@pytest.mark.parametrize("score", [500, None])
def test_limits_that_take_no_privilege_are_set(scene: Scene, score: int | None) -> None:
    def limited(config: dict[str, Any]) -> None:
        config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]
        if score is not None:
            config["process"]["oomScoreAdj"] = score

    bundle = scene.bundle("sh", "-c", "ulimit -n; cat /proc/self/oom_score_adj", change=limited)
    done = scene.run("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code == 0, done.stderr
    assert done.stdout.split()[0] == "77"
    if score is not None:
        assert done.stdout.split()[1] == str(score)


def test_an_oom_score_it_may_not_set_is_an_error(scene: Scene) -> None:
    def protected(config: dict[str, Any]) -> None:
        config["process"]["oomScoreAdj"] = -500

    bundle = scene.bundle("true", change=protected)
    done = scene.run("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code == 1
    assert "oom_score_adj" in done.error
    assert "ermission denied" in done.error


def test_groups_beside_its_own_are_refused(scene: Scene) -> None:
    def with_groups(config: dict[str, Any]) -> None:
        config["process"]["user"]["additionalGids"] = [5]

    bundle = scene.bundle("true", whole=True, change=with_groups)
    done = scene.run("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code == 1
    assert "additional groups" in done.error or "additionalGids" in done.error


@pytest.mark.parametrize(
    "asked",
    [{"cgroupsPath": "/manor-tests/of-a-user"}, {"resources": {"pids": {"limit": 20}}}],
    ids=["a cgroup", "a limit"],
)
def test_a_cgroup_that_is_asked_for_and_cannot_be_had_is_an_error(
    scene: Scene, asked: dict[str, Any]
) -> None:
    bundle = scene.bundle("true", change=lambda config: config["linux"].update(asked))
    done = scene.run("run", "--bundle", bundle.path, bundle.path.name)
    assert done.code == 1
    assert "cgroup" in done.error
