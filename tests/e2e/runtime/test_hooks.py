"""Hooks of all six kinds: when they run, where, what they are told, and what comes of one that fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime import state
from runtime.errors import ManorError
from runtime.operations.start import start
from runtime.stages.plan import STAGED
from runtime.waiting import run

if TYPE_CHECKING:
    from tests.e2e.runtime.conftest import Runner
    from tests.harness.bundles import Bundle

ON_THE_HOST = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")


def with_hooks(runner: Runner, *moments: str, failing: str = "") -> tuple[Bundle, Path]:
    """A bundle whose hooks add a line to a log: moment, root's inode, PID namespace, state."""
    log = runner.directory / "hooks.log"
    script = runner.directory / "hook"
    script.write_text(
        f'#!/bin/sh\necho "$1 $(stat -c %i /) $(readlink /proc/self/ns/pid) $(cat)" >> {log}\n'
        '[ "$1" != "$FAILING" ] || { echo "on purpose" >&2; exit 3; }\n'
    )
    script.chmod(0o755)
    bundle = runner.bundle("sleep", "1000")
    bundle.config["annotations"] = {"a": "b"}
    env = [f"FAILING={failing}", "PATH=/usr/bin:/bin"]
    bundle.config["hooks"] = {
        moment: [{"path": str(script), "args": ["hook", moment], "env": env}] for moment in moments
    }
    return bundle, log


def entries(log: Path) -> list[tuple[str, str, str, dict[str, Any]]]:
    parsed = []
    for line in log.read_text().splitlines():
        moment, inode, namespace, said = line.split(" ", 3)
        parsed.append((moment, inode, namespace, json.loads(said)))
    return parsed


def test_hooks_run_in_their_order_with_the_containers_state(runner: Runner) -> None:
    bundle, log = with_hooks(runner, *ON_THE_HOST)
    container = runner.create(bundle)
    pid = container.pid
    assert [moment for moment, *_rest in entries(log)] == list(ON_THE_HOST[:3])
    run(start(container))
    assert entries(log)[-1][0] == "poststart"
    runner.stop(container)
    runner.delete(container)
    told = {moment: said for moment, _inode, _namespace, said in entries(log)}
    assert {moment: said["status"] for moment, said in told.items()} == {
        "prestart": "creating",
        "createRuntime": "creating",
        "createContainer": "creating",
        "poststart": "running",
        "poststop": "stopped",
    }
    for said in told.values():
        assert (said["id"], said["bundle"]) == (container.id, str(bundle.path))
        assert (said["ociVersion"], said["annotations"]) == ("1.2.0", {"a": "b"})
    assert told["prestart"]["pid"] == told["createRuntime"]["pid"] == told["poststart"]["pid"] == pid
    assert told["createContainer"]["pid"] == 1
    assert "pid" not in told["poststop"]


def test_createContainer_runs_in_the_containers_namespaces_before_its_root(runner: Runner) -> None:  # noqa: N802
    bundle, log = with_hooks(runner, "createRuntime", "createContainer")
    runner.create(bundle)
    (_, runtime_root, runtime_pids, _), (_, container_root, container_pids, _) = entries(log)
    assert runtime_pids == os.readlink("/proc/self/ns/pid") != container_pids
    assert container_root == runtime_root == str(os.stat("/").st_ino)


def test_hooks_of_the_runtime_meet_the_limit_of_processes(runner: Runner) -> None:
    bundle = runner.bundle("true")
    bundle.config["linux"]["resources"]["pids"] = {"limit": 17}
    log, script = runner.directory / "limits", runner.directory / "hook"
    files = " ".join(
        f"{each.mountpoint}/{bundle.config['linux']['cgroupsPath']}/pids.max"
        for each in runner.host.layout.hierarchies
        if "pids" in each.controllers
    )
    script.write_text(f'#!/bin/sh\ncat >/dev/null\necho "$1 $(cat {files})" >> {log}\n')
    script.chmod(0o755)
    moments = ("prestart", "createRuntime", "createContainer")
    env = ["PATH=/usr/bin:/bin"]
    bundle.config["hooks"] = {
        moment: [{"path": str(script), "args": ["hook", moment], "env": env}] for moment in moments
    }
    runner.create(bundle)
    assert log.read_text().splitlines() == [f"{moment} 17" for moment in moments]


def test_no_stage_takes_a_hooks_place_among_the_processes(runner: Runner) -> None:
    if runner.apart and runner.shape == STAGED:
        pytest.skip("the intermediate process counts until the shim's loop reaps it")
    bundle = runner.bundle("true")
    bundle.config["linux"]["resources"]["pids"] = {"limit": 2}
    log = runner.directory / "log"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"read -r _; echo run > {log}"]}
    bundle.config["hooks"] = {"createContainer": [hook]}
    runner.create(bundle)
    assert log.read_text() == "run\n"


def test_startContainer_is_a_program_of_the_container(runner: Runner) -> None:  # noqa: N802
    bundle = runner.bundle("sh", "-c", "cat /tmp/said")
    args = ["sh", "-c", "{ cat; echo; id -u; echo $HOOKED$FROM; } > /tmp/said"]
    bundle.config["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": args}]}
    bundle.config["process"]["env"].append("FROM=process")
    output = runner.run(bundle)
    assert output.code == 0, output.stderr
    said, uid, env = output.stdout.split("\n")[:3]
    assert (json.loads(said)["status"], json.loads(said)["pid"]) == ("created", 1)
    assert (uid, env) == ("0", "process")


@pytest.mark.parametrize("moment", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_that_fails_fails_the_create_and_leaves_nothing(runner: Runner, moment: str) -> None:
    bundle, log = with_hooks(runner, moment, failing=moment)
    with pytest.raises(
        ManorError, match=rf"error running {moment} hook #0: .*/hook: exit status 3, output: on purpose"
    ):
        runner.create(bundle)
    assert len(entries(log)) == 1


def test_a_startContainer_hook_that_fails_fails_the_start(runner: Runner) -> None:  # noqa: N802
    bundle = runner.bundle("sleep", "1000")
    bundle.config["hooks"] = {"startContainer": [{"path": "/bin/false"}]}
    container = runner.create(bundle)
    with pytest.raises(ManorError, match=r"error running startContainer hook #0: /bin/false: exit status 1"):
        run(start(container))


def test_a_poststart_hook_that_fails_stops_the_container(runner: Runner) -> None:
    bundle, _log = with_hooks(runner, "poststart", failing="poststart")
    container = runner.create(bundle)
    with pytest.raises(ManorError, match="error running poststart hook #0"):
        run(start(container))
    assert os.WTERMSIG(os.waitpid(container.pid, 0x40000000)[1]) == 9
    container.ended()


def test_a_poststop_hook_that_fails_is_a_warning_and_the_others_run(runner: Runner) -> None:
    bundle, log = with_hooks(runner, "poststop", failing="poststop")
    bundle.config["hooks"]["poststop"] *= 2
    container = runner.create(bundle)
    run(start(container))
    runner.stop(container)
    runner.delete(container)
    assert len(entries(log)) == 2
    path = bundle.config["hooks"]["poststop"][0]["path"]
    for index, warning in enumerate(container.warnings):
        assert warning.startswith(f"error running poststop hook #{index}: {path}: exit status 3")
    assert len(container.warnings) == 2


def test_a_hook_past_its_time_is_killed_and_fails_the_create(runner: Runner) -> None:
    bundle = runner.bundle("sleep", "1000")
    bundle.config["hooks"] = {
        "createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}]
    }
    with pytest.raises(ManorError, match=r"createRuntime hook #0: .*hook ran past specified timeout of 1.0s"):
        runner.create(bundle)


def test_a_hook_that_is_none_is_refused_before_anything_is_made(runner: Runner) -> None:
    bundle = runner.bundle("sleep", "1000")
    bundle.config["hooks"] = {"poststop": [{"path": "bin/true"}]}
    with pytest.raises(ManorError, match=r"hooks.poststop\[0\].path: must be an absolute path"):
        runner.create(bundle)
    assert not os.path.exists(f"{runner.host.root}/{bundle.path.name}/{state.STATE_FILE}")
