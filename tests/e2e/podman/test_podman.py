"""A container's life under podman, as its users know it: what podman asks of an OCI runtime, conmon in between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from tests.e2e.podman.conftest import IMAGE, Podman


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"not within 15 s: {what}"
        time.sleep(0.05)


def test_run_gives_output_exit_code_and_logs(podman: Podman) -> None:
    done = podman.run("--name=c", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.code, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert (
        podman.ok("inspect", "--format={{.State.ExitCode}} {{.OCIRuntime}}", "c") == f"7 {podman.runtime}\n"
    )
    logs = podman("logs", "c")
    assert (logs.stdout, logs.stderr) == ("out\n", "err\n")


def test_rm_at_the_end_leaves_no_container(podman: Podman) -> None:
    assert podman.run("--rm", "--name=c", IMAGE, "true").code == 0
    assert podman("container", "exists", "c").code == 1


def test_what_podman_asks_for_is_what_the_process_has(podman: Podman) -> None:
    script = (
        "id -u; id -G; pwd; hostname; echo $GREETING; grep -c ^Seccomp.*2 /proc/self/status;"
        "grep -E '^Cap(Eff|Bnd)' /proc/self/status; mount | grep ' /data '; touch /data/x /x"
    )
    given = "--user=1000:1000 --group-add=29 --workdir=/tmp --hostname=here --env=GREETING=hello".split()
    given += "--read-only --cap-drop=all --cap-add=kill --tmpfs=/data:size=64k".split()
    done = podman.run("--rm", *given, IMAGE, "sh", "-c", script)
    *lines, mount = done.stdout.splitlines()
    assert lines[:6] == ["1000", "1000 29", "/tmp", "here", "hello", "1"]
    assert lines[6:] == ["CapEff:\t0000000000000020", "CapBnd:\t0000000000000020"]
    assert mount.startswith("tmpfs on /data ")
    assert "size=64k" in mount
    assert done.stderr == "touch: /x: Read-only file system\n"


def test_exec(podman: Podman) -> None:
    container = podman.started()
    done = podman(
        "exec", "--env=A=b", container, "sh", "-c", "echo $A; cat /proc/1/comm; echo err >&2; exit 3"
    )
    assert (done.code, done.stdout, done.stderr) == (3, "b\nsleep\n", "err\n")


def test_exec_on_a_terminal_has_its_size(podman: Podman) -> None:
    container = podman.started()
    script = "sleep 0.3; tty; stty size; exit 4"  # podman tells the size once the process runs
    code, screen = podman.on_terminal("exec", "-it", container, "sh", "-c", script, rows=33, columns=77)
    assert (code, screen.splitlines()) == (4, ["/dev/pts/0", "33 77"])


def test_run_on_a_terminal_has_its_size(podman: Podman) -> None:
    arguments = podman.run_words("-it", "--rm", IMAGE, "sh", "-c", "sleep 0.3; tty; stty size; exit 4")
    code, screen = podman.on_terminal(*arguments, rows=33, columns=77)
    assert (code, screen.splitlines()) == (4, ["/dev/pts/0", "33 77"])


def test_exec_in_the_background(podman: Podman) -> None:
    container = podman.started()
    podman.ok("exec", "--detach", container, "sh", "-c", "echo done > /tmp/it; sleep 1000")
    _await(lambda: podman("exec", container, "cat", "/tmp/it").stdout == "done\n", "the file")
    assert "sleep 1000" in podman.ok("top", container, "args")


@pytest.mark.parametrize(("program", "code"), [("/not/there", 127), ("not-there", 127), ("/etc/passwd", 126)])
def test_a_program_that_cannot_be_run_gives_the_shell_s_exit_code(
    podman: Podman, program: str, code: int
) -> None:
    """podman tells which by the runtime's words."""
    done = podman.run("--rm", IMAGE, program)
    assert done.code == code, done.stderr
    container = podman.started()
    done = podman("exec", container, program)
    assert done.code == code, done.stderr


def test_paused_processes_stand_still(podman: Podman) -> None:
    container = podman.started(program=("sh", "-c", "while :; do echo .; sleep 0.02; done"))
    podman.ok("pause", container)
    assert podman.status(container) == "paused"
    written = ""

    def settled() -> bool:  # conmon may have some of it still to write
        nonlocal written
        before, written = written, podman.ok("logs", container)
        time.sleep(0.2)
        return written == before

    _await(settled, "output to end")
    assert podman.ok("logs", container) == written
    assert podman("exec", container, "true").code != 0
    podman.ok("unpause", container)
    assert podman.status(container) == "running"
    _await(lambda: len(podman.ok("logs", container)) > len(written), "more output")


def test_stats_and_limits(podman: Podman) -> None:
    container = podman.started("--memory=64m", "--pids-limit=50", program=("sh", "-c", "sleep 1000 & wait"))
    _await(lambda: "sleep" in podman.ok("top", container, "comm"), "the second process")
    (stats,) = json.loads(podman.ok("stats", "--no-stream", "--format=json", container))
    assert stats["pids"] == "2"
    assert stats["mem_usage"].endswith(" / 67.11MB")
    assert float(stats["mem_percent"].rstrip("%")) > 0


def test_update(podman: Podman) -> None:
    container = podman.started("--memory=64m")
    assert podman.memory_limit(container) == 64 << 20
    podman.ok("update", "--memory=32m", container)
    assert podman.memory_limit(container) == 32 << 20


def test_stop_asks_and_then_kills(podman: Podman) -> None:
    polite = podman.started(program=("sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done"))
    stubborn = podman.started("--stop-timeout=1", program=("sh", "-c", "trap '' TERM; echo up; sleep 1000"))
    for container, code in ((polite, 5), (stubborn, 137)):
        _await(lambda name=container: podman.ok("logs", name) == "up\n", "the trap")  # type: ignore[misc]
        podman.ok("stop", container)
        assert (
            podman.ok("inspect", "--format={{.State.Status}} {{.State.ExitCode}}", container)
            == f"exited {code}\n"
        )
        podman.ok("rm", container)
        assert podman("container", "exists", container).code == 1


def test_kill_sends_the_signal(podman: Podman) -> None:
    container = podman.started(
        program=("sh", "-c", "trap 'exit 6' USR1; echo up; while :; do sleep 0.05; done")
    )
    _await(lambda: podman.ok("logs", container) == "up\n", "the trap")
    podman.ok("kill", "--signal=USR1", container)
    assert podman.ok("wait", container) == "6\n"


def test_restart_and_start_again(podman: Podman) -> None:
    container = podman.started("--stop-timeout=0")
    first = podman.ok("inspect", "--format={{.State.Pid}}", container)
    podman.ok("restart", container)
    assert podman.ok("inspect", "--format={{.State.Pid}}", container) != first
    podman.ok("kill", container)
    podman.ok("wait", container)
    podman.ok("start", container)
    assert podman.status(container) == "running"


def test_a_created_container_waits_for_its_start(podman: Podman) -> None:
    podman.ok("create", *podman.options(), "--name=c", IMAGE, "echo", "hello")
    assert podman.status("c") == "created"
    podman.ok("init", "c")
    assert podman.status("c") == "initialized"
    assert podman.ok("logs", "c") == ""
    assert podman.ok("start", "--attach", "c") == "hello\n"


def test_rm_by_force_ends_what_runs(podman: Podman) -> None:
    container = podman.started(program=("sh", "-c", "sleep 1000 & sleep 1000"))
    podman.ok("rm", "--force", "--time=0", container)
    assert podman("container", "exists", container).code == 1


def test_containers_share_namespaces(podman: Podman) -> None:
    first = podman.started("--ipc=shareable")
    shared = [f"--{kind}=container:{first}" for kind in ("pid", "ipc")]
    script = "cat /proc/1/comm; readlink /proc/self/ns/ipc; touch /dev/shm/here"
    comm, ipc = podman.run("--rm", *shared, IMAGE, "sh", "-c", script).stdout.split()
    assert comm == "sleep"
    assert podman.ok("exec", first, "readlink", "/proc/self/ns/ipc").strip() == ipc
    podman.ok("exec", first, "test", "-e", "/dev/shm/here")


def test_a_user_namespace(podman: Podman) -> None:
    done = podman.run(
        "--rm", "--uidmap=0:100000:5000", IMAGE, "sh", "-c", "id -u; cat /proc/self/uid_map; touch /tmp/x"
    )
    assert (done.code, done.stdout.split()) == (0, ["0", "0", "100000", "5000"]), done.stderr


def test_a_health_check_is_run_in_the_container(podman: Podman) -> None:
    container = podman.started("--health-cmd=test -e /tmp/well", "--health-interval=disable")
    assert podman("healthcheck", "run", container).code == 1
    podman.ok("exec", container, "touch", "/tmp/well")
    podman.ok("healthcheck", "run", container)


def test_podman_knows_the_runtime(podman: Podman) -> None:
    found = json.loads(podman.ok("info", "--format=json"))["host"]["ociRuntime"]
    assert found["name"] == podman.runtime
    assert found["version"].startswith(podman.runtime.split("-")[0])
