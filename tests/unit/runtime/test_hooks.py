"""Hooks as processes: their state, environment, time and end."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from runtime import hooks
from runtime.hooks import HookError
from runtime.spec.model import Hook
from runtime.waiting import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STATE = b'{"id":"c1","pid":7}'


def spawn(become: Callable[[], None], keep: tuple[int, ...]) -> tuple[int, int]:
    """A fork that closes everything but what is to be kept, as the stages' clone does."""
    pid = os.fork()
    if pid == 0:
        try:
            for name in os.listdir("/proc/self/fd"):
                if int(name) > 2 and int(name) not in keep:
                    try:
                        os.close(int(name))
                    except OSError:
                        pass
            become()
        finally:
            os._exit(99)
    return pid, os.pidfd_open(pid)


def shell(script: str, timeout: int | None = None, env: tuple[str, ...] = ("PATH=/bin:/usr/bin",)) -> Hook:
    return Hook("/bin/sh", ("sh", "-c", script), env, timeout)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _nothing_is_left() -> object:
    before = open_fds()
    yield
    assert open_fds() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_hooks_run_in_order_with_the_state_on_their_stdin(tmp_path: Path) -> None:
    out = tmp_path / "out"
    listed = (shell(f"cat >> {out}; echo ' 1' >> {out}"), shell(f"cat >> {out}; echo ' 2' >> {out}"))
    run(hooks.run("prestart", listed, STATE, spawn))
    assert out.read_bytes() == STATE + b" 1\n" + STATE + b" 2\n"


def test_a_hook_that_does_not_read_its_state_holds_nobody_up() -> None:
    run(hooks.run("prestart", (shell("exec 0<&-; true"),), b"x" * (1 << 20), spawn))


def test_the_first_failure_ends_it_and_says_what_the_hook_said(tmp_path: Path) -> None:
    listed = (shell("true"), shell("echo one; echo two >&2; exit 3"), shell(f"touch {tmp_path}/never"))
    with pytest.raises(HookError) as failure:
        run(hooks.run("createRuntime", listed, STATE, spawn))
    assert (
        str(failure.value) == "error running createRuntime hook #1: /bin/sh: exit status 3, output: one\ntwo"
    )
    assert not (tmp_path / "never").exists()


def test_where_failures_are_warnings_the_rest_is_run(tmp_path: Path) -> None:
    listed = (shell("exit 1"), shell(f"touch {tmp_path}/yes"), shell("kill -9 $$"))
    warnings = run(hooks.run_all("poststop", listed, STATE, spawn))
    assert warnings == (
        "error running poststop hook #0: /bin/sh: exit status 1",
        "error running poststop hook #2: /bin/sh: killed by signal 9: killed",
    )
    assert (tmp_path / "yes").exists()


def test_a_hook_past_its_time_is_killed() -> None:
    with pytest.raises(HookError, match=r"/bin/sh: hook ran past specified timeout of 1\.0s, output: here"):
        run(hooks.run("poststart", (shell("echo here; exec sleep 1000", timeout=1),), STATE, spawn))


def test_what_a_hook_past_its_time_has_started_is_killed_with_it(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(HookError, match="ran past"):
        run(hooks.run("createRuntime", (shell(script, timeout=1),), STATE, spawn))
    assert has_ended(int((tmp_path / "pid").read_text()))


def has_ended(pid: int) -> bool:
    """Whether an orphan is gone, or a zombie that waits for its new parent."""
    for _attempt in range(100):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as stream:
                if stream.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_a_hook_under_the_containers_filter_makes_no_session() -> None:
    for moment, own in (("startContainer", False), ("createContainer", True)):
        script = (
            "read -r _pid _name _state _parent _group session _rest < /proc/self/stat; echo $session; exit 1"
        )
        with pytest.raises(HookError) as failure:
            run(hooks.run(moment, (shell(script),), STATE, spawn))
        assert (str(failure.value).endswith(f"output: {os.getsid(0)}")) != own


def test_a_hook_begins_where_it_is_told_to(tmp_path: Path) -> None:
    with pytest.raises(HookError, match=f"output: {tmp_path}$"):
        run(hooks.run("prestart", (shell("pwd; exit 1"),), STATE, spawn, directory=str(tmp_path)))
    with pytest.raises(HookError, match="exit status 127, output: No such file or directory"):
        run(hooks.run("prestart", (shell("true"),), STATE, spawn, directory=f"{tmp_path}/gone"))


def test_a_hook_that_cannot_be_cloned_is_named() -> None:
    def no_spawn(_become: Callable[[], None], _keep: tuple[int, ...]) -> tuple[int, int]:
        raise OSError(11, "Resource temporarily unavailable")

    with pytest.raises(HookError, match="prestart hook #0: /bin/sh: clone: Resource temporarily unavail"):
        run(hooks.run("prestart", (shell("true"),), STATE, no_spawn))


def test_an_environment_is_passed_on_as_far_as_it_is_one() -> None:
    env = ("A=1", "A=2", "", "=x", "B", "C==", "PATH=/bin:/usr/bin")
    with pytest.raises(HookError, match="output: 2,yes,=$"):
        run(hooks.run("prestart", (shell("echo $A,${B-no}${B+yes},$C; exit 1", env=env),), STATE, spawn))


def test_a_hook_that_leaves_a_daemon_with_its_output_open_is_done_all_the_same(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "end")
    run(
        hooks.run(
            "prestart", (shell(f"exec 3<>{tmp_path}/end; head -c 1 <&3 & true", timeout=60),), STATE, spawn
        )
    )
    (tmp_path / "end").write_text("!")


def test_of_endless_output_the_end_is_kept_and_no_more() -> None:
    line = "0123456789" * 4
    script = f"i=0; while [ $i -lt 3000 ]; do echo {line}; i=$((i+1)); done; echo end; exit 1"
    with pytest.raises(HookError) as failure:
        run(hooks.run("prestart", (shell(script),), STATE, spawn))
    assert str(failure.value).endswith("end")
    assert 16000 < len(str(failure.value)) < 17000


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(
        HookError, match=r"hook #0: /no/such: exit status 127, output: No such file or directory"
    ):
        run(hooks.run("prestart", (Hook("/no/such"),), STATE, spawn))


def test_a_hook_without_an_environment_gets_the_default_one() -> None:
    for hook, expected in (
        (shell("echo $WHO; exit 1", env=()), "default"),
        (shell("echo $WHO; exit 1", env=("WHO=own",)), "own"),
    ):
        with pytest.raises(HookError, match=f"output: {expected}$"):
            run(hooks.run("startContainer", (hook,), STATE, spawn, ("WHO=default", "PATH=/bin")))


def test_a_hook_without_arguments_has_its_path_as_name(tmp_path: Path) -> None:
    program = tmp_path / "hook"
    program.write_text('#!/bin/sh\necho "$0"; exit 1\n')
    program.chmod(0o755)
    with pytest.raises(HookError, match=f"output: {program}$"):
        run(hooks.run("prestart", (Hook(str(program)),), STATE, spawn))


def test_a_hook_is_killed_when_nobody_waits_any_more(tmp_path: Path) -> None:
    operation = hooks.run("prestart", (shell("exec sleep 60"),), STATE, spawn)
    claim = next(operation)
    next(operation)
    operation.close()
    pid = claim.pid  # type: ignore[union-attr]
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 9


def test_a_tool_is_run_the_same_way_with_nothing_of_ours() -> None:
    done = hooks.run_tool(("/bin/sh", "-c", 'test "$0" = /bin/sh; cat; env; pwd; exit 4'), spawn, 5)
    said = run(done)
    assert said.startswith("exit status 4, output: ")
    assert said.endswith("PWD=/\n/")
    assert run(hooks.run_tool(("/bin/true",), spawn, 5)) == ""
    assert run(hooks.run_tool(("/bin/sleep", "60"), spawn, 1)) == "hook ran past specified timeout of 1.0s"
